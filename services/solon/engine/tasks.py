"""Awaiting several things at once. Knows nothing of what they are."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import TypeVar

T = TypeVar("T")


async def concurrently(calls: Sequence[Awaitable[T]]) -> list[T]:
    """Await all at once. The first failure cancels the rest and is raised as it is."""
    if len(calls) == 1:
        # most requests make one call: a task of its own would be work for nothing
        return [await calls[0]]
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        # what was cancelled must have let go of its place in the batch before the error is told
        await asyncio.gather(*tasks, return_exceptions=True)
