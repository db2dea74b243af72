"""The ``solon`` command: run, resume, check, one stage at a time; calls to running services.

Exit codes: 0 done; 2 something the user can put right, said in one message; 1 a failure or a
defect; 130 ended by Ctrl-C; 141 nobody reads the output. Imports nothing but the standard library
until a command needs more, so that ``--help`` is instant. Knows nothing of how a stage works.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from solon.trainer import calls, constitutions, generate_command, prompt_commands
from solon.trainer.ablation import command as ablation

if TYPE_CHECKING:
    from solon.trainer.config import RunConfig
    from solon.trainer.console import RunConsole
    from solon.trainer.pipeline import Pipeline
    from solon.trainer.stage_names import Stage

_STAGES = {
    "preflight": "measure on labelled responses whether the critic can see harm at all",
    "revisions": "answer red-team prompts, critique and revise the answers",
    "sft": "fine-tune the base model on the revisions",
    "preferences": "have the judge compare pairs of the fine-tuned model's answers",
    "reward": "train the preference model on the judge's labels",
    "rl": "reinforcement learning against the preference model",
    "evaluate": "measure every model of the run on held-out prompts",
}
_WITHOUT_RUN = (
    *calls.COMMANDS,
    constitutions.COMMAND,
    prompt_commands.COMMAND,
    "explain",
    "diff",
    "keys",
)
"""Commands without a run: there is no configuration to override."""
_INTERRUPTED = 130
_TERMINATED = 143
_NOBODY_READS = 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    # gRPC's core prints a line for every connection that a restarted service drops
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    for extra in rest:
        # argparse takes no positional arguments after an option; overrides may come anywhere
        if extra.startswith("-") or "=" not in extra or options.command in _WITHOUT_RUN:
            expected = "" if options.command in _WITHOUT_RUN else "; expected key.path=value"
            parser.error(f"unrecognized argument {extra!r}{expected}")
        options.overrides.append(extra)
    try:
        return _run(options)
    except KeyboardInterrupt:
        print(_how_to_go_on(options, "interrupted"), file=sys.stderr)
        return _INTERRUPTED
    except asyncio.CancelledError:
        print(_how_to_go_on(options, "ended by SIGTERM"), file=sys.stderr)
        return _TERMINATED
    except BrokenPipeError:
        # whoever read it has seen enough (`solon keys | head`); at exit Python would flush again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _NOBODY_READS


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="solon",
        description="Constitutional AI: a harmless model from a helpful one and a constitution.",
        epilog="Start with `solon run sandbox`: a few minutes on two cores, no GPU, no network.",
    )
    parser.add_argument("--version", action="version", version=f"solon {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", allow_abbrev=False, help="run all stages, or go on with a run")
    _add_common(run, "a shipped name (sandbox), a YAML file, or a run directory")
    run.add_argument("--resume", action="store_true", help="go on with the run that is there")
    run.add_argument(
        "--reuse",
        metavar="RUN",
        action="append",
        default=[],
        help="take over what this run has made of the same settings and models; repeatable",
    )
    run.add_argument(
        "--dry-run",
        action="store_true",
        help="as `check`, and look at models, services and disk, and estimate cost; start nothing",
    )
    run.add_argument(
        "--gpus",
        metavar="NxDEVICE",
        help="of a dry run: for which accelerators, such as 2xa100-40gb (default: this machine's)",
    )
    run.add_argument("--json", action="store_true", help="of a dry run: one JSON object")
    for stage, purpose in _STAGES.items():
        one = commands.add_parser(stage, allow_abbrev=False, help=f"one stage: {purpose}")
        _add_common(one, "a run directory, or what `solon run` takes")
    check = commands.add_parser(
        "check",
        allow_abbrev=False,
        help="check a configuration and all it names, as `run --dry-run` first does; run nothing",
    )
    _add_common(check, "a shipped name, a YAML file, or a run directory")
    explain = commands.add_parser(
        "explain", allow_abbrev=False, help="why a run has what it has: all it knows of one prompt"
    )
    explain.add_argument("config", metavar="RUN", help="a run directory: a path or an fsspec URL")
    explain.add_argument(
        "id",
        metavar="ID",
        nargs="?",
        help="a prompt's, or the beginning of it; none: which there are",
    )
    explain.add_argument("--json", action="store_true", help="one JSON object")
    diff = commands.add_parser(
        "diff", allow_abbrev=False, help="two runs side by side: what they were asked, what came"
    )
    diff.add_argument("config", metavar="RUN_A", help="a run directory: a path or an fsspec URL")
    diff.add_argument("other", metavar="RUN_B", help="another")
    diff.add_argument("--json", action="store_true", help="one JSON object")
    keys = commands.add_parser(
        "keys", allow_abbrev=False, help="what a configuration can say: keys, defaults, meanings"
    )
    keys.add_argument("key", metavar="KEY", nargs="?", default="", help="such as rl or rl.reward")
    keys.add_argument("--json", action="store_true", help="one JSON list")
    ablation.add_parser(commands)
    constitutions.add_parser(commands)
    prompt_commands.add_parser(commands)
    calls.add_parsers(commands)
    return parser


def _add_common(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("config", metavar="CONFIG", help=what)
    parser.add_argument(
        "overrides", metavar="key.path=value", nargs="*", default=[], help="override a value"
    )
    parser.add_argument("--run", metavar="DIR", help="the run directory: a path or an fsspec URL")


def _version() -> str:
    try:
        return version("solon")
    except PackageNotFoundError:
        return "(not installed)"


def _run(options: argparse.Namespace) -> int:
    try:
        return _explained(options)
    except ModuleNotFoundError as error:
        if (error.name or "solon").partition(".")[0] == "solon":
            raise
        missing = f"the package {error.name!r} is not installed"
        print(f'solon: error: {missing}; pip install "solon[local]"', file=sys.stderr)
        return 2


def _explained(options: argparse.Namespace) -> int:
    from solon.tracing.export import exporting  # noqa: PLC0415
    from solon.trainer import failures  # noqa: PLC0415

    try:
        with exporting("solon"):
            return _command(options)
    except failures.EXPECTED as error:
        explained = failures.explain(error, in_run=options.command not in _WITHOUT_RUN)
        print(f"solon: error: {explained}", file=sys.stderr)
        return failures.exit_code(error)


def _command(options: argparse.Namespace) -> int:
    if options.command == ablation.COMMAND:
        return ablation.run(options)
    readers = {
        constitutions.COMMAND: constitutions.run,
        prompt_commands.COMMAND: prompt_commands.run,
        "explain": _explain,
        "diff": _diff,
        "keys": _keys,
    }
    if options.command in _WITHOUT_RUN:
        return readers.get(options.command, calls.run)(options)
    from solon.trainer.config import absolute_run_dir, load_config  # noqa: PLC0415
    from solon.trainer.console import RunConsole  # noqa: PLC0415

    config = load_config(options.config, options.overrides)
    if options.run:
        config = config.model_copy(update={"run_dir": absolute_run_dir(options.run)})
    console = RunConsole()
    if options.command == "check":
        return _check(config, console)
    if options.command == "run" and options.dry_run:
        return _dry_run(options, config)
    if options.command == "run":
        sources = options.reuse
        return asyncio.run(_stages(config, console, None, resume=options.resume, reuse=sources))
    return asyncio.run(_stages(config, console, options.command, resume=True))


def _explain(options: argparse.Namespace) -> int:
    import json  # noqa: PLC0415

    import rich.console  # noqa: PLC0415

    from solon.trainer.explain import explain, ids, listed, open_run, show  # noqa: PLC0415

    run = open_run(options.config)
    console = rich.console.Console(highlight=False)
    if options.id is None:
        lines = [json.dumps(ids(run))] if options.json else listed(run)
        for line in lines:
            print(line)
        return 0
    found = explain(run, options.id)
    if options.json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        show(found, console)
    return 0


def _diff(options: argparse.Namespace) -> int:
    import json  # noqa: PLC0415

    import rich.console  # noqa: PLC0415

    from solon.trainer.compare import compare, show  # noqa: PLC0415

    found = compare(options.config, options.other)
    if options.json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        show(found, rich.console.Console(highlight=False))
    return 0


def _keys(options: argparse.Namespace) -> int:
    from solon.trainer.keys import below, show  # noqa: PLC0415

    show(below(options.key), as_json=options.json)
    return 0


def _check(config: RunConfig, console: RunConsole) -> int:
    from solon.constitution import load, resolve  # noqa: PLC0415
    from solon.trainer.course import steps_of  # noqa: PLC0415
    from solon.trainer.forecast.dry_run import summarised  # noqa: PLC0415
    from solon.trainer.plan import advice, check_inputs, read_prompts  # noqa: PLC0415

    constitution = load(resolve(config.constitution))
    check_inputs(config, constitution)
    steps = steps_of(config)
    prompts = read_prompts(config, {step.stage for step in steps})
    for line in (*advice(constitution), *summarised(config, constitution, prompts, steps)):
        console.say(line)
    console.say(f"{config.constitution}: {len(constitution.principles)} principles. All is well.")
    return 0


def _dry_run(options: argparse.Namespace, config: RunConfig) -> int:
    import json  # noqa: PLC0415

    import rich.console  # noqa: PLC0415

    from solon.trainer.errors import ConfigError  # noqa: PLC0415
    from solon.trainer.forecast.dry_run import described, dry_run  # noqa: PLC0415
    from solon.trainer.forecast.hardware import detected, parse_gpus  # noqa: PLC0415
    from solon.trainer.forecast.show import show  # noqa: PLC0415

    gpus = parse_gpus(options.gpus) if options.gpus else detected()
    found = asyncio.run(dry_run(config, gpus, resume=options.resume))
    if options.json:
        print(json.dumps(described(found), ensure_ascii=False))
    else:
        show(found, rich.console.Console(highlight=False))
    if found.problems:
        raise ConfigError("\n".join(found.problems))
    return 0


async def _stages(
    config: RunConfig,
    console: RunConsole,
    stage: Stage | None,
    *,
    resume: bool,
    reuse: Sequence[str] = (),
) -> int:
    from solon.trainer.config import absolute_run_dir  # noqa: PLC0415
    from solon.trainer.explain import open_run  # noqa: PLC0415
    from solon.trainer.pipeline import Pipeline  # noqa: PLC0415
    from solon.trainer.session import open_session  # noqa: PLC0415

    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    sources = [open_run(absolute_run_dir(url)) for url in reuse]
    with open_session(config, resume=resume) as session:
        pipeline = Pipeline(session, console, sources=sources)
        await pipeline.run(None if stage is None else (stage,))
        if pipeline.state.is_done("evaluate"):
            _show_result(pipeline, console)
    return 0


def _show_result(pipeline: Pipeline, console: RunConsole) -> None:
    from solon.trainer.console import (  # noqa: PLC0415
        judge_sentence,
        models_table,
        snapshots_table,
        times_sentence,
    )
    from solon.trainer.course import steps_of  # noqa: PLC0415
    from solon.trainer.stage_names import STAGES  # noqa: PLC0415
    from solon.trainer.stages.evaluate import RESULT_NAME  # noqa: PLC0415

    evaluation = pipeline.session.run.read_json(RESULT_NAME)
    if any(evaluation["models"].values()):
        console.result(models_table(evaluation))
        if (on_its_way := snapshots_table(evaluation)) is not None:
            console.result(on_its_way)
    console.result(judge_sentence(evaluation))
    steps = (step.name for step in steps_of(pipeline.session.config, STAGES))
    console.result(times_sentence({name: pipeline.state.seconds(name) for name in steps}))
    root = pipeline.session.run.url
    console.result(f"Models: {root}/models  Figures: {root}/{RESULT_NAME}")
    # without a reward model, say, nothing is compared
    is_there = pipeline.session.run.storage.exists
    folders = ("revisions", "preferences", "evaluation")
    there = [f"{root}/{folder}" for folder in folders if is_there(folder)]
    console.result(f"Records: {', '.join(there)}")


def _how_to_go_on(options: argparse.Namespace, why: str) -> str:
    if options.command in _WITHOUT_RUN:
        kept = "; " + generate_command.ON_INTERRUPTION if "samples" in options else ""
        return f"solon: {why}{kept}"
    where = f" --run {options.run}" if options.run else ""
    where += "".join(f" --reuse {run}" for run in getattr(options, "reuse", ()))
    for flag in ("seeds", "only"):
        where += f" --{flag} {getattr(options, flag)}" if getattr(options, flag, None) else ""
    overrides = "".join(f" {text}" for text in options.overrides)
    if options.command in ("run", ablation.COMMAND):
        again = f"solon {options.command} {options.config}{overrides}{where} --resume"
    else:
        again = f"solon {options.command} {options.config}{overrides}{where}"
    return f"solon: {why}; all that was finished is kept. Go on with: {again}"


if __name__ == "__main__":
    sys.exit(main())
