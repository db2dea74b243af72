"""``solon prompts generate``: its options, the policy that answers, what is shown of it.

Knows nothing of how prompts are made (see ``generate``).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solon.trainer import calls
from solon.trainer.prompt_options import call_error, positive, refused, share, source_of

if TYPE_CHECKING:
    from solon.client import PolicyClient, ServerInfo
    from solon.trainer.generate import Wanted
    from solon.trainer.launch.local import LocalServices

ON_INTERRUPTION = "all answers that were made are kept. Go on with the same command"
_RETRY_SECONDS = 300.0
_SAMPLES_PER_PROMPT = 10
_SANDBOX_SEEDS = 200


def add_parser(actions: Any) -> None:
    """Add the action to those of ``solon prompts``."""
    parser = actions.add_parser(
        "generate", help="have a model write prompts like those it is shown"
    )
    add = parser.add_argument
    add("kind", metavar="KIND", choices=("red_team", "helpful", "sounds_harmful"), help="which")
    add("--count", type=positive, required=True, metavar="N", help="new prompts")
    add("--to", type=Path, required=True, metavar="FILE", help="a .jsonl file; goes on with it")
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--address", metavar="HOST:PORT", help="a policy service that runs")
    who.add_argument("--model", metavar="MODEL", help="sandbox, a directory or a hub name to start")
    add("--engine", default="transformers", metavar="NAME", help="of --model; default transformers")
    add("--seeds", metavar="SOURCE", help="prompts to show; default: written:KIND")
    add("--shots", type=positive, default=5, metavar="N", help="shown to a sample; default 5")
    add("--seed", type=int, default=0, metavar="N", help="of all draws; default 0")
    add("--temperature", type=float, default=1.0, metavar="T", help="default 1")
    add("--top-p", type=float, default=1.0, metavar="P", help="default 1")
    add("--max-tokens", type=positive, default=128, metavar="N", help="of an answer; default 128")
    add(
        "--near-duplicates",
        type=share,
        default=0.7,
        metavar="R",
        help="drop what resembles another by R, in pairs of words (Jaccard); default 0.7",
    )
    add(
        "--most-samples",
        type=positive,
        metavar="N",
        dest="samples",
        help=f"answers after which to give up; default {_SAMPLES_PER_PROMPT} a prompt",
    )
    add("--in-flight", type=positive, default=64, metavar="N", help="at once; default 64")
    calls.add_connection(parser, timeout=300.0)


async def run(options: argparse.Namespace) -> int:
    """Make the prompts, write them, say what there is; returns the exit code.

    Raises:
        CallError, PromptError, StageFailed, LaunchError, SolonError, StoreError: As
            ``prompt_commands.run``.
    """
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
    seeds = source_of(source=name, count=_SANDBOX_SEEDS if name.startswith("sandbox:") else None)
    examples = tuple(
        load_prompts([seeds], split="train", seed=wanted.seed, purpose="seeds").prompts
    )
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
        raise call_error(f"--to: expected the name of a .jsonl file, got {str(options.to)!r}")
    if not 0 <= options.seed < 2**63:
        raise call_error(f"--seed: expected 0 to 2**63 - 1, got {options.seed}")
    most = options.samples or _SAMPLES_PER_PROMPT * options.count
    if most < options.count:
        raise call_error(f"--most-samples: expected --count or more, got {most}")
    try:
        sampling = SamplingSettings(
            temperature=options.temperature, top_p=options.top_p, max_tokens=options.max_tokens
        )
    except ValidationError as error:
        raise refused(error) from error
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

    how = calls.connection(options) | {"retry_for": _RETRY_SECONDS, "retry_late": True}
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
            raise call_error(
                f"--address: expected a policy service, but {address!r} is a {info.service_role} "
                "service"
            )
        yield policy, info, local
