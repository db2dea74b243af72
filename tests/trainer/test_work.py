"""Many records at a time: bounded, written in parts, nothing lost when something fails."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from solon.trainer.errors import StageFailed, StoreError
from solon.trainer.stages.settings import StoreConfig
from solon.trainer.stages.work import Crowd, Share, make_records
from solon.trainer.store import Parts, RunDirectory

SCHEMA = pa.schema([("id", pa.string())])


def parts_in(tmp_path: Path) -> Parts:
    return RunDirectory(str(tmp_path)).parts("records", SCHEMA)


async def make_all(
    parts: Parts, count: int, make: Any, *, in_flight: int | None = 8, part_records: int = 10
) -> None:
    await make_records(
        range(count),
        make,
        parts=parts,
        in_flight=in_flight,
        store=StoreConfig(part_records=part_records, part_seconds=1e9),
        on_record=lambda _: None,
    )


async def test_no_more_than_allowed_are_worked_on_at_once(tmp_path: Path) -> None:
    running = most = 0

    async def make(item: int) -> dict[str, str]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return {"id": str(item)}

    await make_all(parts_in(tmp_path), 50, make, in_flight=7)
    assert most == 7
    assert len(parts_in(tmp_path).ids()) == 50
    assert len(list((tmp_path / "records").iterdir())) >= 5


async def test_more_are_worked_on_for_as_long_as_calls_do_not_wait(tmp_path: Path) -> None:
    replicas, running, most = 300, 0, 0

    async def make(item: int) -> dict[str, Any]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        queue = max(0, most - replicas) / replicas
        await asyncio.sleep(0)
        running -= 1
        return {"id": str(item), "timing": {"queue": queue, "inference": 1.0}}

    timing = pa.struct([("queue", pa.float64()), ("inference", pa.float64())])
    parts = RunDirectory(str(tmp_path)).parts("records", pa.schema([*SCHEMA, ("timing", timing)]))
    await make_all(parts, 5_000, make, in_flight=None, part_records=5_000)
    assert most == 512
    assert len(parts.ids()) == 5_000


def test_a_number_in_flight_that_was_asked_for_stays() -> None:
    crowd = Crowd(3)
    for _ in range(10):
        crowd.learn(0.0, 1.0)
    assert crowd.limit == 3


async def test_when_one_record_fails_the_finished_ones_are_written(tmp_path: Path) -> None:
    async def make(item: int) -> dict[str, str]:
        if item == 25:
            raise RuntimeError("the service is gone")
        return {"id": str(item)}

    with pytest.raises(RuntimeError, match="the service is gone"):
        await make_all(parts_in(tmp_path), 50, make, in_flight=1, part_records=1000)
    assert set(parts_in(tmp_path).ids()) == {str(n) for n in range(25)}


async def test_when_the_stage_is_cancelled_the_finished_ones_are_written(tmp_path: Path) -> None:
    blocked = asyncio.Event()

    async def make(item: int) -> dict[str, str]:
        if item == 9:
            blocked.set()
            await asyncio.Event().wait()
        return {"id": str(item)}

    task = asyncio.create_task(make_all(parts_in(tmp_path), 10, make, in_flight=1))
    await blocked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert set(parts_in(tmp_path).ids()) == {str(n) for n in range(9)}


async def test_a_part_that_cannot_be_written_ends_the_stage(tmp_path: Path) -> None:
    (tmp_path / "records").write_text("a file where a folder should be")

    async def make(item: int) -> dict[str, str]:
        return {"id": str(item)}

    with pytest.raises(StoreError, match="could not be written"):
        await make_all(parts_in(tmp_path), 100, make)


def test_a_share_fails_as_soon_as_nothing_can_save_it_and_not_before() -> None:
    share = Share(what="pairs", key="preferences.limit", limit=0.1, total=50)
    share.add(["made", "empty", "empty", "truncated", "empty", "empty"])
    with pytest.raises(StageFailed, match=r"pairs: 5 empty, 1 truncated out of 50.*limit = 0\.1"):
        share.add(["empty", "made"])


def test_nothing_bad_passes_even_a_limit_of_zero() -> None:
    share = Share(what="pairs", key="k", limit=0.0, total=2)
    share.add(["made", "made"])
    assert share.counts == {"made": 2}
