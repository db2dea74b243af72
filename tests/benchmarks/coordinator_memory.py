"""Whether the coordinator's memory is flat: its RSS with 10,000 prompts against 1,000,000.

    python -m tests.benchmarks.coordinator_memory [--sizes 10000 1000000] [--json FILE]

By hand. A process a size runs the stage ``revisions`` as ``solon`` does: prompts are read from a
file, divided, digested and asked about; records go to Parquet parts and from there to the export.
Only the services are not there: in their place objects of this process answer at once, so that a
million prompts take minutes. Needs some 5 GB of disk for a million. The floor is the same process
with one prompt.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from solon.chat import Conversation
from solon.client import (
    Completion,
    ControlClient,
    CriticClient,
    FinishReason,
    Generated,
    Outcome,
    PolicyClient,
    RefinedRound,
    Sampling,
    ServerInfo,
    Timing,
    Usage,
)
from solon.trainer.config import load_config
from solon.trainer.console import RunConsole
from solon.trainer.fleet import INITIAL, Connected, Fleet, Policy, Weights
from solon.trainer.inline import inline
from solon.trainer.launch.local import Role
from solon.trainer.pipeline import Pipeline
from solon.trainer.session import Session, open_session
from tests.benchmarks.rows import Row, write

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One size."""

    prompts: int
    peak: float
    """MiB of resident memory, at most."""
    reading: float
    """MiB at most before the first record was made."""
    seconds: float


class NearPolicy(Policy):
    """A policy that is here, and answers at once."""

    async def generate(
        self,
        conversation: Conversation,
        *,
        weights: Weights,
        sampling: Sampling,
        n: int = 1,
        return_tokens: bool = False,
    ) -> Generated:
        """The same for every prompt, but for what it asks."""
        await asyncio.sleep(0)
        said = f"One could answer {conversation.messages[-1].content!r} in many ways."
        return Generated(
            request_id="",
            weight_version=weights.version,
            usage=Usage(prompt_tokens=10, completion_tokens=10, model_calls=n),
            timing=Timing(queue=0.0, inference=0.2),
            completions=tuple(_completion(said, n) for _ in range(n)),
        )


class NearCritic(CriticClient):
    """A critic that is here, and answers at once."""

    async def refine(  # type: ignore[override]
        self, conversation: Conversation, response: str, *, rounds: int, **_: Any
    ) -> AsyncGenerator[RefinedRound, None]:
        """Every round says something about the response."""
        for number in range(1, rounds + 1):
            await asyncio.sleep(0)
            yield RefinedRound(
                request_id="",
                weight_version=INITIAL,
                usage=Usage(prompt_tokens=100, completion_tokens=20, model_calls=2),
                timing=Timing(queue=0.0, inference=0.4),
                round=number,
                principle_id="honest",
                constitution_digest="",
                critique=_completion(f"In round {number} it lacks detail: {response}", number),
                critique_outcome=Outcome.MADE,
                revision=_completion(f"{response} That is draft {number}.", number),
                revision_outcome=Outcome.MADE,
                assessment=None,
                answers=(),
            )


def _completion(text: str, seed: int) -> Completion:
    return Completion(text=text, finish_reason=FinishReason.STOP, seed=seed)


@asynccontextmanager
async def near(session: Session, roles: Collection[Role]) -> AsyncIterator[Fleet]:
    """Services in this process."""
    clients = {"policy": PolicyClient, "critic": NearCritic}
    nowhere = "127.0.0.1:1"
    connected: dict[str, Connected] = {
        role: Connected(
            client=clients[role](nowhere),
            address=nowhere,
            info=_info(role),
            constitution=inline(session.constitution),
        )
        for role in roles
    }
    policy = NearPolicy(connected["policy"].client, ControlClient(nowhere), 1.0)
    yield Fleet(connected, policy, None)


def _info(role: Role) -> ServerInfo:
    return ServerInfo(
        service_role=role,
        solon_version="",
        engine="near",
        model="near",
        weight_version=INITIAL,
        context_tokens=8192,
        start_time=datetime.now(UTC),
        supports_logprobs=True,
        supports_weight_update=True,
        instance_id="",
    )


def side(config: Path) -> None:
    """Run the stage."""
    with open_session(load_config(str(config), []), resume=True) as session:
        asyncio.run(Pipeline(session, RunConsole(), fleets=near).run(("revisions",)))


def write_config(folder: Path, prompts: int, rounds: int) -> Path:
    """A configuration of a run that makes records of so many prompts."""
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    with (folder / "prompts.jsonl").open("w", encoding="utf-8") as file:
        for number in range(prompts):
            file.write(json.dumps({"prompt": f"What is number {number} of many?"}) + "\n")
    (folder / "held.jsonl").write_text(json.dumps({"prompt": "What is held out?"}))
    settings: dict[str, Any] = {
        "constitution": "core",
        "run_dir": str(folder / "run"),
        "models": dict.fromkeys(("policy", "critic", "judge", "base_for_sft"), str(model)),
        "prompts": {
            "red_team": [str(folder / "prompts.jsonl")],
            "evaluation": {"harmful": [str(folder / "held.jsonl")]},
        },
        "revisions": {"rounds": rounds},
    }
    path = folder / "config.json"
    path.write_text(json.dumps(settings))
    return path


def measure(prompts: int, rounds: int, work: Path | None) -> Measured:
    """Run it in a process of its own, and watch."""
    with tempfile.TemporaryDirectory(dir=work) as name:
        config = write_config(Path(name), prompts, rounds)
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.coordinator_memory", "--side", str(config)],
            stderr=subprocess.DEVNULL,
            env=os.environ | {"TMPDIR": name},
        )
        seen = psutil.Process(process.pid)
        records = Path(name) / "run" / "revisions"
        reading = peak = 0.0
        while process.poll() is None:
            try:
                peak = max(peak, seen.memory_info().rss / MIB)
            except psutil.NoSuchProcess:
                break
            if not records.exists():
                reading = peak
            time.sleep(0.05)
        assert process.wait() == 0, "the coordinator failed"
    return Measured(prompts=prompts, peak=peak, reading=reading, seconds=time.monotonic() - started)


def compare(found: Sequence[Measured], floor: Measured) -> list[Row]:
    """Each size against the smallest."""
    first = min(found, key=lambda one: one.prompts)
    return [
        Row(
            name=f"coordinator's peak RSS, {one.prompts:,} prompts",
            ours=one.peak,
            peer=first.peak,
            floor=floor.peak,
            ratio=first.peak / one.peak,
            unit="MiB",
        )
        for one in found
    ]


def show(found: Sequence[Measured], floor: Measured) -> None:
    """The table."""
    load = psutil.getloadavg()[0]
    table = Table(title=f"the coordinator's memory, {psutil.cpu_count()} cores, load {load:.1f}")
    for heading in ("prompts", "peak RSS, MiB", "of which reading, MiB", "of the first", "minutes"):
        table.add_column(heading, justify="right")
    first = found[0]
    for one in (floor, *found):
        table.add_row(
            f"{one.prompts:,}",
            f"{one.peak:.0f}",
            f"{one.reading:.0f}",
            f"{one.peak / first.peak:.2f}",
            f"{one.seconds / 60:.1f}",
        )
    Console().print(table)


def main() -> None:
    """Measure every size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=[10_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--work", type=Path, help="a folder with room for the largest")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    parser.add_argument("--side", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        side(args.side)
        return
    floor = measure(1, args.rounds, args.work)
    found = [measure(size, args.rounds, args.work) for size in args.sizes]
    show(found, floor)
    write(args.json, compare(found, floor))


if __name__ == "__main__":
    main()
