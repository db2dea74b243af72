"""Sends odd requests to every method of real service processes, and says what came back.

    python -m tests.fuzz.grpc_fuzz [--messages 100000] [--seed 0] [--only Score] [--engine NAME]

By hand; loopback only. The messages are those of ``tests/serving/test_fuzz.py``, as many as asked
for, others with each seed. After every one the server must be SERVING and idle. A finding is
shrunk and saved as hex (``--findings FOLDER``); ``--replay FILE`` sends one again. Exits with 1 if
there was any.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, Phase, given, seed, settings
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TimeElapsedColumn
from rich.table import Table

from solon.constitution import dump
from solon.serving.server import Role
from tests.fuzz.bench import Bench, connected
from tests.fuzz.corpus import CORE, ROLES, Method, methods
from tests.fuzz.replies import Finding
from tests.fuzz.strategies import bodies


@dataclass
class Fuzzed:
    """What became of one method's messages."""

    method: Method
    codes: Counter[str] = field(default_factory=Counter)
    finding: str | None = None
    body: bytes = b""
    """Of the last message; after a finding, the smallest that leads to it."""


def fuzz(bench: Bench, fuzzed: Fuzzed, messages: int, first_seed: int, progress: Progress) -> None:
    """Send so many messages to one method, or fewer if one leads to a finding."""
    method = fuzzed.method
    task = progress.add_task(method.name, total=messages)

    @seed(first_seed)
    @settings(
        max_examples=messages,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(bodies(GetMessageClass(method.descriptor.input_type), method.requests))
    def holds(body: bytes) -> None:
        fuzzed.body = body
        fuzzed.codes[bench.try_out(method, body).code] += 1
        progress.advance(task)

    try:
        holds()
        bench.check_works(method)
    except Finding as finding:
        fuzzed.finding = str(finding)
    progress.remove_task(task)


@contextmanager
def started(role: Role, flags: Sequence[str]) -> Iterator[str]:
    """A process of the role; gives its address."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ready, constitution = folder / "ready.json", folder / "core.yaml"
        constitution.write_text(dump(CORE), "utf-8")
        known = [f"--constitution={constitution}"] if role.takes_constitutions else []
        module = role.register.__module__
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", module, f"--ready-file={ready}"),
                *("--settle-seconds=0", "--log-level=ERROR"),
                *known,
                *flags,
            ],
            env=os.environ | {"GRPC_VERBOSITY": "NONE"},
        )
        try:
            while not ready.exists():
                if process.poll() is not None:
                    raise SystemExit(f"{role.program} did not start")
                time.sleep(0.05)
            yield f"127.0.0.1:{json.loads(ready.read_text('utf-8'))['port']}"
        finally:
            process.terminate()
            process.wait()


def show(console: Console, results: Sequence[Fuzzed], seconds: float) -> None:
    """The table."""
    codes = sorted({code for fuzzed in results for code in fuzzed.codes})
    total = sum(fuzzed.codes.total() for fuzzed in results)
    table = Table(title=f"{total:,} messages in {seconds:,.0f} s")
    table.add_column("method", no_wrap=True)
    for code in codes:
        table.add_column(code, justify="right")
    for fuzzed in results:
        counts = (f"{fuzzed.codes[code]:,}" if fuzzed.codes[code] else "" for code in codes)
        table.add_row(fuzzed.method.name, *counts)
    console.print(table)


def save(folder: Path, fuzzed: Fuzzed) -> Path:
    """A finding's message: the method on the first line, the body in hex on the second."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{fuzzed.method.role.name}-{fuzzed.method.descriptor.name}.hex"
    path.write_text(f"{fuzzed.method.name}\n{fuzzed.body.hex()}\n", "utf-8")
    return path


def replay(bench: Bench, path: Path, console: Console) -> int:
    """Send a saved message again."""
    name, body = path.read_text("utf-8").splitlines()
    [method] = (m for m in methods() if m.name == name)
    try:
        console.print(bench.try_out(method, bytes.fromhex(body)))
    except Finding as finding:
        console.print(f"[red]{finding}")
        return 1
    return 0


def main() -> int:
    """Run what the command line asks for; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.grpc_fuzz")
    parser.add_argument("--messages", type=int, default=100_000, help="over all methods together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", metavar="TEXT", help="methods whose name has it")
    parser.add_argument("--engine", default="scripted", help="with --model, any other")
    parser.add_argument("--model", default="", metavar="PATH")
    parser.add_argument("--findings", type=Path, default=Path("findings"), metavar="FOLDER")
    parser.add_argument("--replay", type=Path, metavar="FILE")
    given_ = parser.parse_args()
    console = Console()
    results = [Fuzzed(m) for m in methods() if given_.only in m.name]
    share = -(-given_.messages // max(1, len(results)))
    began = time.perf_counter()
    with ExitStack() as stack:
        flags = [f"--engine={given_.engine}", f"--model={given_.model}"]
        addresses = {role.name: stack.enter_context(started(role, flags)) for role in ROLES}
        bench = stack.enter_context(connected(addresses))
        if given_.replay:
            return replay(bench, given_.replay, console)
        columns = (SpinnerColumn(), *Progress.get_default_columns(), MofNCompleteColumn())
        with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
            for fuzzed in results:
                fuzz(bench, fuzzed, share, given_.seed, progress)
    show(console, results, time.perf_counter() - began)
    found = [fuzzed for fuzzed in results if fuzzed.finding]
    for fuzzed in found:
        console.print(f"[red]{save(given_.findings, fuzzed)}: {fuzzed.finding}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
