"""How many calls a client has in flight: as many as the servers take, the others wait in turn.

Without a bound until a server pushes back: its queue is full, or so long that a call's deadline
would pass in it. Then the bound falls to what the servers still hold, and grows again with every
answer: at once by one until it meets another refusal, from there by one for as many answers as it
is large (additive increase, multiplicative decrease, as in RFC 5681). Of a service that does not
answer at all one call asks while the others wait, so that no storm of retries meets it when it
comes back. Where late is better than never, a deadline that passed among other calls counts as a
refusal, too; one that passed with no other call in flight is an answer: it cannot be done in time.
Knows nothing of gRPC.
"""

from __future__ import annotations

import asyncio
import copy
import heapq
import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from solon.client.errors import (
    DeadlineExceeded,
    DeadlineInQueue,
    Overloaded,
    SolonError,
    Unavailable,
)

FULL = (Overloaded, DeadlineInQueue)
"""Errors of which fewer calls in flight are the cure."""

_DECREASE = 0.9
"""Of what the servers held when they refused more: leaves room for other clients to grow."""


@dataclass(slots=True)
class Turn:
    """One call's time in flight."""

    answered: int
    """Calls that were answered before it."""
    begun: int
    """Calls that had had a turn when it began, itself included."""
    alone: bool
    """Whether no other call was in flight then."""
    late: bool = False
    """Whether its deadline passed, and might not have without the others."""


class Line:
    """The calls of one client, those in flight and those that wait."""

    def __init__(
        self,
        patience: float,
        *,
        retry_late: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nobody calls yet, and no bound is known.

        Args:
            patience: Seconds without one answer after which those that wait are sent away with
                the last error. 0: no call waits for another.
            retry_late: Whether fewer calls are to be in flight when a deadline passed among others.
            clock: Seconds, never falling.
        """
        self.in_flight = 0
        """Calls that have their turn."""
        self.limit = math.inf
        """Calls that may have it at the same time, >= 1."""
        self.retried = 0
        """Attempts that failed and were followed by another."""
        self.answered_at = -math.inf
        """When the last answer came, by the clock."""
        self._patience = patience
        self._retry_late = retry_late and patience > 0
        self._clock = clock
        self._steep_until = math.inf
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._tickets = itertools.count()
        self._failing_since: float | None = None
        self._answers = 0
        self._begun = 0

    @property
    def waiting(self) -> int:
        """Calls that wait for their turn."""
        return sum(not future.done() for _, future in self._waiting)

    def ticket(self) -> int:
        """A place behind all that have one; a call that is tried again keeps its own."""
        return next(self._tickets)

    async def enter(self, ticket: int) -> None:
        """Wait for a turn, which the next ``turn`` block has.

        Raises:
            SolonError: Nobody was answered for the length of the patience: the last error.
        """
        # then nobody waits: whoever leaves lets in as many as there is room for
        if self.in_flight < self.limit:
            self._begin()
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (ticket, future))
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                # the turn came at the moment in which the caller left
                self._leave()
            raise

    @contextmanager
    def turn(self) -> Iterator[Turn]:
        """The turn that ``enter`` waited for; learns from how the block ends."""
        turn = Turn(answered=self._answers, begun=self._begun, alone=self.in_flight == 1)
        try:
            yield turn
        except SolonError as error:
            turn.late = self._is_late(error, turn)
            self._failed(error, turn)
            raise
        except BaseException:
            self._leave()
            raise
        self._answered()

    def _begin(self) -> None:
        self.in_flight += 1
        self._begun += 1

    def _leave(self) -> None:
        self.in_flight -= 1
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting and self.in_flight < self.limit:
            _, future = heapq.heappop(self._waiting)
            if not future.done():
                self._begin()
                future.set_result(None)

    def _answered(self) -> None:
        self._failing_since = None
        self.answered_at = self._clock()
        self._answers += 1
        # a bound that nobody meets says nothing of what the servers would take
        if self._waiting or self.in_flight >= self.limit:
            self.limit += 1 if self.limit < self._steep_until else 1 / self.limit
        self._leave()

    def _is_late(self, error: SolonError, turn: Turn) -> bool:
        alone = turn.alone and self._begun == turn.begun
        passed = isinstance(error, DeadlineExceeded) and not isinstance(error, DeadlineInQueue)
        return self._retry_late and passed and not alone

    def _failed(self, error: SolonError, turn: Turn) -> None:
        self.in_flight -= 1
        if turn.late:
            # by Little's law, what is done in one call's time is what may be in flight: if that is
            # nothing, one call alone will tell whether it can be done at all
            self._fall(self._answers - turn.answered)
        elif self._patience and isinstance(error, (Overloaded, Unavailable, DeadlineExceeded)):
            self._follow(error)
        self._let_in()

    def _follow(self, error: SolonError) -> None:
        if isinstance(error, FULL):
            self._fall(self.in_flight)
        elif isinstance(error, Unavailable):
            self.limit = max(1.0, min(self.limit, self.in_flight))
        now = self._clock()
        if self._failing_since is None:
            self._failing_since = now
        # what is in flight may yet be answered
        if not self.in_flight and now - self._failing_since > self._patience:
            self._send_away(error)

    def _fall(self, held: int) -> None:
        self.limit = self._steep_until = max(1.0, min(self.limit, held * _DECREASE))

    def _send_away(self, error: SolonError) -> None:
        waiting, self._waiting = self._waiting, []
        for _, future in waiting:
            if not future.done():
                theirs = copy.copy(error)
                theirs.request_id = ""
                theirs.add_note("waited behind other calls, none of which was answered")
                future.set_exception(theirs)
