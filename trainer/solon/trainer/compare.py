"""Two runs side by side: what was asked of them, and what came of it.

Where they differ in configuration and constitution, what each stage counted, and what the models
do, with the interval within which a difference may be chance. Reads run directories; asks no
service. Knows nothing of how records are made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import rich.console
from rich.table import Table

from solon.constitution import Constitution
from solon.trainer.config import RunConfig, differences
from solon.trainer.course import steps_of
from solon.trainer.explain import open_run
from solon.trainer.session import saved_config, saved_constitution
from solon.trainer.stage_names import STAGES
from solon.trainer.stages.evaluate import RESULT_NAME
from solon.trainer.state import RunState

_Z = 1.959964
"""Of a normal distribution's middle 95 %."""
_PARTS = (
    "weight",
    "priority",
    "critique_request",
    "questions",
    "exemplars",
    "revision_request",
    "comparison_instruction",
    "absolute_question",
)

Difference = dict[str, Any]


def compare(url_a: str, url_b: str) -> Difference:
    """How two runs differ.

    Returns:
        ``config``: a line ``key: a -> b`` for each value that can change a result;
        ``constitution``: ``added``, ``removed`` and ``changed`` principles, the last with the parts
        that differ; ``stages``: stage -> figure -> [a, b], where they differ; ``models``:
        model -> measure -> ``a``, ``b``, ``difference`` (b - a) and ``interval``, half of the 95 %
        interval of the difference (Wald); ``judge``: figure -> [a, b]. What only one run has is
        null in the other.

    Raises:
        RunDirectoryError: One of them is no run.
        StoreError, ConfigError, ConstitutionError: One of them cannot be read.
    """
    runs = [open_run(url) for url in (url_a, url_b)]
    first, second = (saved_config(run) for run in runs)
    kept = [saved_constitution(run) for run in runs]
    counted = [
        dict(_figures(RunState(run), config))
        for run, config in zip(runs, (first, second), strict=True)
    ]
    measured = [run.read_json(RESULT_NAME) or {"models": {}, "judge": {}} for run in runs]
    return {
        "a": url_a,
        "b": url_b,
        "config": differences(first, second),
        "constitution": _principles(*kept),
        "stages": _by_stage(*counted),
        "models": _models(measured[0]["models"], measured[1]["models"]),
        "judge": _pairs(measured[0]["judge"], measured[1]["judge"]),
    }


def show(found: Difference, console: rich.console.Console) -> None:
    """For people."""
    console.print(f"A: {found['a']}\nB: {found['b']}", markup=False, soft_wrap=True)
    for line in found["config"]:
        console.print(f"config: {line}", markup=False, soft_wrap=True)
    constitution = found["constitution"]
    for what in ("added", "removed"):
        for name in constitution[what]:
            console.print(f"constitution: {what} {name}", markup=False)
    for name, parts in constitution["changed"].items():
        console.print(f"constitution: changed {name}: {', '.join(parts)}", markup=False)
    if not (found["config"] or any(constitution.values())):
        console.print("They were asked for the same.")
    for title, rows in (("Stages", _stage_rows(found)), ("Models", _model_rows(found))):
        table = Table(title=title, title_justify="left")
        for heading in ("", "A", "B", "B - A"):
            table.add_column(heading, justify="right" if heading else "left")
        for row in rows:
            table.add_row(*row)
        if table.rows:
            console.print(table)
    if found["models"]:
        console.print("*: more than chance explains, at 95 %, each prompt taken by itself.")


def _principles(a: Constitution, b: Constitution) -> dict[str, Any]:
    ours, theirs = ({p.id: p for p in one.principles} for one in (a, b))
    changed = {
        name: [part for part in _PARTS if getattr(ours[name], part) != getattr(theirs[name], part)]
        for name in ours
        if name in theirs
    }
    return {
        "added": [name for name in theirs if name not in ours],
        "removed": [name for name in ours if name not in theirs],
        "changed": {name: parts for name, parts in changed.items() if parts},
    }


def _figures(state: RunState, config: RunConfig) -> Iterator[tuple[tuple[str, str], float]]:
    """Every number that a step counted, by its name and a dotted one, and its seconds."""
    for step in (one.name for one in steps_of(config, STAGES)):
        if state.is_done(step):
            yield (step, "seconds"), state.seconds(step)
            for name, value in _numbers("", state.summary(step)):
                yield (step, name), value


def _numbers(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(f"{prefix}{key}.", value)
        elif isinstance(value, int | float):
            yield f"{prefix}{key}", value


def _by_stage(
    a: Mapping[tuple[str, str], float], b: Mapping[tuple[str, str], float]
) -> dict[str, dict[str, list[float | None]]]:
    found: dict[str, dict[str, list[float | None]]] = {}
    for stage, name in dict.fromkeys((*a, *b)):
        ours, theirs = a.get((stage, name)), b.get((stage, name))
        if ours != theirs:
            found.setdefault(stage, {})[name] = [ours, theirs]
    return found


def _models(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        model: {
            measure: _change(a.get(model, {}).get(measure), b.get(model, {}).get(measure))
            for measure in dict.fromkeys((*a.get(model, {}), *b.get(model, {})))
        }
        for model in dict.fromkeys((*a, *b))
    }


def _change(a: Mapping[str, Any] | None, b: Mapping[str, Any] | None) -> dict[str, Any]:
    """Two rates, and how far their difference is more than chance."""
    first, second = (None if one is None else one["rate"] for one in (a, b))
    if a is None or b is None or first is None or second is None:
        return {"a": first, "b": second, "difference": None, "interval": None}
    spread = sum(p * (1 - p) / one["n"] for p, one in ((first, a), (second, b)))
    return {
        "a": first,
        "b": second,
        "difference": second - first,
        "interval": _Z * math.sqrt(spread),
    }


def _pairs(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {name: [a.get(name), b.get(name)] for name in dict.fromkeys((*a, *b))}


def _stage_rows(found: Difference) -> Iterator[tuple[str, ...]]:
    for stage, figures in found["stages"].items():
        for name, (a, b) in figures.items():
            change = "" if a is None or b is None else f"{b - a:+.4g}"
            yield f"{stage} {name}", _number(a), _number(b), change


def _model_rows(found: Difference) -> Iterator[tuple[str, ...]]:
    for model, measures in found["models"].items():
        for measure, one in measures.items():
            change = ""
            if one["difference"] is not None:
                sure = "*" if abs(one["difference"]) > one["interval"] else ""
                change = f"{100 * one['difference']:+.1f} ± {100 * one['interval']:.1f}{sure}"
            name = f"{model} {measure.replace('_', ' ')}"
            yield name, _percent(one["a"]), _percent(one["b"]), change
    for name, (a, b) in found["judge"].items():
        if name != "n":
            yield f"judge {name.replace('_', ' ')}", _percent(a), _percent(b), ""


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
