"""How fast an engine's sequences leave, and so how long one that comes now would wait.

Measured only while something waits: an idle engine's rate says nothing of how fast it could be.
Averaged over many sequences, for they leave in bursts: a batch of long answers may take a minute in
which none leaves, and then end together. Knows nothing of what sequences are.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_SHORTEST = 1.0
"""Seconds of work from which a rate is taken, at the least."""
_SECONDS, _SEQUENCES = 10.0, 100
"""What came before the last of so many of both is half forgotten."""
_SHORTEST_RETRY, _LONGEST_RETRY = 0.1, 30.0


class Pace:
    """Must be looked at before a sequence joins the queue; more looks only make it more exact."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing is known yet."""
        self._clock = clock
        self._seen = clock()
        self._finished = 0
        self._pending = 0.0
        """Seconds of work since a sequence left."""
        self._busy = 0.0
        """Seconds of work until one left, old ones weighing less."""
        self._left = 0.0
        """Sequences that left in them."""

    def look(self, queued: int, finished: int, *, paused: bool = False) -> None:
        """Learn from the time since the last look.

        Args:
            queued: Sequences that wait now.
            finished: Sequences that have left the model since the start.
            paused: Whether none may leave: time that says nothing.
        """
        now = self._clock()
        # between two looks the queue only gets shorter: if any wait now, some did all the time
        if queued and not paused:
            self._pending += now - self._seen
            if left := finished - self._finished:
                self._learn(left)
        self._seen, self._finished = now, finished

    def _learn(self, left: int) -> None:
        self._busy, self._pending = self._busy + self._pending, 0.0
        self._left += left
        if self._busy > _SECONDS and self._left > _SEQUENCES:
            self._busy, self._left = self._busy / 2, self._left / 2

    def wait(self, queued: int) -> float:
        """Seconds until so many that wait have left the queue; 0 where that cannot be told yet."""
        return queued * self._busy / self._left if self._busy >= _SHORTEST else 0.0


def retry_after(wait: float) -> float:
    """Seconds until it makes sense to come again, where all that waits has left after ``wait``.

    By then half of it has; between 0.1 and 30, and 1 where the wait is not known.
    """
    return bounded(wait / 2) if wait else 1.0


def bounded(seconds: float) -> float:
    """A time after which to come again, between 0.1 and 30."""
    return min(_LONGEST_RETRY, max(_SHORTEST_RETRY, seconds))
