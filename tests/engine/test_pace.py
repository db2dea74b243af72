"""How long a sequence would wait, from how fast others leave."""

from __future__ import annotations

from solon.engine.pace import Pace
from tests.clock import Clock


def test_the_wait_is_the_queue_over_the_rate_at_which_sequences_leave() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert pace.wait(100, 0) == 0
    assert pace.retry_after(100, 0) == 1
    clock.now = 2.0
    assert pace.wait(100, 40) == 100 / 20
    assert pace.retry_after(100, 40) == 2.5
    assert pace.retry_after(10_000, 40) == 30
    assert pace.retry_after(1, 40) == 0.1


def test_an_empty_queue_has_no_wait() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.wait(100, 0)
    clock.now = 2.0
    assert pace.wait(0, 40) == 0


def test_idle_time_does_not_count_as_slowness() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.wait(100, 0)
    clock.now = 2.0
    assert pace.wait(100, 40) == 5
    for idle in (600.0, 10_000.0):
        clock.now += idle
        assert pace.wait(100, 60) == 5
        clock.now += 0.5
        assert pace.wait(0, 80) == 0


def test_a_new_rate_replaces_the_old_one() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.wait(10, 0)
    clock.now = 1.0
    assert pace.wait(10, 10) == 1
    clock.now = 2.0
    assert pace.wait(10, 11) == 10
