"""How long a sequence would wait, from how fast others leave."""

from __future__ import annotations

import pytest

from solon.engine.pace import Pace, retry_after
from tests.clock import Clock


def test_the_wait_is_the_queue_over_the_rate_at_which_sequences_leave() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert pace.wait(100) == 0
    pace.look(100, 0)
    clock.now = 2.0
    pace.look(100, 40)
    assert pace.wait(100) == 100 / 20
    assert pace.wait(0) == 0


def test_a_full_engine_says_come_back_when_half_of_the_queue_has_gone() -> None:
    assert [retry_after(wait) for wait in (0, 0.01, 5, 1000)] == [1, 0.1, 2.5, 30]


def test_idle_and_paused_time_does_not_count_as_slowness() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.look(100, 0)
    clock.now = 2.0
    pace.look(100, 40)
    clock.now = 600.0
    # whoever comes first after a while finds nobody waiting
    pace.look(0, 140)
    clock.now = 1200.0
    pace.look(50, 140, paused=True)
    assert pace.wait(100) == 5
    clock.now = 1202.0
    pace.look(50, 180)
    assert pace.wait(100) == 5


def test_calls_that_come_one_at_a_time_say_nothing_of_how_many_there_could_be() -> None:
    clock = Clock()
    pace = Pace(clock)
    for finished in range(1000):
        pace.look(0, finished)
        clock.now += 30.0
    assert pace.wait(100) == 0


def test_a_slow_engine_whose_batches_end_together_is_neither_fast_nor_unknown() -> None:
    clock = Clock()
    pace = Pace(clock)
    # a batch of 64 takes a minute; somebody looks every 20 ms
    for step in range(3000 * 4):
        pace.look(5000, 64 * (step // 3000))
        clock.now += 0.02
    pace.look(5000, 64 * 4)
    assert pace.wait(5000) == pytest.approx(5000 * 60 / 64, rel=0.02)
    clock.now += 59.0
    pace.look(5000, 64 * 4)
    assert pace.wait(5000) == pytest.approx(5000 * 60 / 64, rel=0.02)


def test_an_engine_that_becomes_slower_is_believed_before_long() -> None:
    clock = Clock()
    pace = Pace(clock)
    finished = 0
    for rate, seconds in ((100, 60), (10, 60)):
        for _ in range(seconds):
            pace.look(1000, finished)
            clock.now += 1.0
            finished += rate
    pace.look(1000, finished)
    assert pace.wait(1000) == pytest.approx(100, rel=0.1)
