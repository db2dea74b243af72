"""One service process under load, on the scripted engine: what is lost, and what it costs.

    python tests/benchmarks/serving_load.py [SCENARIO ...] [--json FILE]

By hand; loopback only. Scenarios: ``in-flight`` (10,000 calls at once), ``rate`` (1,000 calls a
second), ``overload`` (five times what the engine can do), ``cancelled`` (10,000 calls that are
given up). ``--scale 0.1`` makes them all a tenth as long. Goodput is held against the server's
capacity: what it answers when its queue is never empty and never full.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from solon.client import ControlClient, Conversation, PolicyClient, Sampling, SolonError

ASKED = Conversation.from_user("How do I bake bread?")
SHORT = Sampling(max_tokens=8)
MIB = 2**20


@dataclass
class Seen:
    """What became of the calls of a scenario."""

    name: str
    calls: int = 0
    answered: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    async def call(self, client: PolicyClient) -> None:
        """One call, and its outcome."""
        self.calls += 1
        began = time.perf_counter()
        try:
            await client.generate(ASKED, sampling=SHORT)
        except SolonError as error:
            self.refused[error.reason or error.code.name] += 1
        else:
            self.answered += 1
            self.latencies.append(time.perf_counter() - began)

    def quantile(self, share: float) -> float:
        """Of the answered calls' seconds."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


class Server:
    """A policy process on the scripted engine."""

    def __init__(self, process: subprocess.Popen[bytes], address: str) -> None:
        self._process = psutil.Process(process.pid)
        self.address = address

    def memory(self) -> float:
        """Resident MiB."""
        return float(self._process.memory_info().rss) / MIB


@asynccontextmanager
async def serving(*flags: str, **engine: object) -> AsyncIterator[Server]:
    """Start a server and stop it."""
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready.json"
        options = [f"--engine-option={name}={value}" for name, value in engine.items()]
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "solon.policy.server", "--engine=scripted"),
                *("--log-level=WARNING", "--settle-seconds=0", f"--ready-file={ready}"),
                *options,
                *flags,
            ],
            env=os.environ | {"GRPC_VERBOSITY": "ERROR"},
        )
        try:
            while not ready.exists():
                if process.poll() is not None:
                    raise RuntimeError("the server did not start")
                await asyncio.sleep(0.05)
            told = json.loads(ready.read_text("utf-8"))
            yield Server(process, f"127.0.0.1:{told['port']}")
        finally:
            process.terminate()
            process.wait()


async def in_flight(scale: float) -> Seen:
    """So many calls that none ends before the last has begun."""
    seen, calls = Seen("in-flight"), round(10_000 * scale)
    async with (
        serving("--queue-capacity=20000", latency=5) as server,
        PolicyClient(server.address, retry_for=0, timeout=300) as client,
    ):
        before = server.memory()
        began = time.perf_counter()
        await asyncio.gather(*(seen.call(client) for _ in range(calls)))
        seen.seconds = time.perf_counter() - began
        seen.notes.append(f"server memory {before:.0f} -> {server.memory():.0f} MiB")
    return seen


async def rate(scale: float) -> Seen:
    """Calls that come at random moments, 1,000 a second, whatever becomes of them."""
    seen = Seen("rate")
    async with (
        serving(latency=0.05) as server,
        PolicyClient(server.address, retry_for=0, timeout=60) as client,
    ):
        before = server.memory()
        seen.seconds = await offer(1000, 300 * scale, lambda: seen.call(client))
        seen.notes.append(f"server memory {before:.0f} -> {server.memory():.0f} MiB")
    return seen


async def overload(scale: float) -> Seen:
    """Five times the engine's capacity; then calls one by one, until they are fast again."""
    places, latency = 10, 0.05
    ideal = places / latency
    seen = Seen("overload")
    async with (
        serving("--queue-capacity=100", latency=latency, concurrency=places) as server,
        PolicyClient(server.address, retry_for=0, timeout=60) as client,
    ):
        capacity = await saturate(client, callers=5 * places, seconds=20 * scale)
        before = server.memory()
        seen.seconds = await offer(5 * ideal, 60 * scale, lambda: seen.call(client))
        after = time.perf_counter()
        recovered = Seen("after")
        while not recovered.latencies or recovered.latencies[-1] > 2 * latency:
            await recovered.call(client)
        share = seen.answered / (seen.seconds * capacity)
        seen.notes += [
            f"goodput {share:.1%} of capacity ({capacity:.0f}/s; ideal {ideal:.0f}/s)",
            f"server memory {before:.0f} -> {server.memory():.0f} MiB",
            f"recovered after {time.perf_counter() - after:.2f} s",
        ]
    return seen


async def saturate(client: PolicyClient, *, callers: int, seconds: float) -> float:
    """Answers a second to callers that each ask again as soon as they are answered."""
    seen, began = Seen("saturate"), time.perf_counter()

    async def caller() -> None:
        while time.perf_counter() < began + seconds:
            await seen.call(client)

    await asyncio.gather(*(caller() for _ in range(callers)))
    return seen.answered / (time.perf_counter() - began)


async def cancelled(scale: float) -> Seen:
    """Calls that are given up: what they held comes back."""
    seen, calls = Seen("cancelled"), round(10_000 * scale)
    async with (
        serving("--queue-capacity=20000", latency=600, concurrency=100) as server,
        PolicyClient(server.address, retry_for=0, timeout=300) as client,
        ControlClient(server.address) as control,
    ):
        began = time.perf_counter()
        for turn in range(3):
            given_up = [asyncio.create_task(seen.call(client)) for _ in range(calls)]
            await until(control, lambda queued, running: queued + running == calls)
            for call in given_up:
                call.cancel()
            await asyncio.gather(*given_up, return_exceptions=True)
            await until(control, lambda queued, running: queued + running == 0)
            await asyncio.sleep(3)  # garbage is looked for when the crowd has gone
            seen.notes.append(f"memory after turn {turn + 1}: {server.memory():.0f} MiB")
        seen.seconds = time.perf_counter() - began
    return seen


async def until(control: ControlClient, true: Callable[[int, int], bool]) -> None:
    """Return when the load is so, within a minute."""
    async with asyncio.timeout(60):
        while True:
            load = await control.get_load()
            if true(load.queued, load.running):
                return
            await asyncio.sleep(0.1)


async def offer(rate: float, seconds: float, call: Callable[[], Awaitable[None]]) -> float:
    """Start calls at random moments for so long; returns when all ended: the seconds it took."""
    draw, running, began = random.Random(0), set(), time.perf_counter()
    due = began
    while (now := time.perf_counter()) < began + seconds:
        while due <= now:
            task = asyncio.ensure_future(call())
            running.add(task)
            task.add_done_callback(running.discard)
            due += draw.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
    await asyncio.gather(*running)
    return time.perf_counter() - began


SCENARIOS: dict[str, Callable[[float], Coroutine[Any, Any, Seen]]] = {
    "in-flight": in_flight,
    "rate": rate,
    "overload": overload,
    "cancelled": cancelled,
}


def show(results: Sequence[Seen]) -> None:
    """The table."""
    table = Table(title="One process, scripted engine")
    for heading in ("", "calls", "answered", "not", "s", "50 %", "99 %", ""):
        table.add_column(heading)
    for seen in results:
        refused = ", ".join(f"{n:,} {why}" for why, n in seen.refused.items()) or "0"
        table.add_row(
            seen.name,
            f"{seen.calls:,}",
            f"{seen.answered:,}",
            refused,
            f"{seen.seconds:.1f}",
            f"{seen.quantile(0.5):.3f}",
            f"{seen.quantile(0.99):.3f}",
            "\n".join(seen.notes),
        )
    Console().print(table)


def main() -> None:
    """Run the scenarios asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scenarios", nargs="*", choices=[*SCENARIOS, []], metavar="SCENARIO")
    parser.add_argument("--scale", type=float, default=1.0, help="1: the goals' lengths")
    parser.add_argument("--json", type=Path, help="write the rows")
    given = parser.parse_args()
    names = given.scenarios or list(SCENARIOS)
    # thousands of calls wait here: looking through them for garbage would take the server's time
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    results = [asyncio.run(SCENARIOS[name](given.scale)) for name in names]
    show(results)
    if given.json:
        rows = [vars(seen) | {"latencies": None} for seen in results]
        given.json.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
