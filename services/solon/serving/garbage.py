"""When a server's process looks for garbage: seldom while calls run, and once many have gone.

Looking through all that thousands of calls hold took an eighth of the server's time. But calls that
are given up leave cycles, 70 objects each, which nothing but a look can free. Knows nothing of
calls but their number.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import NoReturn

_CROWD = 1000
"""Calls in flight that leave enough to be worth a look."""
_LOOK_SECONDS = 1.0


def collect_seldom() -> None:
    """Leave alone for good what is there now, and look less often at what comes."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 5, 5)


async def collect_after_crowds(
    in_flight: Callable[[], int], most: Callable[[], int], *, every: float = _LOOK_SECONDS
) -> NoReturn:
    """Look for garbage whenever a crowd has gone, until cancelled.

    Args:
        in_flight: Calls now.
        most: Most calls there were at once since it was last asked.
        every: Seconds between two questions.
    """
    peak = 0
    while True:
        await asyncio.sleep(every)
        peak = max(peak, most())
        if peak >= _CROWD and in_flight() <= peak // 10:
            gc.collect()
            peak = 0
