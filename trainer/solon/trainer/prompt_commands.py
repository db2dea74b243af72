"""``solon prompts``: what a set holds, one out of others' files, and new ones by few-shot.

Knows nothing of runs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solon.trainer import calls

if TYPE_CHECKING:
    from rich.console import Console

    from solon.client import PolicyClient, ServerInfo
    from solon.trainer.generate import Wanted
    from solon.trainer.launch.local import LocalServices
    from solon.trainer.prompt_settings import PromptSource
    from solon.trainer.prompts import Prompt

COMMAND = "prompts"
ON_INTERRUPTION = "all answers that were made are kept. Go on with the same command"
_RETRY_SECONDS = 300.0
_SAMPLES_PER_PROMPT = 10
_SANDBOX_SEEDS = 200


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
    _add_generate(actions)


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
    add("--near-duplicates", type=_share, metavar="R", help="leave those out that resemble by R")
    add("--json", action="store_true", help="print JSON")
    parser.set_defaults(overrides=[])


def _add_generate(actions: Any) -> None:
    parser = actions.add_parser(
        "generate", help="have a model write prompts like those it is shown"
    )
    add = parser.add_argument
    add("kind", metavar="KIND", choices=("red_team", "helpful", "sounds_harmful"), help="which")
    add("--count", type=_positive, required=True, metavar="N", help="new prompts")
    add("--to", type=Path, required=True, metavar="FILE", help="a .jsonl file; goes on with it")
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--address", metavar="HOST:PORT", help="a policy service that runs")
    who.add_argument("--model", metavar="MODEL", help="sandbox, a directory or a hub name to start")
    add("--engine", default="transformers", metavar="NAME", help="of --model; default transformers")
    add("--seeds", metavar="SOURCE", help="prompts to show; default: written:KIND")
    add("--shots", type=_positive, default=5, metavar="N", help="shown to a sample; default 5")
    add("--seed", type=int, default=0, metavar="N", help="of all draws; default 0")
    add("--temperature", type=float, default=1.0, metavar="T", help="default 1")
    add("--top-p", type=float, default=1.0, metavar="P", help="default 1")
    add("--max-tokens", type=_positive, default=128, metavar="N", help="of an answer; default 128")
    add(
        "--near-duplicates",
        type=_share,
        default=0.7,
        metavar="R",
        help="drop what resembles another by R, in pairs of words (Jaccard); default 0.7",
    )
    add(
        "--most-samples",
        type=_positive,
        metavar="N",
        dest="samples",
        help=f"answers after which to give up; default {_SAMPLES_PER_PROMPT} a prompt",
    )
    add("--in-flight", type=_positive, default=64, metavar="N", help="at once; default 64")
    calls.add_connection(parser, timeout=300.0)


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
        return asyncio.run(_generate(options))
    return _survey(options)


def _survey(options: argparse.Namespace) -> int:
    import rich.console  # noqa: PLC0415

    from solon.trainer.errors import CallError  # noqa: PLC0415
    from solon.trainer.prompts import SourceReader  # noqa: PLC0415
    from solon.trainer.survey import Survey, show  # noqa: PLC0415

    source = _source(options)
    to: Path | None = getattr(options, "to", None)
    if to is not None and (to.exists() or to.suffix != ".jsonl"):
        raise CallError(f"--to: expected the name of a new .jsonl file, got {str(to)!r}")
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
            raise _call_error(f"--where: expected COLUMN=VALUE, got {text!r}")
        where.setdefault(column, []).append(value)
    return _validated(
        source=options.source,
        format=options.format,
        where=where,
        count=options.count,
        skip_unusable=options.skip_unusable,
    )


def _validated(**values: Any) -> PromptSource:
    from pydantic import ValidationError  # noqa: PLC0415

    from solon.trainer.prompt_settings import PromptSource  # noqa: PLC0415

    try:
        return PromptSource.model_validate(values)
    except ValidationError as error:
        said = error.errors(include_url=False)[0]
        key = f"--{said['loc'][0]}: " if said["loc"] else ""
        message = str(said["msg"]).removeprefix("Value error, ")
        raise _call_error(f"{key}{message}, got {said['input']!r}" if key else message) from error


def _write(to: Path, prompts: Any) -> None:
    """One row a prompt, in the format ``prompts``; the file appears when it is whole."""
    beside = to.with_name(f".{to.name}.tmp-{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8") as file:
            for prompt in prompts:
                file.write(json.dumps(_row(prompt), ensure_ascii=False) + "\n")
        beside.replace(to)
    except OSError as error:
        raise _call_error(f"--to: {str(to)!r} cannot be written: {error.strerror}") from error
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


async def _generate(options: argparse.Namespace) -> int:
    import rich.console  # noqa: PLC0415

    from solon.trainer.console import RunConsole  # noqa: PLC0415
    from solon.trainer.generate import generate  # noqa: PLC0415
    from solon.trainer.prompts import load_prompts  # noqa: PLC0415
    from solon.trainer.survey import show  # noqa: PLC0415

    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    wanted = _wanted(options)
    name = options.seeds or f"written:{options.kind}"
    seeds = _validated(source=name, count=_SANDBOX_SEEDS if name.startswith("sandbox:") else None)
    examples = load_prompts([seeds], split="train", seed=wanted.seed, purpose="seeds").prompts
    async with _policy(options) as (policy, info, local):
        with RunConsole().stage("prompts") as progress:
            work = generate(policy, info, examples, wanted, to=options.to, progress=progress)
            report = await (work if local is None else local.guard(work))
    if options.json:
        print(json.dumps(report, ensure_ascii=False))
        return 0
    console = rich.console.Console(highlight=False, markup=False)
    show({**report, "duplicates": 0, "near_duplicates": 0}, console)
    dropped = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in report["dropped"].items())
    console.print(f"of {report['samples']:,} answers; dropped: {dropped or 'none'}", soft_wrap=True)
    console.print(f"Written to {options.to}", soft_wrap=True)
    return 0


def _wanted(options: argparse.Namespace) -> Wanted:
    from pydantic import ValidationError  # noqa: PLC0415

    from solon.trainer.generate import Wanted  # noqa: PLC0415
    from solon.trainer.stages.settings import SamplingSettings  # noqa: PLC0415

    if options.to.suffix != ".jsonl":
        raise _call_error(f"--to: expected the name of a .jsonl file, got {str(options.to)!r}")
    if not 0 <= options.seed < 2**63:
        raise _call_error(f"--seed: expected 0 to 2**63 - 1, got {options.seed}")
    most = options.samples or _SAMPLES_PER_PROMPT * options.count
    if most < options.count:
        raise _call_error(f"--most-samples: expected --count or more, got {most}")
    try:
        sampling = SamplingSettings(
            temperature=options.temperature, top_p=options.top_p, max_tokens=options.max_tokens
        )
    except ValidationError as error:
        said = error.errors(include_url=False)[0]
        key = str(said["loc"][0]).replace("_", "-")
        raise _call_error(f"--{key}: {said['msg']}, got {said['input']!r}") from error
    return Wanted(
        kind=options.kind,
        count=options.count,
        most_samples=most,
        seed=options.seed,
        shots=options.shots,
        near_duplicate=options.near_duplicates,
        sampling=sampling,
        in_flight=options.in_flight,
    )


@asynccontextmanager
async def _policy(
    options: argparse.Namespace,
) -> AsyncIterator[tuple[PolicyClient, ServerInfo, LocalServices | None]]:
    """The service at the address, or one that runs the model for as long as the block."""
    from solon.client import ControlClient, PolicyClient  # noqa: PLC0415
    from solon.trainer.config import model_source  # noqa: PLC0415
    from solon.trainer.launch.local import LocalServices, ServiceSpec  # noqa: PLC0415

    how = calls.connection(options) | {"retry_for": _RETRY_SECONDS}
    async with AsyncExitStack() as stack:
        address, local = options.address, None
        if address is None:
            spec = ServiceSpec(
                role="policy",
                model=model_source(options.model),
                engine=options.engine,
                flags=("--settle-seconds", "0", "--drain-seconds", "2"),
            )
            logs = Path(f"{options.to}.samples") / "logs"
            local = await stack.enter_async_context(LocalServices([spec], log_dir=logs))
            address = local.addresses["policy"]
        policy = await stack.enter_async_context(PolicyClient(address, **how))
        control = await stack.enter_async_context(ControlClient(address, **how | {"retry_for": 0}))
        info = await control.get_server_info()
        if info.service_role != "policy":
            raise _call_error(
                f"--address: expected a policy service, but {address!r} is a {info.service_role} "
                "service"
            )
        yield policy, info, local


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number, 1 or more, got {text!r}")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0 and up to 1, got {text!r}")
    return value


def _call_error(text: str) -> Exception:
    from solon.trainer.errors import CallError  # noqa: PLC0415

    return CallError(text)
