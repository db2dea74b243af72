"""``solon prompts``: what a set holds, one out of others' files, and new ones by few-shot.

Knows nothing of runs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solon.trainer import generate_command
from solon.trainer.prompt_options import call_error, share, source_of

if TYPE_CHECKING:
    from rich.console import Console

    from solon.trainer.prompt_settings import PromptSource
    from solon.trainer.prompts import Prompt

COMMAND = "prompts"


def add_parser(commands: Any) -> None:
    """Add the command to the ``solon`` parser's."""
    parser = commands.add_parser(
        COMMAND, allow_abbrev=False, help="look at prompts, import them, or make new ones"
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser("check", help="read a source and say what it holds")
    _add_source(check)
    one = actions.add_parser("import", help="make a .jsonl of a source, without duplicates")
    _add_source(one)
    one.add_argument("--to", type=Path, required=True, metavar="FILE", help="a new .jsonl file")
    generate_command.add_parser(actions)


def _add_source(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="SOURCE", help="a file, or a name such as written:red_team")
    add("--format", metavar="NAME", help="what the rows are; default: what their columns show")
    add(
        "--where",
        metavar="COLUMN=VALUE",
        action="append",
        default=[],
        help="only rows with this value; repeatable: a column again is or, another is and",
    )
    add("--count", type=int, metavar="N", help="the first N; default: all")
    add("--skip-unusable", action="store_true", help="leave out and count rows without a prompt")
    add("--near-duplicates", type=share, metavar="R", help="leave those out that resemble by R")
    add("--json", action="store_true", help="print JSON")
    parser.set_defaults(overrides=[])


def run(options: argparse.Namespace) -> int:
    """Run one of the actions; returns the exit code.

    Raises:
        PromptError: A source cannot be read.
        CallError: An argument is wrong.
        StageFailed: Too few of the model's answers are new prompts.
        LaunchError: The model cannot be started.
        SolonError: The service refused or failed.
        StoreError: A file cannot be written.
    """
    if options.action == "generate":
        return asyncio.run(generate_command.run(options))
    return _survey(options)


def _survey(options: argparse.Namespace) -> int:
    import rich.console  # noqa: PLC0415

    from solon.trainer.prompts import SourceReader  # noqa: PLC0415
    from solon.trainer.survey import Survey, show  # noqa: PLC0415

    source = _source(options)
    to: Path | None = getattr(options, "to", None)
    if to is not None and (to.exists() or to.suffix != ".jsonl"):
        raise call_error(f"--to: expected the name of a new .jsonl file, got {str(to)!r}")
    reader, survey = SourceReader(source), Survey(options.near_duplicates)
    new = (prompt for prompt in reader if survey.add(prompt))
    if to is None:
        for _ in new:
            pass
    else:
        _write(to, new)
    found = {
        "source": source.source,
        "format": reader.format,
        "excluded": reader.excluded,
        "unusable": reader.unusable,
        **survey.figures(),
    }
    if options.json:
        print(json.dumps(found, ensure_ascii=False))
        return 0
    console = rich.console.Console(highlight=False, markup=False)
    _show_source(found, console)
    show(found, console)
    if to is not None:
        console.print(f"Written to {to}", soft_wrap=True)
    return 0


def _source(options: argparse.Namespace) -> PromptSource:
    where: dict[str, list[str]] = {}
    for text in options.where:
        column, found, value = text.partition("=")
        if not found or not column:
            raise call_error(f"--where: expected COLUMN=VALUE, got {text!r}")
        where.setdefault(column, []).append(value)
    return source_of(
        source=options.source,
        format=options.format,
        where=where,
        count=options.count,
        skip_unusable=options.skip_unusable,
    )


def _write(to: Path, prompts: Iterable[Prompt]) -> None:
    """One row a prompt, in the format ``prompts``; the file appears when it is whole."""
    beside = to.with_name(f".{to.name}.tmp-{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8") as file:
            for prompt in prompts:
                file.write(json.dumps(_row(prompt), ensure_ascii=False) + "\n")
        beside.replace(to)
    except OSError as error:
        raise call_error(f"--to: {str(to)!r} cannot be written: {error.strerror}") from error
    finally:
        beside.unlink(missing_ok=True)


def _row(prompt: Prompt) -> dict[str, Any]:
    turns = prompt.conversation.as_dicts()
    # a text where that says all: the row is then in TRL's standard format
    is_text = len(turns) == 1
    return {
        "id": prompt.id,
        "prompt": turns[0]["content"] if is_text else turns,
        "category": prompt.category,
        "source": Path(prompt.source).name,
        "row": prompt.row,
    }


def _show_source(found: dict[str, Any], console: Console) -> None:
    told = f" ({found['format']})" if found["format"] else ""
    console.print(f"{found['source']}{told}", soft_wrap=True)
    for key, what in (("excluded", "left out by --where"), ("unusable", "without a prompt")):
        if found[key]:
            console.print(f"{found[key]:,} rows {what}")
