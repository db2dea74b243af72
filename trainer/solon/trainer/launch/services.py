"""The three services as processes of this machine, kept alive for as long as a run needs them.

Starts ``python -m solon.ROLE.server`` on loopback ports that the system chooses, restarts what
crashes on the same port, and stops everything at the end. Names the servers as text only: the
trainer never imports a role.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from solon.trainer.launch.child import USER_ERROR, Child
from solon.trainer.launch.errors import LaunchError

Role = Literal["policy", "critic", "judge"]
Result = TypeVar("Result")

_HOST = "127.0.0.1"
_POLL_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceSpec:
    """One service to start."""

    role: Role
    model: str
    """Path or name, as the engine takes it."""
    name: str = ""
    """What to call it beside others of its role; empty: by its role."""
    engine: str = "transformers"
    weight_version: str = "initial"
    """What the service calls its first weights."""
    constitutions: tuple[str, ...] = ()
    """Names or paths that it serves by name. For critic and judge."""
    threads: int | None = None
    """Compute threads. None: as many as the engine likes."""
    flags: tuple[str, ...] = ()
    """Further flags of its command line, such as ``("--dtype", "bfloat16")``."""

    @property
    def called(self) -> str:
        """Its name, or its role."""
        return self.name or self.role

    def arguments(self, *, port: int, ready_file: Path) -> list[str]:
        """The Python interpreter's arguments that start it."""
        threads = () if self.threads is None else ("--threads", str(self.threads))
        named = [part for name in self.constitutions for part in ("--constitution", name)]
        return [
            *("-m", f"solon.{self.role}.server", "--host", _HOST, "--port", str(port)),
            *("--engine", self.engine, "--model", self.model),
            *("--weight-version", self.weight_version, "--ready-file", str(ready_file)),
            *threads,
            *named,
            *self.flags,
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """How long to wait for services, and how often to restart them."""

    start: float = 600.0
    """Seconds from a process's start until it must serve."""
    grace: float = 20.0
    """Seconds from SIGTERM to SIGKILL at the end."""
    crashes: int = 5
    """This many crashes of a service within ``window`` give the run up."""
    window: float = 60.0
    """Seconds."""
    first_backoff: float = 0.2
    """Seconds before the first restart; doubles with every crash within ``window``."""


class LocalServices:
    """Services that run while an ``async with`` block does.

    Addresses stay the same over restarts. A restarted service has the weights it was first
    started with. The children die with the event loop's thread, so also if this process is
    killed.
    """

    def __init__(
        self, specs: Sequence[ServiceSpec], *, log_dir: Path, patience: Patience | None = None
    ) -> None:
        """Remember what to start.

        Args:
            specs: At most one of a name.
            log_dir: Gets ``NAME.log``, appended to.
            patience: None: the defaults.

        Raises:
            ValueError: Two specs of one name.
        """
        names = [spec.called for spec in specs]
        if len(set(names)) != len(names):
            raise ValueError(f"specs: expected at most one service of a name, got {names!r}")
        self._patience = patience or Patience()
        self._services = [_Service(spec, log_dir, self._patience) for spec in specs]
        self._keepers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Start all, and return when every one of them serves.

        Raises:
            LaunchError: One of them gave up, was killed too often, or did not serve in time; none
                is left running.
        """
        starts = [asyncio.create_task(service.open()) for service in self._services]
        try:
            await asyncio.gather(*starts)
        except BaseException:
            await _cancel(starts)
            await self._stop()
            raise
        self._keepers = [asyncio.create_task(service.keep()) for service in self._services]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop all: SIGTERM, then SIGKILL after the grace."""
        await _cancel(self._keepers)
        await self._stop()

    async def guard(self, work: Coroutine[Any, Any, Result]) -> Result:
        """The work's result, unless a service that it may wait for is given up meanwhile.

        Raises:
            LaunchError: A service crashed too often; the work was cancelled.
        """
        task = asyncio.create_task(work)
        try:
            await asyncio.wait({task, *self._keepers}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done() or task.cancelled() or task.exception() is not None:
                self._raise_given_up()
            return await task
        finally:
            await _cancel([task])

    @property
    def addresses(self) -> Mapping[str, str]:
        """Role, or the name where there is one -> ``host:port``."""
        return {service.spec.called: f"{_HOST}:{service.port}" for service in self._services}

    @property
    def restarts(self) -> Mapping[str, int]:
        """As ``addresses`` -> how often it was started again so far."""
        return {service.spec.called: service.restarts for service in self._services}

    @property
    def pids(self) -> Mapping[str, int]:
        """As ``addresses`` -> process id at this moment."""
        return {s.spec.called: s.child.pid for s in self._services if s.child is not None}

    def _raise_given_up(self) -> None:
        for keeper in self._keepers:
            if keeper.done():
                keeper.result()

    async def _stop(self) -> None:
        running = [service.child for service in self._services if service.child is not None]
        await asyncio.gather(*(child.stop(self._patience.grace) for child in running))


class _Service:
    """One service over all its processes."""

    def __init__(self, spec: ServiceSpec, log_dir: Path, patience: Patience) -> None:
        self.spec = spec
        self.port = 0
        self.restarts = 0
        self.child: Child | None = None
        self._log = log_dir / f"{spec.called}.log"
        self._patience = patience
        self._crashes: deque[float] = deque(maxlen=patience.crashes)

    async def open(self) -> None:
        """As ``start``, but a process that is killed before it serves is started again.

        One that ends by itself, for want of a model or a port, would do so again.

        Raises:
            LaunchError: It ended, was killed ``Patience.crashes`` times, or did not serve in time.
        """
        for _ in range(self._patience.crashes - 1):
            try:
                return await self.start()
            except LaunchError:
                if self.child is None or self.child.killed_by is None:
                    raise
                await self._back_off(self.child)
        return await self.start()

    async def start(self) -> None:
        """Start a process and return when it serves.

        Raises:
            LaunchError: It ended, or did not serve in time.
        """
        with tempfile.TemporaryDirectory(prefix="solon-") as directory:
            ready_file = Path(directory) / "ready.json"
            self.child = await Child.start(
                self.spec.called,
                self.spec.arguments(port=self.port, ready_file=ready_file),
                log=self._log,
                threads=self.spec.threads,
            )
            self.port = await self._port_of(self.child, ready_file)

    async def keep(self) -> None:
        """Start the service again whenever it ends. Returns never.

        Raises:
            LaunchError: It crashed too often.
        """
        while True:
            assert self.child is not None, "kept before it was started"
            await self.child.process.wait()
            await self._back_off(self.child)
            try:
                await self.start()
            except LaunchError:
                # a failed start is one more crash: counted, and given up on, by the next turn
                await self.child.stop(0)

    async def _back_off(self, child: Child) -> None:
        """Count a crash, and the restart that is due after the wait."""
        now = time.monotonic()
        self._crashes.append(now)
        recent = [crash for crash in self._crashes if now - crash <= self._patience.window]
        if len(recent) == self._patience.crashes:
            raise LaunchError(
                f"the {self.spec.called} service ended {len(recent)} times within "
                f"{self._patience.window:g} s, the last time with: {child.last_error()} "
                f"(log: {self._log})",
                user_error=child.process.returncode == USER_ERROR,
            )
        await asyncio.sleep(self._patience.first_backoff * 2.0 ** (len(recent) - 1))
        self.restarts += 1

    async def _port_of(self, child: Child, ready_file: Path) -> int:
        """The port on which the process serves, as soon as it does."""
        deadline = time.monotonic() + self._patience.start
        while (port := _read_port(ready_file)) is None:
            if not child.running:
                raise LaunchError(
                    f"the {self.spec.called} service did not start ({child.ending()}): "
                    f"{child.last_error()} (log: {self._log})",
                    user_error=child.process.returncode == USER_ERROR,
                )
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"the {self.spec.called} service does not serve {self._patience.start:g} s "
                    f"after its start; the last it said: {child.last_error()} (log: {self._log})"
                )
            await asyncio.sleep(_POLL_SECONDS)
        return port


def _read_port(ready_file: Path) -> int | None:
    """The port in a ready file, which appears whole; None while there is none."""
    return int(json.loads(ready_file.read_text())["port"]) if ready_file.exists() else None


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel the tasks and wait for their ends; their errors were or will be told elsewhere."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
