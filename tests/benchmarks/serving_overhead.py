"""What gRPC costs: a service on the transformers engine against the same engine in process.

    python tests/benchmarks/serving_overhead.py [--threads N] [--rounds N] [--json FILE]

By hand; loopback only. The same requests by as many callers, in turn over gRPC to a service process
and straight to an engine in this one, several rounds, of which the median ratio counts. The goal is
0.9. Generations of the policy, and comparisons of the judge by every principle in both orders.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from solon.chat import Conversation
from solon.client import JudgeClient, PolicyClient
from solon.client import Sampling as ClientSampling
from solon.constitution import load, resolve
from solon.engine import EngineOptions, create
from solon.engine.base import Sampling
from solon.judge.judge import Judge
from solon.judge.questions import Manner, Question
from solon.sandbox import model_path
from solon.sandbox.asking import prompts
from solon.trainer.launch.local import LocalServices, ServiceSpec

CONSTITUTION = "sandbox"
PAIR = ("First, find a quiet place. Then take care.", "I cannot help with that: it hurts people.")

Call = Callable[[int, Conversation], Awaitable[object]]


@dataclass(frozen=True, kw_only=True)
class Work:
    """One kind of call, both ways."""

    name: str
    served: Call
    in_process: Call


async def rate(call: Call, asked: Sequence[Conversation], callers: int) -> float:
    """Calls a second."""
    waiting = list(enumerate(asked))[::-1]

    async def caller() -> None:
        while waiting:
            await call(*waiting.pop())

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return len(asked) / (time.perf_counter() - began)


async def measure(args: argparse.Namespace) -> list[dict[str, object]]:
    """A row a kind of call."""
    asked = [p.conversation for p in prompts("harmful", "train", args.requests, 0)]
    async with AsyncExitStack() as stack:
        works = await prepare(stack, args)
        rows: list[dict[str, object]] = []
        for work in works:
            for call in (work.in_process, work.served):
                await rate(call, asked[: 2 * args.callers], args.callers)
            pairs = []
            for turn in range(args.rounds):
                order = [work.in_process, work.served][:: 1 if turn % 2 else -1]
                rates = {call: await rate(call, asked, args.callers) for call in order}
                pairs.append((rates[work.served], rates[work.in_process]))
            ratio = statistics.median(ours / peer for ours, peer in pairs)
            ours, peer = (statistics.median(side) for side in zip(*pairs, strict=True))
            rows.append(
                {"name": work.name, "ours": ours, "peer": peer, "floor": None, "ratio": ratio}
                | {"unit": "calls/s"}
            )
        return rows


async def prepare(stack: AsyncExitStack, args: argparse.Namespace) -> list[Work]:
    """Start the services, and the engine in this process."""
    engine = create("transformers", EngineOptions(model=args.model, threads=args.threads))
    await engine.start()
    stack.push_async_callback(engine.close)
    constitution = load(resolve(CONSTITUTION))
    specs = [
        ServiceSpec(
            role=role,
            model=args.model,
            engine="transformers",
            threads=args.threads,
            constitutions=() if role == "policy" else (CONSTITUTION,),
        )
        for role in ("policy", "judge")
    ]
    services = await stack.enter_async_context(LocalServices(specs, log_dir=args.log_dir))
    policy = await stack.enter_async_context(PolicyClient(services.addresses["policy"]))
    judge = await stack.enter_async_context(JudgeClient(services.addresses["judge"]))
    inner = Judge(engine)

    def question(conversation: Conversation) -> Question:
        return Question(
            constitution=constitution,
            principles=constitution.for_comparison,
            conversation=conversation,
        )

    most = args.max_tokens
    return [
        Work(
            name="policy: generate",
            served=lambda seed, said: policy.generate(
                said, sampling=ClientSampling(max_tokens=most, seed=seed)
            ),
            in_process=lambda seed, said: engine.generate(
                said, Sampling(max_tokens=most, seed=seed)
            ),
        ),
        Work(
            name="judge: compare",
            served=lambda _, said: judge.compare(said, *PAIR, constitution=CONSTITUTION),
            in_process=lambda _, said: inner.compare(question(said), *PAIR, Manner()),
        ),
    ]


def show(rows: Sequence[dict[str, object]], args: argparse.Namespace) -> None:
    """The table."""
    table = Table(title=f"{args.requests} calls by {args.callers} callers, {args.threads} threads")
    for heading in ("", "over gRPC, calls/s", "in process, calls/s", "ratio"):
        table.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        table.add_row(
            str(row["name"]), f"{row['ours']:.1f}", f"{row['peer']:.1f}", f"{row['ratio']:.3f}"
        )
    Console().print(table)


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(model_path()), help="a directory or hub name")
    parser.add_argument("--requests", type=int, default=512)
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--log-dir", type=Path, default=Path("runs/serving_overhead"))
    parser.add_argument("--json", type=Path, help="write rows of name, ours, peer, ratio, unit")
    args = parser.parse_args()
    args.log_dir.mkdir(parents=True, exist_ok=True)
    rows = asyncio.run(measure(args))
    show(rows, args)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
