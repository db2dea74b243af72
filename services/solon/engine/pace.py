"""How fast an engine's sequences leave, and so how long one that comes now would wait.

Measured only while something waits: an idle engine's rate says nothing of how fast it could be.
Knows nothing of what sequences are.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_WINDOW = 1.0
"""Seconds over which a rate is taken."""
_LONGEST = 5.0
"""A longer time between two looks may have been idle: no rate is taken from it."""
_SHORTEST_RETRY, _LONGEST_RETRY = 0.1, 30.0


class Pace:
    """Looked at with every request that comes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing is known yet."""
        self._clock = clock
        self._since: float | None = None
        self._finished = 0
        self._rate = 0.0

    def wait(self, queued: int, finished: int) -> float:
        """Seconds until what waits has left the queue; 0 where that cannot be told yet.

        Args:
            queued: Sequences that wait now.
            finished: Sequences that have left the model since the start.
        """
        self._look(queued, finished)
        return queued / self._rate if self._rate > 0 else 0.0

    def retry_after(self, queued: int, finished: int) -> float:
        """Seconds in which half of the queue has gone, between 0.1 and 30; 1 if unknown."""
        return retry_after(self.wait(queued, finished))

    def _look(self, queued: int, finished: int) -> None:
        now = self._clock()
        if self._since is not None:
            elapsed = now - self._since
            if queued and elapsed < _WINDOW:
                return
            if queued and elapsed <= _LONGEST:
                self._rate = (finished - self._finished) / elapsed
        self._since = now if queued else None
        self._finished = finished


def retry_after(wait: float) -> float:
    """Seconds until it makes sense to come again, where all that waits has left after ``wait``."""
    return min(_LONGEST_RETRY, max(_SHORTEST_RETRY, wait / 2)) if wait else 1.0
