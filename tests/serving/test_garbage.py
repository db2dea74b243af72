"""Garbage is looked for when a crowd of calls has gone."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

from solon.serving.garbage import collect_after_crowds, collect_seldom


class Left:
    """What a call that was given up leaves: a cycle."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """Nothing is looked for by chance, and the collector is as it was afterwards."""
    before = gc.get_threshold()
    gc.disable()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)
    gc.enable()


@pytest.mark.parametrize(
    ("most", "now", "freed"), [(5000, 100, True), (5000, 4000, False), (10, 0, False)]
)
async def test_what_a_crowd_leaves_is_freed_once_it_has_gone(
    most: int, now: int, freed: bool
) -> None:
    looked = asyncio.Event()
    peaks = iter([most, 0])

    def asked() -> int:
        peak = next(peaks, None)
        if peak is None:
            looked.set()
        return peak or 0

    left = weakref.ref(Left())
    tidying = asyncio.create_task(collect_after_crowds(lambda: now, asked, every=0))
    await looked.wait()
    tidying.cancel()
    assert (left() is None) is freed


def test_what_is_there_at_the_start_is_left_alone() -> None:
    before = gc.get_freeze_count()
    collect_seldom()
    assert gc.get_freeze_count() > before + 1000
    assert gc.get_threshold()[0] > 10_000
