"""The runs of an ablation, one after the other, on services that stay up between them.

What fails is kept as such and the next is made. Knows nothing of what is measured.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solon.trainer import failures
from solon.trainer.ablation.variants import Variant
from solon.trainer.config import SAVED_NAME
from solon.trainer.console import RunConsole
from solon.trainer.fleet import Fleet, open_fleet
from solon.trainer.launch.local import Role
from solon.trainer.pipeline import Pipeline
from solon.trainer.roster import ROLES, roster
from solon.trainer.session import Session, open_session
from solon.trainer.store import RunDirectory


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why a variant has no result."""

    kind: str
    """The error's class."""
    text: str


class SharedFleet:
    """Services for runs that follow one another: kept while the next run wants the same ones."""

    def __init__(self, log_dir: Path) -> None:
        """Start nothing yet."""
        self._log_dir = log_dir
        self._stack = AsyncExitStack()
        self._wanted: Any = None
        self._fleet: Fleet | None = None

    @asynccontextmanager
    async def __call__(self, session: Session, roles: Collection[Role]) -> AsyncIterator[Fleet]:
        """The services that a run needs; see ``pipeline.FleetOpener``."""
        config = session.config
        wanted = (list(roster(config)), config.services, session.constitution.digest)
        if self._fleet is None or self._wanted != wanted:
            await self.close()
            opened = open_fleet(config, session.constitution, ROLES, log_dir=self._log_dir)
            self._fleet = await self._stack.enter_async_context(opened)
            self._wanted = wanted
        yield self._fleet

    async def close(self) -> None:
        """Stop the services; the next run starts its own."""
        self._fleet = None
        await self._stack.aclose()


async def run_variants(
    variants: Sequence[Variant],
    known: Sequence[Variant],
    console: RunConsole,
    *,
    log_dir: Path,
    on_end: Callable[[Variant, Failure | None], None],
) -> None:
    """Make the runs, or go on with them; each takes over what earlier ones have made already.

    Args:
        variants: In their order.
        known: All of the ablation, also those that are done.
        console: Where they are shown.
        log_dir: Gets the services' logs.
        on_end: Told of each: with why it failed, if it did.
    """
    fleet = SharedFleet(log_dir)
    try:
        for variant in variants:
            console.say(f"--- {variant.name}")
            failure = None
            try:
                await _run(variant, known, console, fleet)
            except failures.EXPECTED as error:
                failure = Failure(kind=type(error).__name__, text=failures.explain(error))
                console.say(f"{variant.name}: failed: {failure.text}")
                # it may have been the services
                await fleet.close()
            on_end(variant, failure)
    finally:
        await fleet.close()


async def _run(
    variant: Variant, known: Sequence[Variant], console: RunConsole, fleet: SharedFleet
) -> None:
    with open_session(variant.config, resume=True) as session:
        sources = [one.run for one in known if one.seed == variant.seed]
        # services that are to make room for training cannot stay up
        fleets = None if variant.config.services.release_for_training else fleet
        pipeline = Pipeline(session, console, sources=_existing(sources), fleets=fleets, quiet=True)
        await pipeline.run(variant.stages)


def _existing(runs: Sequence[RunDirectory]) -> Sequence[RunDirectory]:
    return [run for run in runs if run.storage.exists(SAVED_NAME)]
