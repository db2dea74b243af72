"""The tables of an ablation, for a terminal and as Markdown. Knows nothing of how it was made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from solon.trainer.ablation.results import Result

RULE = (
    "± is half of the 95 % interval: the largest of that over seeds (Student's t), that over "
    "prompts, paired (normal), and 3 / n. A finding is reproduced if the whole interval of the "
    "difference is on its side, not reproduced if the whole interval is on the other, and within "
    "noise otherwise. *: more than chance explains."
)
_RELATIONS = {
    "lower": "lower than",
    "higher": "higher than",
    "same": "as",
    "at_most": "at most",
    "at_least": "at least",
}
Cells = tuple[str, ...]


def tables(result: Result) -> list[Table]:
    """For a terminal: the rows, how they differ, and the findings."""
    made = [
        _table("Rows", _measure_rows(result)),
        _table(f"Against {result['first']}, or the row that is named", _effect_rows(result)),
        _table("Findings", _finding_rows(result), first=4),
    ]
    return [table for table in made if table.row_count]


def markdown(result: Result) -> str:
    """The same for a page."""
    lines = [
        f"# Ablation {result['ablation']}",
        "",
        f"Base: `{result['base']}`; seeds: {', '.join(map(str, result['seeds']))}. {RULE}",
        "",
        "![Each row by its two chief figures](ablation.svg)",
        "",
        *_markdown_table("Rows", _measure_rows(result)),
        *_markdown_table("Against the first row, or the one that is named", _effect_rows(result)),
        *_markdown_table("Findings", _finding_rows(result)),
    ]
    return "\n".join(lines)


def _measure_rows(result: Result) -> list[Cells]:
    rows: list[Cells] = [("row", "", *map(_heading, result["measures"]), "runs")]
    for name, row in result["rows"].items():
        cells = (_figure(one, row["measures"].get(one)) for one in result["measures"])
        rows.append((name, row["title"], *cells, _runs(row)))
    return rows


def _effect_rows(result: Result) -> list[Cells]:
    rows: list[Cells] = [("row", "against", *map(_heading, result["measures"]))]
    for name, row in result["rows"].items():
        if row["against"] is None:
            continue
        cells = (_difference(one, row["effects"].get(one)) for one in result["measures"])
        rows.append((name, row["against"], *cells))
    return rows


def _finding_rows(result: Result) -> list[Cells]:
    rows: list[Cells] = [("row", "found by others", "here", "verdict")]
    for name, row in result["rows"].items():
        for finding in row["findings"]:
            here = "; ".join(_sentence(name, one) for one in finding["expected"])
            if finding["reason"] and finding["verdict"] != "reproduced":
                here += f". {finding['reason']}"
            says = f"{finding['says']} ({finding['source']})"
            rows.append((name, says, here, finding["verdict"]))
    return rows


def _runs(row: Mapping[str, Any]) -> str:
    done = max((len(one["seeds"]) for one in row["measures"].values()), default=0)
    failed = "".join(
        f"; seed {seed}: {failure['kind']}" for seed, failure in row["failures"].items()
    )
    return f"{done} of {len(row['runs'])}{failed}"


def _sentence(row: str, one: Mapping[str, Any]) -> str:
    """Such as: rl harmful compliance lower than in base: -3.1 ± 1.2 (reproduced)."""
    measure, than = one["measure"], one["than"]
    said = f"{_heading(measure)} {_RELATIONS[one['is']]}"
    if than is None:
        said += f" {_number(measure, one['limit'])}"
        found = _figure(measure, one["found"])
    else:
        of = _heading(than["measure"]) if than["measure"] != measure else ""
        where = f"in {than['row']}" if than["row"] != row else ""
        said += f" {' '.join(part for part in (of, where) if part)}"
        within = "" if one["limit"] is None else f" within {_number(measure, one['limit'])}"
        said += within
        found = _difference(measure, one["found"])
    return f"{said}: {found or 'not measured'}"


def _heading(measure: str) -> str:
    return measure.replace(".", " ").replace("_", " ")


def _figure(measure: str, found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    half = "" if found["half"] is None else f" ± {_number(measure, found['half'], unit=False)}"
    return f"{_number(measure, found['mean'], unit=False)}{half}{_unit(measure)}"


def _difference(measure: str, found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    mean = _number(measure, found["mean"], unit=False)
    mean = mean if mean.startswith("-") else f"+{mean}"
    if found["half"] is None:
        return mean
    sure = "*" if abs(found["mean"]) > found["half"] else ""
    return f"{mean} ± {_number(measure, found['half'], unit=False)}{sure}"


def _number(measure: str, value: float, *, unit: bool = True) -> str:
    text = f"{value:.0f}" if measure == "seconds" else f"{100 * value:.1f}"
    return text + (_unit(measure) if unit else "")


def _unit(measure: str) -> str:
    return " s" if measure == "seconds" else " %"


def _table(title: str, rows: Sequence[Cells], first: int = 2) -> Table:
    table = Table(title=title, title_justify="left", show_lines=title == "Findings")
    for number, heading in enumerate(rows[0]):
        table.add_column(heading, justify="left" if number < first else "right", overflow="fold")
    for row in rows[1:]:
        table.add_row(*row)
    return table


def _markdown_table(title: str, rows: Sequence[Cells]) -> Iterator[str]:
    yield from (f"## {title}", "")
    for number, row in enumerate(rows):
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
        if number == 0:
            yield f"|{'---|' * len(row)}"
    yield ""
