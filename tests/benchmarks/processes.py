"""A service in a process of its own, for benchmarks: started, asked what it took, ended."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

_MIB = 2**20


class Server:
    """A process that serves."""

    def __init__(self, process: subprocess.Popen[bytes], address: str) -> None:
        self._process = psutil.Process(process.pid)
        self.pid = process.pid
        self.address = address

    def memory(self) -> float:
        """Resident MiB, of its children too."""
        return sum(float(p.memory_info().rss) for p in self._all()) / _MIB

    def cpu(self) -> float:
        """CPU seconds that it has taken since its start, with its children."""
        return sum(p.cpu_times().user + p.cpu_times().system for p in self._all())

    def _all(self) -> list[psutil.Process]:
        return [self._process, *self._process.children(recursive=True)]


@asynccontextmanager
async def serving(role: str, *flags: str, python: str = sys.executable) -> AsyncIterator[Server]:
    """Start ``solon-ROLE`` with these flags; it is ended with the block.

    Args:
        role: ``policy``, ``critic`` or ``judge``.
        *flags: Of its command line.
        python: The interpreter, and so the environment, that it runs in.
    """
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready.json"
        process = subprocess.Popen(
            [
                *(python, "-m", f"solon.{role}.server", "--port=0", f"--ready-file={ready}"),
                *("--log-level=WARNING", "--settle-seconds=0"),
                *flags,
            ],
            env=os.environ | {"GRPC_VERBOSITY": "ERROR"},
        )
        try:
            await _until_ready(process, ready)
            told = json.loads(ready.read_text("utf-8"))
            yield Server(process, f"127.0.0.1:{told['port']}")
        finally:
            process.terminate()
            process.wait()


async def _until_ready(process: subprocess.Popen[bytes], ready: Path) -> None:
    while not ready.exists():
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode} before it served")
        await asyncio.sleep(0.05)


def now(clock: str, others: Callable[[], float] = lambda: 0.0) -> float:
    """Seconds: of the wall (``wall``), or of this process's and the ``others``' CPU (``cpu``)."""
    return time.perf_counter() if clock == "wall" else time.process_time() + others()


def engine_flags(name: str, model: str, threads: int, options: Sequence[str] = ()) -> list[str]:
    """The flags that choose an engine."""
    return [
        *(f"--engine={name}", f"--model={model}", f"--threads={threads}"),
        *(f"--engine-option={option}" for option in options),
    ]
