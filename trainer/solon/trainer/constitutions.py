"""``solon constitution``: what one says, what a judge makes of it, and one out of others' files.

Knows nothing of runs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solon.trainer import calls

if TYPE_CHECKING:
    from rich.console import Console

    from solon.constitution import Constitution, Finding

COMMAND = "constitution"
_IN_FLIGHT = 16


def add_parser(commands: Any) -> None:
    """Add the command to the ``solon`` parser's."""
    parser = commands.add_parser(
        COMMAND, allow_abbrev=False, help="check a constitution, or measure it on labelled pairs"
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser("check", help="whether it can be used, and what is doubtful in it")
    check.add_argument(
        "constitution", metavar="NAME_OR_FILE", help="a shipped name, or a YAML file"
    )
    check.add_argument("--json", action="store_true", help="print JSON")
    check.add_argument(
        "--strict", action="store_true", help="exit with 1 if anything is doubtful: for CI"
    )
    check.set_defaults(overrides=[])
    test = actions.add_parser(
        "test", help="how right a running judge is by each principle, on pairs that you know"
    )
    test.add_argument("constitution", metavar="NAME_OR_FILE", help="a shipped name, or a YAML file")
    test.add_argument("address", metavar="HOST:PORT", help="where the judge is")
    test.add_argument(
        "--labelled",
        required=True,
        metavar="FILE",
        help="prompt, chosen, rejected in TRL's preference format, HH-RLHF, or RewardBench",
    )
    calls.add_connection(test, timeout=300.0)
    _add_import(actions)


def _add_import(actions: Any) -> None:
    one = actions.add_parser("import", help="make one of the paper's JSON files, or of plain lists")
    one.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        type=Path,
        help=".json: the paper's instructions or few-shots; .txt: a comparison instruction a line",
    )
    one.add_argument(
        "--to", required=True, type=Path, metavar="FILE", help="the YAML file to write"
    )
    one.add_argument("--name", help="the constitution's name (default: the written file's)")
    one.add_argument("--author", help="who wrote the texts")
    one.add_argument("--license", help="under which they may be used")


def run(options: argparse.Namespace) -> int:
    """Run one of the actions; returns the exit code.

    Raises:
        ConstitutionError: The constitution cannot be used.
        PromptError: The pairs cannot be read.
        SolonError: The judge refused or failed.
    """
    if options.action == "check":
        return _check(options)
    if options.action == "import":
        return _import(options)
    return asyncio.run(_test(options))


def _check(options: argparse.Namespace) -> int:
    from solon.constitution import lint, load, resolve  # noqa: PLC0415

    constitution = load(resolve(options.constitution))
    findings = lint(constitution)
    if options.json:
        found = [{"rule": f.rule, "key": f.key, "text": f.text} for f in findings]
        print(json.dumps(_described(constitution) | {"findings": found}, ensure_ascii=False))
    else:
        _show_checked(constitution, findings)
    return 1 if findings and options.strict else 0


def _show_checked(constitution: Constitution, findings: Sequence[Finding]) -> None:
    import rich.console  # noqa: PLC0415

    console = rich.console.Console(highlight=False)
    _show(constitution, console)
    for principle in constitution.principles:
        if principle.comparison_instruction is None:
            console.print(
                f"note: {principle.id}: has no comparison_instruction: no judge uses it",
                soft_wrap=True,
            )
    for finding in findings:
        console.print(f"warning: {finding.key}: {finding.text}", markup=False, soft_wrap=True)
    console.print(f"{len(findings)} doubts" if findings else "All is well.")


def _import(options: argparse.Namespace) -> int:
    from solon.constitution import (  # noqa: PLC0415
        ConstitutionError,
        Problem,
        dump,
        import_files,
        lint,
    )

    made = import_files(
        options.files,
        name=options.name or options.to.stem,
        author=options.author,
        licence=options.license,
    )
    try:
        with options.to.open("x", encoding="utf-8") as file:
            file.write(dump(made))
    except OSError as error:
        text = f"cannot be written: {error.strerror}; --to another file"
        raise ConstitutionError(str(options.to), [Problem(text=text)]) from error
    _show_checked(made, lint(made))
    print(f"Written: {options.to}")
    return 0


def _described(constitution: Constitution) -> dict[str, Any]:
    return {
        "name": constitution.name,
        "digest": constitution.digest,
        "principles": [
            {
                "id": principle.id,
                "weight": principle.weight,
                "critiques": principle.critique_request is not None,
                "compares": principle.comparison_instruction is not None,
                "scores": principle.absolute_question is not None,
            }
            for principle in constitution.principles
        ],
    }


def _show(constitution: Constitution, console: Console) -> None:
    from rich.table import Table  # noqa: PLC0415

    table = Table(title=f"{constitution.name} ({constitution.digest[:12]})", title_justify="left")
    for heading in ("principle", "weight", "critiques", "compares", "scores"):
        table.add_column(heading, justify="right" if heading == "weight" else "left")
    for principle in _described(constitution)["principles"]:
        uses = ("yes" if principle[use] else "" for use in ("critiques", "compares", "scores"))
        table.add_row(principle["id"], f"{principle['weight']:g}", *uses)
    console.print(table)


async def _test(options: argparse.Namespace) -> int:
    import rich.console  # noqa: PLC0415
    from rich.progress import Progress  # noqa: PLC0415

    from solon.client import JudgeClient  # noqa: PLC0415
    from solon.constitution import load, resolve  # noqa: PLC0415
    from solon.trainer.inline import inline  # noqa: PLC0415
    from solon.trainer.trial import load_pairs, measures, try_pairs  # noqa: PLC0415

    constitution = load(resolve(options.constitution))
    pairs = load_pairs(options.labelled)
    connection = calls.connection(options) | {"retry_for": 60.0, "retry_late": True}
    with Progress(console=rich.console.Console(stderr=True)) as progress:
        task = progress.add_task("pairs", total=len(pairs))
        async with JudgeClient(options.address, **connection) as judge:
            results = await try_pairs(
                judge,
                pairs,
                inline(constitution),
                in_flight=_IN_FLIGHT,
                on_done=lambda: progress.advance(task),
            )
    found = {"constitution": constitution.name, "digest": constitution.digest}
    found |= measures(results)
    if options.json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        _show_trial(found, rich.console.Console(highlight=False))
    return 0


def _show_trial(found: Mapping[str, Any], console: Console) -> None:
    from rich.table import Table  # noqa: PLC0415

    title = f"{found['constitution']} ({found['digest'][:12]}) on {found['pairs']} pairs"
    table = Table(title=title, title_justify="left")
    table.add_column("principle")
    for heading in ("right", "loss", "calib.", "position", "none", "without", "adds"):
        table.add_column(heading, justify="right", no_wrap=True)
    overall = found["overall"]
    for name, one in found["principles"].items():
        gain = _gain(one["without"], overall["accuracy"])
        table.add_row(name, *_cells(one), _percent(one["without"]), gain)
    table.add_section()
    table.add_row("all", *_cells(overall), "", "")
    console.print(table)
    console.print(
        "right: of its verdicts. loss: log loss, 0.693 is a coin's. calib.: how far confidence is "
        "from being right. position: verdicts that follow it. none: pairs without a verdict. "
        "without: how often the others together are right. adds: what it adds to them, in points.",
        soft_wrap=True,
    )
    names = list(found["principles"])
    if len(names) > 1:
        agreement = Table(title="Agreement: same preference, of the pairs that both decide")
        agreement.add_column("")
        for number in range(1, len(names) + 1):
            agreement.add_column(str(number), justify="right")
        for number, name in enumerate(names, 1):
            row = (_percent(found["agreement"][name][other]) for other in names)
            agreement.add_row(f"{number} {name}", *row)
        console.print(agreement)


def _cells(one: Mapping[str, Any]) -> tuple[str, ...]:
    loss = "-" if one["log_loss"] is None else f"{one['log_loss']:.3f}"
    error = "-" if one["calibration_error"] is None else f"{one['calibration_error']:.3f}"
    shares = (_percent(one[key]) for key in ("position_bias", "no_verdict"))
    return (_percent(one["accuracy"]), loss, error, *shares)


def _gain(without: float | None, overall: float | None) -> str:
    if without is None or overall is None:
        return "-"
    return f"{(overall - without) * 100:+.1f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
