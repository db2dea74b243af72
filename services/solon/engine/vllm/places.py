"""Who may be in vLLM, and who waits before it.

vLLM has a queue of its own, but what is in it can no longer be held back, and an update of the
weights would have to wait for all of it. So only as many sequences are let in as keep it busy.
Knows nothing of vLLM.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from solon.engine.base import EngineError, Load, Overloaded
from solon.engine.pace import Pace, retry_after


@dataclass(slots=True, eq=False)
class _Waiting:
    sequences: int
    tokens: int
    let_in: asyncio.Future[None]


@dataclass(slots=True, eq=False)
class Place:
    """What a call has in vLLM. All its sequences are let in together: no update comes between."""

    waited: float
    """Seconds before it was let in."""
    sequences: int
    """Those that are still there."""


class Places:
    """Places in vLLM, given away in the order in which they were asked for."""

    def __init__(self, *, batch: int, capacity: int, token_capacity: int) -> None:
        """Nobody is there yet.

        Args:
            batch: Sequences that run together. As many again are let in: they take the places of
                those that end without a step in between.
            capacity: Sequences that may wait.
            token_capacity: Tokens, of prompts and longest answers, that may wait.
        """
        self._batch = batch
        self._capacity = capacity
        self._token_capacity = token_capacity
        # those that were given up stay in it until their turn: to look for them would take long
        self._waiting: deque[_Waiting] = deque()
        self._waiting_sequences = 0
        self._waiting_tokens = 0
        self._inside = 0
        self._left = 0
        self._holders = 0
        self._pace = Pace()
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def inside(self) -> int:
        """Sequences in vLLM."""
        return self._inside

    @property
    def queued(self) -> int:
        """Sequences that do not run: here, and in vLLM's own queue."""
        return self._waiting_sequences + max(0, self._inside - self._batch)

    def load(self, *, paused: bool, batches: int, batched_sequences: int) -> Load:
        """How busy it is."""
        return Load(
            queued=self.queued,
            running=min(self._inside, self._batch),
            queue_capacity=self._capacity,
            paused=paused,
            wait=self.wait(paused=paused),
            batches=batches,
            batched_sequences=batched_sequences,
        )

    def admit(self, sequences: int, tokens: int) -> None:
        """Refuse what may not wait. A call that is larger than the queue may if nothing else does.

        Raises:
            Overloaded: Too many wait.
        """
        if queued := self.queued:
            self._check_room("sequences", queued, sequences, self._capacity)
            self._check_room("tokens", self._waiting_tokens, tokens, self._token_capacity)

    @asynccontextmanager
    async def enter(self, sequences: int, tokens: int) -> AsyncIterator[Place]:
        """A place for the sequences of one call, from when they are let in.

        Raises:
            EngineError: It was refused while it waited.
        """
        asked = time.monotonic()
        self.look()
        waiting = _Waiting(sequences, tokens, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._count(sequences, tokens)
        self._let_in()
        try:
            await waiting.let_in
        except asyncio.CancelledError:
            if waiting.let_in.cancelled():
                self._count(-sequences, -tokens)
            elif waiting.let_in.exception() is None:
                self._leave(sequences)
            raise
        place = Place(time.monotonic() - asked, sequences)
        try:
            yield place
        finally:
            self._leave(place.sequences)

    def leave(self, place: Place) -> None:
        """One of the sequences has ended."""
        place.sequences -= 1
        self._leave(1)

    def hold(self) -> None:
        """Let nobody in until ``release`` was called as often."""
        self._holders += 1

    def release(self) -> None:
        """See ``hold``."""
        self._holders -= 1
        self._let_in()

    async def empty(self) -> None:
        """Wait until nothing is in vLLM. With new ones held this comes soon."""
        while self._inside:
            await self._empty.wait()

    def refuse(self, error: EngineError) -> None:
        """End the wait of all that wait with an error."""
        while self._waiting:
            if (waiting := self._next()) is not None:
                waiting.let_in.set_exception(error)

    def look(self, *, paused: bool = False) -> None:
        """Learn how fast sequences leave."""
        self._pace.look(self.queued, self._left, paused=paused or bool(self._holders))

    def wait(self, *, paused: bool = False) -> float:
        """Seconds until all that waits is let in; 0 where that cannot be told yet."""
        self.look(paused=paused)
        return self._pace.wait(self.queued)

    def _let_in(self) -> None:
        while self._waiting and not self._holders and self._inside < 2 * self._batch:
            if (waiting := self._next()) is not None:
                self._inside += waiting.sequences
                self._empty.clear()
                waiting.let_in.set_result(None)

    def _next(self) -> _Waiting | None:
        """Who is next in the queue; None if it has been given up."""
        waiting = self._waiting.popleft()
        if waiting.let_in.done():
            return None
        self._count(-waiting.sequences, -waiting.tokens)
        return waiting

    def _count(self, sequences: int, tokens: int) -> None:
        self._waiting_sequences += sequences
        self._waiting_tokens += tokens

    def _leave(self, sequences: int) -> None:
        self._inside -= sequences
        self._left += sequences
        self.look()
        if not self._inside:
            self._empty.set()
        self._let_in()

    def _check_room(self, what: str, waiting: int, more: int, capacity: int) -> None:
        if waiting + more > capacity:
            raise Overloaded(
                f"{waiting} {what} wait and {more} more were asked for, but at most {capacity} may "
                "wait: try again later",
                retry_after=retry_after(self.wait()),
            )
