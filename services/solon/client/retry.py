"""When to try a call again, and after how long.

Exponential backoff with full jitter between bounds, never sooner than the server asked for
(google.rpc.RetryInfo), within a total time. A call that fails only because too much is in flight
uses up none of it while others are answered: its turn will come. Safe because every call of Solon's
contract may be repeated: generation is seeded, judgement has no effect. Knows nothing of gRPC.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from solon.client.errors import SolonError, Unavailable
from solon.client.line import FULL, Line, Turn

Result = TypeVar("Result")

RETRYABLE = (*FULL, Unavailable)
"""Errors after which the same call may succeed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """How patiently a client tries again."""

    retry_for: float = 60.0
    """Seconds after a call's first failure within which another attempt may start; 0 is never.
    Longer than a service takes to restart, and a restart goes unnoticed. Where more is in flight
    than the servers can do, the seconds begin anew with every other call that is answered."""
    first_delay: float = 0.1
    """Upper bound of the first pause, seconds."""
    longest_delay: float = 2.0
    """Upper bound of any pause that the server did not ask for, seconds."""

    def delay(self, failures: int, retry_after: float | None) -> float:
        """Seconds to wait after the given number (>= 1) of failures.

        Drawn from the upper half of the exponential bound: clients that failed together do not
        come back together, yet none at once. After ``retry_after``, up to a quarter later.
        """
        exponent = min(failures - 1, 30)  # 2.0**30 is above any bound; a larger one may overflow
        bound = min(self.longest_delay, self.first_delay * 2.0**exponent)
        pause = random.uniform(bound / 2, bound)
        if retry_after is None:
            return pause
        return max(pause, retry_after * random.uniform(1.0, 1.25))


class Retries:
    """The retries of one call: counts failures and waits between attempts."""

    def __init__(
        self,
        policy: RetryPolicy,
        line: Line,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing has failed yet.

        The time starts with the first failure, not here, and stands still while the call waits in
        the line: it may wait long for its turn at a service that is busy.

        Args:
            policy: How patient to be.
            line: Where every attempt waits for its turn.
            clock: Seconds, never falling.
        """
        self._policy = policy
        self._line = line
        self._ticket = line.ticket()
        self._clock = clock
        self._failed_since: float | None = None
        self._failures = 0
        self._turn: Turn | None = None

    async def turn(self) -> None:
        """Return when the next attempt may start, as far as other calls are concerned.

        Raises:
            SolonError: As ``Line.enter``.
        """
        came = self._clock()
        await self._line.enter(self._ticket)
        if self._failed_since is not None:
            self._failed_since += self._clock() - came

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """What an attempt runs in, after ``turn``."""
        with self._line.turn() as self._turn:
            yield

    def forget(self) -> None:
        """The call got somewhere: what failed before is over."""
        self._failed_since = None
        self._failures = 0

    async def wait_after(self, error: SolonError) -> None:
        """Return when the next attempt may start.

        Raises:
            SolonError: ``error`` itself, if it is not worth a retry or the time is used up.
        """
        late = self._turn is not None and self._turn.late
        if not (late or isinstance(error, RETRYABLE)):
            raise error
        self._failures += 1
        pause = self._policy.delay(self._failures, error.retry_after)
        if late:
            # nothing is lost: in the end it is alone in flight, and late no more or for good
            self._failed_since = None
        else:
            self._give_up_if_in_vain(error, pause)
        self._line.retried += 1
        await asyncio.sleep(pause)

    def _give_up_if_in_vain(self, error: SolonError, pause: float) -> None:
        now = self._clock()
        if self._failed_since is None:
            self._failed_since = now
        elapsed = in_vain = now - self._failed_since
        if isinstance(error, FULL):
            # while others are answered, its turn will come
            in_vain = min(elapsed, now - self._line.answered_at)
        if in_vain + pause > self._policy.retry_for:
            error.add_note(f"gave up after {self._failures} attempts in {elapsed:.1f} s")
            raise error


async def with_retries(
    attempt: Callable[[], Awaitable[Result]], policy: RetryPolicy, line: Line
) -> Result:
    """The result of the first attempt that succeeds.

    Raises:
        SolonError: The last attempt's, once the policy's time is used up, or the first that is
            not worth a retry, or the line's.
    """
    retries = Retries(policy, line)
    while True:
        await retries.turn()
        try:
            with retries.attempt():
                return await attempt()
        except SolonError as error:
            await retries.wait_after(error)
