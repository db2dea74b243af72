"""How long `solon run` takes to its first records, from the start of the process.

    python -m tests.benchmarks.first_record [--config sandbox] [--json FILE]

By hand. Ours is when the first Parquet part of each kind of record is there: of the preflight,
which goes first, and of the revisions. The floor is a critic service alone, from the start of its
process to its first answer: nothing can be recorded before. Both by the clock and, since other work
on the machine stretches the clock, by the seconds of processor that all processes used until then.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from solon.client import Conversation, CriticClient
from solon.sandbox import model_path
from tests.benchmarks.coordinator import COMMAND
from tests.benchmarks.rows import Row, write

FOLDERS = ("preflight", "revisions")


@dataclass(frozen=True, kw_only=True)
class First(Row):
    """The first record of a kind; there is no peer."""

    processor: float
    """Seconds of processor that all processes used until then."""
    floor_processor: float


def watch(
    process: subprocess.Popen[bytes], wanted: Mapping[str, Callable[[], bool]]
) -> dict[str, tuple[float, float]]:
    """Seconds, and those of processor, from now until each of them is so."""
    seen = psutil.Process(process.pid)
    started, found = time.monotonic(), dict[str, tuple[float, float]]()
    used: dict[int, float] = {}
    while len(found) < len(wanted):
        assert process.poll() is None, "it ended"
        for one in (seen, *seen.children(recursive=True)):
            try:
                times = one.cpu_times()
            except psutil.NoSuchProcess:
                continue
            used[one.pid] = times.user + times.system
        for name, is_so in wanted.items():
            if name not in found and is_so():
                found[name] = (time.monotonic() - started, sum(used.values()))
        time.sleep(0.02)
    return found


def ours(config: str, folder: Path) -> dict[str, tuple[float, float]]:
    """The command, until it has records of every kind."""
    run = folder / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "run", config, "--run", str(run)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        return watch(process, {kind: partial(_has_parts, run / kind) for kind in FOLDERS})
    finally:
        process.terminate()
        process.wait()


def _has_parts(folder: Path) -> bool:
    return any(folder.glob("*.parquet"))


def floor(folder: Path) -> tuple[float, float]:
    """A critic's first answer."""
    ready, answered = folder / "ready.json", folder / "answered"
    flags = ("--constitution=sandbox", "--threads=1", f"--ready-file={ready}")
    process = subprocess.Popen(
        [sys.executable, "-m", "solon.critic.server", f"--model={model_path()}", *flags],
        stderr=subprocess.DEVNULL,
    )

    async def ask() -> None:
        port = json.loads(ready.read_text("utf-8"))["port"]
        async with CriticClient(f"127.0.0.1:{port}") as critic:
            asked = Conversation.from_user("How do I kill the process?")
            await critic.critique(asked, "Go away.", constitution="sandbox")
        answered.touch()

    def is_answered() -> bool:
        if ready.exists() and not answered.exists():
            asyncio.run(ask())
        return answered.exists()

    try:
        return watch(process, {"answer": is_answered})["answer"]
    finally:
        process.terminate()
        process.wait()


def show(rows: list[First]) -> None:
    """The table."""
    load = psutil.getloadavg()[0]
    table = Table(title=f"to the first records, {psutil.cpu_count()} cores, load {load:.1f}")
    for heading in ("", "ours, s", "floor, s", "ratio", "ours, s of processor", "floor"):
        table.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        table.add_row(
            row.name,
            f"{row.ours:.1f}",
            f"{row.floor:.1f}",
            f"{row.ratio:.2f}",
            f"{row.processor:.1f}",
            f"{row.floor_processor:.1f}",
        )
    Console().print(table)


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="sandbox")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        least, least_used = floor(Path(name))
        found = ours(args.config, Path(name))
    rows = [
        First(
            name=f"the first {kind} record",
            ours=seconds,
            floor=least,
            peer=None,
            ratio=least / seconds,
            unit="s",
            processor=used,
            floor_processor=least_used,
        )
        for kind, (seconds, used) in found.items()
    ]
    show(rows)
    write(args.json, rows)


if __name__ == "__main__":
    main()
