"""One child process: started in a session of its own, tethered to this process, logging to a file.

Knows nothing of services or stages.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_TETHER = Path(__file__).with_name("tether.py")
_LINE_LIMIT = 16 * 1024 * 1024
"""Bytes of a line on stdout; asyncio's default is 64 KiB."""
_TAIL = 64 * 1024
"""Bytes of a log's end in which the last error is looked for."""

RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""By which torchrun, and ``launch.stages``, tell a process which of how many it is."""
USER_ERROR = 2
"""Exit code of a child that blames its input."""


@dataclass(frozen=True, kw_only=True)
class Child:
    """A process that runs, or ran, and what it wrote."""

    name: str
    process: Process
    log: Path
    log_start: int
    """Offset in ``log`` at which this process began to write."""

    @classmethod
    async def start(
        cls,
        name: str,
        arguments: Sequence[str],
        *,
        log: Path,
        threads: int | None = None,
        environment: Mapping[str, str] | None = None,
        pipe_stdout: bool = False,
    ) -> Child:
        """Start ``python arguments...``, its stderr (and stdout, unless piped) appended to a log.

        Args:
            name: For error texts.
            arguments: Of the Python interpreter.
            log: Appended to; its directory is made.
            threads: OMP_NUM_THREADS of the child. None: as this process has it.
            environment: Variables that it has besides this process's own.
            pipe_stdout: Leave stdout to the caller.

        Raises:
            OSError: The log cannot be written, or no process can be made.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as sink:
            start = sink.tell()
            process = await asyncio.create_subprocess_exec(
                *_tethered([sys.executable, *arguments]),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE if pipe_stdout else sink,
                stderr=sink,
                limit=_LINE_LIMIT,
                env=_environment(threads, environment or {}),
                # Ctrl-C in the terminal goes to the coordinator alone, which decides
                start_new_session=True,
            )
        return cls(name=name, process=process, log=log, log_start=start)

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.returncode is None

    @property
    def killed_by(self) -> signal.Signals | None:
        """The signal that ended it; None where it runs or ended by itself."""
        code = self.process.returncode
        return signal.Signals(-code) if code is not None and code < 0 else None

    async def stop(self, grace: float) -> None:
        """Ask it to end (SIGTERM), and end it with all that it started after ``grace`` seconds."""
        if not self.running:
            return
        self.process.terminate()
        try:
            await asyncio.wait_for(self.process.wait(), grace)
        except TimeoutError:
            # it had its time; what follows needs no consent
            pass
        finally:
            self._kill_group()
        await self.process.wait()

    def last_error(self) -> str:
        """What it last complained of: one line, or how it ended if it said nothing."""
        with self.log.open("rb") as source:
            end = source.seek(0, os.SEEK_END)
            source.seek(max(self.log_start, end - _TAIL))
            lines = source.read().decode(errors="replace").splitlines()
        spoken = [line.strip() for line in lines if line.strip()]
        errors = [text for line in spoken if (text := _error_of(line)) is not None]
        return (errors or [_text_of(line) for line in spoken[-1:]] or [self.ending()])[-1]

    def ending(self) -> str:
        """How it ended, in words."""
        if self.killed_by is not None:
            hint = " (out of memory?)" if self.killed_by is signal.SIGKILL else ""
            return f"killed by {self.killed_by.name}{hint}"
        return "still running" if self.running else f"exit code {self.process.returncode}"

    def _kill_group(self) -> None:
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            # nothing is left of its session
            return


def _tethered(command: Sequence[str]) -> list[str]:
    return [sys.executable, "-I", "-S", str(_TETHER), str(os.getpid()), *command]


def _environment(threads: int | None, more: Mapping[str, str]) -> dict[str, str]:
    # of whoever started this process: a child is one of several only if it is told so here
    own = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
    limit = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    return {**own, **limit, **more}


def _error_of(line: str) -> str | None:
    """The error that a log line tells of: ``prog: error: text`` or a JSON record of that level."""
    _, mark, text = line.partition(": error: ")
    if mark and not line.startswith("{"):
        return text
    record = _record(line)
    if str(record.get("level", "")).lower() in {"error", "critical"}:
        return _text_of(line)
    return None


def _text_of(line: str) -> str:
    record = _record(line)
    text = record.get("message") or record.get("event") or line
    return str(text)


def _record(line: str) -> dict[str, object]:
    if not line.startswith("{"):
        return {}
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        # a line cut short by a kill: it counts as plain text
        return {}
    return record if isinstance(record, dict) else {}
