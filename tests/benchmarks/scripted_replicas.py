"""Many replicas of a service in one process, on the scripted engine: to measure who calls them.

    python -m tests.benchmarks.scripted_replicas ROLE COUNT --ready-file FILE [--latency S]

Each has a socket, a gRPC server and an engine of its own, so that a caller sees as many replicas;
they share a process because sixty-four of them would not fit on a small machine otherwise. Ends
with its standard input.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path

import uvloop

from solon.constitution import load, resolve
from solon.critic.server import ROLE as CRITIC
from solon.engine import EngineOptions, create
from solon.judge.server import ROLE as JUDGE
from solon.policy.server import ROLE as POLICY
from solon.serving.testing import running

_MOST_A_PROCESS = 16
"""Replicas that share one: with more of them, those whose calls end at once wait for each other."""
_START_SECONDS = 120.0
ROLES = {role.name: role for role in (POLICY, CRITIC, JUDGE)}


@contextmanager
def replicas(role: str, count: int, *, latency: float, concurrency: int = 1) -> Iterator[str]:
    """The gRPC target of so many replicas, which serve while the block runs.

    Args:
        role: ``policy``, ``critic`` or ``judge``.
        count: How many.
        latency: Seconds that each use of the model takes.
        concurrency: Uses of the model at once, a replica; 0 is no limit.
    """
    sizes = [min(_MOST_A_PROCESS, count - first) for first in range(0, count, _MOST_A_PROCESS)]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        files = [Path(folder) / f"{number}.json" for number in range(len(sizes))]
        for size, file in zip(sizes, files, strict=True):
            flags = (f"--latency={latency}", f"--concurrency={concurrency}", f"--ready-file={file}")
            stack.enter_context(_process(role, str(size), *flags))
        addresses = [one for file in files for one in _told(file)]
        yield addresses[0] if count == 1 else f"ipv4:{','.join(addresses)}"


@contextmanager
def _process(*arguments: str) -> Iterator[None]:
    name = "tests.benchmarks.scripted_replicas"
    command = [sys.executable, "-m", name, *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        yield
    finally:
        process.communicate()


def _told(file: Path) -> list[str]:
    """The addresses in a ready file, as soon as it is there."""
    deadline = time.monotonic() + _START_SECONDS
    while not file.exists():
        if time.monotonic() > deadline:
            raise RuntimeError("the replicas did not start")
        time.sleep(0.05)
    addresses: list[str] = json.loads(file.read_text("utf-8"))
    return addresses


async def serve(args: argparse.Namespace) -> None:
    """Serve until standard input ends."""
    extra = {"latency": str(args.latency), "concurrency": str(args.concurrency)}
    role = ROLES[args.role]
    constitutions = [load(resolve("sandbox"))] if role.takes_constitutions else []
    async with AsyncExitStack() as stack:
        addresses = [
            await stack.enter_async_context(
                running(
                    role,
                    create("scripted", EngineOptions(model="scripted", extra=extra)),
                    constitutions=constitutions,
                )
            )
            for _ in range(args.count)
        ]
        beside = args.ready_file.with_suffix(".new")
        beside.write_text(json.dumps(addresses), encoding="utf-8")
        beside.rename(args.ready_file)
        await asyncio.to_thread(sys.stdin.read)


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("role", choices=sorted(ROLES))
    parser.add_argument("count", type=int)
    parser.add_argument("--ready-file", type=Path, required=True)
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--concurrency", type=int, default=1)
    uvloop.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
