"""Many records at a time: bounded concurrency, parts written while the services work on.

Knows nothing of what a record is, but for how long its calls took.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from itertools import islice
from typing import TypeVar

from solon import tracing
from solon.trainer.errors import StageFailed
from solon.trainer.stages import rows
from solon.trainer.stages.preference_settings import PanelConfig
from solon.trainer.stages.settings import StoreConfig
from solon.trainer.store import Parts, Record

Item = TypeVar("Item")

_GOOD = "made"
AT_FIRST = 128
"""Items worked on at the same time, where nobody said how many."""
_MOST = 8192
"""Items at the same time, however many the services can use: each takes some 50 KB."""
_HARDLY = 0.25
"""Share of a call's time in a queue below which there is room: calls wait a little for a batch."""
_FIRST_PART_SECONDS = 1.0
"""After which the first part is written, so that there is something to look at; each that follows
may take twice as long, up to what the configuration says."""


class Crowd:
    """How many items are worked on at the same time.

    As many as the services can use: it doubles for as long as calls hardly wait in their queues,
    since then there are replicas, or places in a batch, that nobody uses. It never shrinks: what
    is too much for a while waits there, and what they refuse the client holds back (see
    ``solon.client.line``).
    """

    def __init__(self, fixed: int | None) -> None:
        """Begin.

        Args:
            fixed: This many, whatever becomes of them. None: as many as the services can use.
        """
        self.limit = fixed or AT_FIRST
        """Items."""
        self._grows = fixed is None
        self._answered = 0
        self._queued = self._worked = 0.0

    def learn(self, queued: float, worked: float) -> None:
        """One item is done, whose calls waited in queues and were worked on for so many seconds."""
        self._answered += 1
        if self._answered <= self.limit:
            # it may have begun when there were fewer
            return
        self._queued += queued
        self._worked += worked
        if not self._grows or self._answered < 2 * self.limit:
            return
        if self._queued < _HARDLY * (self._queued + self._worked):
            self.limit = min(2 * self.limit, _MOST)
        self._answered, self._queued, self._worked = 0, 0.0, 0.0


async def make_records(
    items: Iterable[Item],
    make: Callable[[Item], Awaitable[Record]],
    *,
    parts: Parts,
    in_flight: int | None,
    store: StoreConfig,
    on_record: Callable[[Record], None],
) -> None:
    """Make a record of every item and write all of them.

    If making one fails, or this is cancelled, the others that are ready are still written.

    Args:
        items: What to make records of.
        make: Makes one.
        parts: Where they go.
        in_flight: Items worked on at the same time. None: as many as the services can use.
        store: How often a part is written.
        on_record: Told of every record after it was handed to be written.
    """
    writer = _Writer(parts, store)
    crowd = Crowd(in_flight)

    async def work(item: Item) -> None:
        with tracing.span("record") as span:
            record = await make(item)
            span.set_attribute("solon.record_id", record["id"])
        crowd.learn(*rows.seconds(record))
        await writer.add(record)
        on_record(record)

    try:
        await work_through(items, work, crowd)
    finally:
        await writer.close()


async def work_through(
    items: Iterable[Item], work: Callable[[Item], Awaitable[None]], crowd: Crowd
) -> None:
    """Work on every item, on so many at the same time. The first failure cancels the others.

    No more items are taken than are worked on.
    """
    left = iter(items)
    workers = 0

    async def worker(first: Item) -> None:
        await work(first)
        # one iterator for all workers: each takes the next item when it is free
        for item in left:
            hire()
            await work(item)

    def hire() -> None:
        nonlocal workers
        for first in islice(left, crowd.limit - workers):
            workers += 1
            group.create_task(worker(first))

    try:
        async with asyncio.TaskGroup() as group:
            hire()
    except BaseExceptionGroup as failed:
        # the others were cancelled for it
        raise failed.exceptions[0] from None


class _Writer:
    """Collects records and writes them in a thread, one part at a time."""

    def __init__(self, parts: Parts, store: StoreConfig) -> None:
        self._parts = parts
        self._store = store
        self._ready: list[Record] = []
        self._patience = min(_FIRST_PART_SECONDS, store.part_seconds)
        self._since = time.monotonic()
        self._writing: asyncio.Future[None] | None = None
        self._turn = asyncio.Lock()

    async def add(self, record: Record) -> None:
        """Take a record; wait only if a part is due and the one before is still being written."""
        self._ready.append(record)
        waited = time.monotonic() - self._since
        if len(self._ready) >= self._store.part_records or waited >= self._patience:
            self._patience = min(2 * self._patience, self._store.part_seconds)
            await self._flush()

    async def close(self) -> None:
        """Write what is left. After a failure to write, leave it: it is not done."""
        if self._writing is None or not self._failed(self._writing):
            await self._flush()

    async def _flush(self) -> None:
        async with self._turn:
            if self._writing is not None:
                # a worker that was cancelled left the thread writing
                await self._writing
            self._since = time.monotonic()
            records, self._ready = self._ready, []
            if records:
                self._writing = asyncio.ensure_future(
                    asyncio.to_thread(self._parts.append, records)
                )
                await asyncio.shield(self._writing)

    @staticmethod
    def _failed(writing: asyncio.Future[None]) -> bool:
        return writing.done() and not writing.cancelled() and writing.exception() is not None


class Share:
    """Holds that no more than a share of all cases is bad, and fails as soon as it is certain."""

    def __init__(self, *, what: str, key: str, limit: float, total: int) -> None:
        """Count from zero.

        Args:
            what: What the cases are, in words.
            key: The configuration key of the limit.
            limit: Largest share of bad cases, 0 to 1.
            total: How many cases there will be.
        """
        self._what = what
        self._key = key
        self._limit = limit
        self._total = total
        self.counts: Counter[str] = Counter()
        """Outcome -> cases so far."""

    @property
    def bad(self) -> dict[str, int]:
        """Outcome -> cases so far, without those that are good."""
        return {name: n for name, n in sorted(self.counts.items()) if name != _GOOD and n}

    def end(self) -> None:
        """No more cases come: hold the limit to those that there were, perhaps fewer than thought.

        Raises:
            StageFailed: The share is above it.
        """
        self._total = self.counts.total()
        self.add(())

    def add(self, outcomes: Iterable[str]) -> None:
        """Count cases; all but ``made`` are bad.

        Raises:
            StageFailed: Even if all that follow are good, the share is above the limit.
        """
        self.counts.update(outcomes)
        bad = self.bad
        if sum(bad.values()) > self._limit * self._total:
            listed = ", ".join(f"{n} {name}" for name, n in bad.items())
            raise StageFailed(
                f"{self._what}: {listed} out of {self._total}, which is more than {self._key} = "
                f"{self._limit!r} allows. Look at the records and at max_tokens, use a better "
                "model, or raise the limit and run again with --resume"
            )


def shares_of_judges(config: PanelConfig, what: str, total: int) -> dict[str, Share]:
    """Judge of the panel -> its calls, of which too many failed ones end the stage.

    Args:
        config: The panel's, with the limit.
        what: What a failed call is, in words, with ``{}`` for the judge.
        total: How many calls each will get.
    """
    return {
        name: Share(
            what=what.format(f"the judge {name!r}"),
            key="preferences.panel.max_failed_share",
            limit=config.max_failed_share,
            total=total,
        )
        for name in config.judges
    }
