"""Admission, concurrency and pausing of an engine that has no queue of its own, on one event loop.

Knows nothing of text.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from solon import tracing
from solon.engine.base import EngineFailed, Load, Overloaded, Paused, PauseMode
from solon.engine.pace import Pace, retry_after

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A request's place in the gate."""

    queued: float
    """Seconds that it waited."""
    left: asyncio.Future[None]
    """Done once the request has left."""


class Aborted(Exception):
    """The request was ended by ``PauseMode.ABORT``."""


class Gate:
    """Counts what waits and runs; holds, refuses or aborts it when paused."""

    def __init__(self, kind: str, *, concurrency: int, capacity: int, token_capacity: int) -> None:
        """Nothing waits yet.

        Args:
            kind: What ``tracing.batch`` calls the work of one request.
            concurrency: Most that run at once, 0 for no limit.
            capacity: Most that wait.
            token_capacity: Most tokens that wait, unless nothing else does.
        """
        self._kind = kind
        self._slots = asyncio.Semaphore(concurrency) if concurrency else None
        self._capacity = capacity
        self._token_capacity = token_capacity
        self._queued_tokens = 0
        self._queued = 0
        self._running: set[Place] = set()
        self._aborted = 0
        self._mode: PauseMode | None = None
        self._open = asyncio.Event()
        self._open.set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._abort = False
        self._finished = 0
        self._pace = Pace()
        self._sleepers: set[asyncio.Future[None]] = set()
        self._closed = False

    def load(self) -> Load:
        """How busy it is."""
        return Load(
            queued=self._queued,
            running=len(self._running),
            queue_capacity=self._capacity,
            paused=self._mode is not None,
            wait=self._wait(),
            batches=self._finished,
            batched_sequences=self._finished,
        )

    def admit(self, sequences: int, tokens: int) -> None:
        """Refuse what may not wait. A call that is larger than the queue may if nothing else does.

        ``tokens``: of the prompts and of the longest answers.

        Raises:
            EngineFailed: The engine is closed.
            Paused: Paused, and not to hold requests.
            Overloaded: Too many wait.
        """
        if self._closed:
            raise EngineFailed("the engine is closed")
        if self._mode in (PauseMode.ABORT, PauseMode.WAIT):
            raise Paused("generation is paused: try again after it is resumed")
        if self._queued:
            self._check_room("sequences", self._queued, sequences, self._capacity)
            self._check_room("tokens", self._queued_tokens, tokens, self._token_capacity)

    @asynccontextmanager
    async def enter(self, tokens: int) -> AsyncIterator[Place]:
        """Wait for a place and hold it, for one sequence that was admitted.

        ``tokens``: of the prompt and of the longest answer.

        Raises:
            EngineFailed: The engine was closed.
            Aborted: Paused with ``ABORT`` while waiting.
        """
        loop = asyncio.get_running_loop()
        entered = loop.time()
        self._look()
        self._queued += 1
        self._queued_tokens += tokens
        self._idle.clear()
        try:
            await self._acquire()
        except BaseException as error:
            self._aborted += isinstance(error, Aborted)
            self._unqueue(tokens)
            self._settle()
            raise
        # on its way from the queue to its place it is in one of them: never is the gate idle
        self._unqueue(tokens)
        place = Place(loop.time() - entered, loop.create_future())
        self._running.add(place)
        try:
            # each call runs by itself: a batch of one
            with tracing.batch(self._kind, [tracing.current()], sequences=1):
                yield place
        except Aborted:
            self._aborted += 1
            raise
        finally:
            self._running.discard(place)
            self._finished += 1
            self._look()
            _ring(place.left)
            if self._slots is not None:
                self._slots.release()
            self._settle()

    async def spend(self, seconds: float) -> None:
        """Let time pass for a request that runs, and hold it while paused with ``KEEP``.

        Raises:
            Aborted: Paused with ``ABORT``.
            EngineFailed: The engine was closed.
        """
        if seconds > 0 and not self._abort:
            await self._sleep(seconds)
        if not self._open.is_set():
            await self._open.wait()
        self._check_abort()

    async def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """What comes of the work of a request that runs, held while paused with ``KEEP``.

        Raises:
            Aborted: Paused with ``ABORT``; the work was cancelled.
            EngineFailed: The engine was closed; likewise.
        """
        task = asyncio.ensure_future(work)
        sleeper: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.add(sleeper)
        try:
            if not self._abort:
                either: set[asyncio.Future[Any]] = {task, sleeper}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                self._check_abort()
            if not self._open.is_set():
                await self._open.wait()
            return task.result()
        finally:
            self._sleepers.discard(sleeper)
            if not task.done():
                task.cancel()
                # what it holds, such as a connection, is let go of before the place is
                await asyncio.wait({task})

    async def pause(self, mode: PauseMode) -> int:
        """Stop; returns when nothing runs, with the number of aborted requests."""
        self._mode = mode
        self._aborted = 0
        if mode is PauseMode.KEEP:
            self._open.clear()
            return 0
        self._open.set()
        if mode is PauseMode.ABORT:
            self._wake()
        await self._idle.wait()
        return self._aborted

    def resume(self) -> None:
        """Go on."""
        self._look()
        self._mode = None
        self._abort = False
        self._open.set()

    async def drained(self) -> None:
        """Wait until all that runs at this moment has left."""
        await asyncio.gather(*(place.left for place in self._running))

    async def close(self) -> None:
        """End everything that waits or runs with ``EngineFailed``."""
        self._closed = True
        self._wake()
        self._open.set()
        await self._idle.wait()

    def _look(self) -> None:
        self._pace.look(self._queued, self._finished, paused=self._mode is not None)

    def _wait(self) -> float:
        """Seconds until all that waits has left the queue."""
        self._look()
        return self._pace.wait(self._queued)

    async def _acquire(self) -> None:
        await self._open.wait()
        if self._slots is not None:
            await self._slots.acquire()
        try:
            await self._open.wait()
            self._check_abort()
        except BaseException:  # a place that was taken is given back, whatever ended the wait
            if self._slots is not None:
                self._slots.release()
            raise

    async def _sleep(self, seconds: float) -> None:
        # not asyncio.Event: it forgets one of n waiters in O(n), and n may be ten thousand
        loop = asyncio.get_running_loop()
        sleeper: asyncio.Future[None] = loop.create_future()
        self._sleepers.add(sleeper)
        alarm = loop.call_later(seconds, _ring, sleeper)
        try:
            await sleeper
        finally:
            alarm.cancel()
            self._sleepers.discard(sleeper)

    def _wake(self) -> None:
        self._abort = True
        for sleeper in self._sleepers:
            _ring(sleeper)

    def _check_room(self, what: str, waiting: int, more: int, capacity: int) -> None:
        if waiting + more > capacity:
            raise Overloaded(
                f"{waiting} {what} wait and {more} more were asked for, but at most {capacity} may "
                "wait: try again later",
                retry_after=retry_after(self._wait()),
            )

    def _check_abort(self) -> None:
        if self._closed:
            raise EngineFailed("the engine was closed")
        if self._abort:
            raise Aborted

    def _unqueue(self, tokens: int) -> None:
        self._queued -= 1
        self._queued_tokens -= tokens

    def _settle(self) -> None:
        if not self._queued and not self._running:
            self._idle.set()


def _ring(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)
