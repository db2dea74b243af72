"""How many calls a client has in flight: as many as the servers take, the others wait in turn.

Without a bound until a server pushes back. Then the bound falls to what the servers still hold,
and grows again with every answer: at once by one until it meets another refusal, from there by one
for as many answers as it is large (additive increase, multiplicative decrease, as in RFC 5681). Of
a service that does not answer at all one call asks while the others wait, so that no storm of
retries meets it when it comes back. Knows nothing of gRPC.
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

from solon.client.errors import DeadlineExceeded, Overloaded, SolonError, Unavailable

_DECREASE = 0.9
"""Of what the servers held when they refused more: leaves room for other clients to grow."""


class Line:
    """The calls of one client, those in flight and those that wait."""

    def __init__(self, patience: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Nobody calls yet, and no bound is known.

        Args:
            patience: Seconds without one answer after which those that wait are sent away with
                the last error. 0: no call waits for another.
            clock: Seconds, never falling.
        """
        self.in_flight = 0
        """Calls that have their turn."""
        self.limit = math.inf
        """Calls that may have it at the same time, >= 1."""
        self.retried = 0
        """Attempts that failed and were followed by another."""
        self._patience = patience
        self._clock = clock
        self._steep_until = math.inf
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._tickets = itertools.count()
        self._failing_since: float | None = None

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
            self.in_flight += 1
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
    def turn(self) -> Iterator[None]:
        """The turn that ``enter`` waited for; learns from how the block ends."""
        try:
            yield
        except SolonError as error:
            self._failed(error)
            raise
        except BaseException:
            self._leave()
            raise
        self._answered()

    def _leave(self) -> None:
        self.in_flight -= 1
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting and self.in_flight < self.limit:
            _, future = heapq.heappop(self._waiting)
            if not future.done():
                self.in_flight += 1
                future.set_result(None)

    def _answered(self) -> None:
        self._failing_since = None
        # a bound that nobody meets says nothing of what the servers would take
        if self._waiting or self.in_flight >= self.limit:
            self.limit += 1 if self.limit < self._steep_until else 1 / self.limit
        self._leave()

    def _failed(self, error: SolonError) -> None:
        self.in_flight -= 1
        if self._patience and isinstance(error, (Overloaded, Unavailable, DeadlineExceeded)):
            self._follow(error)
            now = self._clock()
            if self._failing_since is None:
                self._failing_since = now
            # what is in flight may yet be answered
            if not self.in_flight and now - self._failing_since > self._patience:
                self._send_away(error)
        self._let_in()

    def _follow(self, error: SolonError) -> None:
        held = self.in_flight
        if isinstance(error, Overloaded):
            self.limit = self._steep_until = max(1.0, min(self.limit, held * _DECREASE))
        elif isinstance(error, Unavailable):
            self.limit = max(1.0, min(self.limit, held))

    def _send_away(self, error: SolonError) -> None:
        waiting, self._waiting = self._waiting, []
        for _, future in waiting:
            if not future.done():
                theirs = copy.copy(error)
                theirs.request_id = ""
                theirs.add_note("waited behind other calls, none of which was answered")
                future.set_exception(theirs)
