"""One training stage as one or several processes of this machine, its progress told by events.

Several processes are the ranks of one training: rank 0 tells how far it is, and all of them end
when one does without its result. They find one another by a file that is this stage's alone, so
that no port is open to anyone else and none can be taken. A worker ends with 0, 2 (the user's
mistake) or 1. Knows nothing of what a stage does.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from solon.trainer.launch.child import RANK_VARIABLES, USER_ERROR, Child
from solon.trainer.launch.errors import StageFailed
from solon.trainer.launch.events import Done, Failure, StageEvent, parse_event
from solon.trainer.steps import Step

_GRACE = 20.0
"""Seconds from SIGTERM to SIGKILL for a stage that is cancelled."""
_SETTLE = 2.0
"""Seconds in which, after one rank has failed, others may turn out to have failed before it."""

OnEvent = Callable[[StageEvent], None]


async def run_stage(
    step: Step,
    run_dir: Path,
    *,
    on_event: OnEvent,
    threads: int | None = None,
    services: Mapping[str, str] | None = None,
    processes: int = 1,
) -> None:
    """Run a training stage to its end. It resumes from its checkpoint by itself.

    Args:
        step: Of the stage ``sft``, ``reward`` or ``rl``.
        run_dir: The run's directory; ``logs/STEP.log`` in it is appended to, and by the ranks
            after the first ``logs/STEP.rankN.log``.
        on_event: Told of every event, in order.
        threads: Compute threads (OMP_NUM_THREADS) of all processes together. None: as this process
            has it, or all cores divided among several.
        services: Name -> address of the services that the stage calls. None: as configured, if
            there are any.
        processes: How many train side by side.

    Raises:
        StageFailed: It ended without its result; ``user_error`` says who can put it right.
    """
    arguments = ["-m", "solon.trainer.stages.worker", step.stage, "--run", str(run_dir)]
    arguments += ["--iteration", str(step.iteration)]
    for name, address in (services or {}).items():
        arguments += ["--service", f"{name}={address}"]
    log = run_dir / "logs" / f"{step.name}.log"
    with tempfile.TemporaryDirectory(prefix="solon-ranks-") as meeting:
        if processes > 1:
            arguments += ["--rendezvous", f"file://{meeting}/store"]
        await run_worker(
            step.name, arguments, log=log, on_event=on_event, threads=threads, processes=processes
        )


async def run_worker(
    name: str,
    arguments: Sequence[str],
    *,
    log: Path,
    on_event: OnEvent,
    threads: int | None = None,
    processes: int = 1,
) -> None:
    """Run ``python arguments...``, which speaks as ``events`` says, to its end.

    Every process of several has the same arguments, and RANK, WORLD_SIZE, LOCAL_RANK and
    LOCAL_WORLD_SIZE as torchrun sets them; only the first one's events are passed on. All are
    stopped if this is cancelled, if ``on_event`` raises or if one of them fails, and die with this
    process.

    Raises:
        StageFailed: One ended without ``done``, or said what the protocol does not know: the one
            that failed first, not those that lost it.
    """
    ranks: list[_Rank] = []
    following: list[asyncio.Task[None]] = []
    try:
        for number in range(processes):
            child = await Child.start(
                name,
                arguments,
                log=log if number == 0 else log.with_suffix(f".rank{number}.log"),
                threads=_share(threads, processes),
                environment=_environment(number, processes),
                pipe_stdout=True,
            )
            ranks.append(_Rank(number, child))
        following = [
            asyncio.create_task(rank.follow(on_event if rank.number == 0 else _unheard))
            for rank in ranks
        ]
        await _ended(ranks, following)
    finally:
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)
        await asyncio.gather(*(rank.child.stop(_GRACE) for rank in ranks))


def _share(threads: int | None, processes: int) -> int | None:
    if processes == 1:
        return threads
    return max(1, (threads or os.cpu_count() or 1) // processes)


def _environment(number: int, processes: int) -> dict[str, str]:
    if processes == 1:
        return {}
    values = (number, processes, number, processes)
    told = {name: str(value) for name, value in zip(RANK_VARIABLES, values, strict=True)}
    # gloo would listen where the machine's name points to
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    return told | loopback


def _unheard(event: StageEvent) -> None:
    """What ranks after the first tell is the same."""


async def _ended(ranks: Sequence[_Rank], following: Collection[asyncio.Task[None]]) -> None:
    """Wait for all to end well, or for the first that does not."""
    left = set(following)
    while left and not any(rank.has_failed for rank in ranks):
        done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    if left:
        await asyncio.wait(left, timeout=_SETTLE)
    failed = [rank for rank in ranks if rank.has_failed]
    if failed:
        raise min(failed, key=_Rank.precedence).error(len(ranks))


@dataclass(slots=True)
class _Rank:
    """One of the processes, and the last that it said."""

    number: int
    child: Child
    last: StageEvent | Failure | None = None
    over: bool = False

    async def follow(self, on_event: OnEvent) -> None:
        """Pass the events on until it has ended."""
        assert self.child.process.stdout is not None, "started without a pipe"
        with self.child.log.open("ab", buffering=0) as chatter:
            while line := await self.child.process.stdout.readline():
                event = parse_event(line)
                if event is None:
                    chatter.write(line)
                    continue
                self.last = event
                if not isinstance(event, Failure):
                    on_event(event)
        await self.child.process.wait()
        self.over = True

    @property
    def has_failed(self) -> bool:
        """Whether it has ended without its result."""
        good = self.child.process.returncode == 0 and isinstance(self.last, Done)
        return self.over and not good

    def precedence(self) -> tuple[int, float]:
        """Smallest for the rank that failed first.

        Whoever raised an error said when. A rank that a signal ended could not; but for SIGABRT,
        by which libraries give up for want of another rank, a signal comes from outside.
        """
        if isinstance(self.last, Failure):
            return 1, self.last.at
        return (2 if self.child.killed_by in (None, signal.SIGABRT) else 0), 0.0

    def error(self, of: int) -> StageFailed:
        """Why it has no result."""
        child, last = self.child, self.last
        name = child.name if of == 1 else f"{child.name}, rank {self.number} of {of}"
        if isinstance(last, Failure):
            return StageFailed(
                f"stage {name}: {last.text} (log: {child.log})", user_error=last.user_error
            )
        missing = "" if isinstance(last, Done) else ", without a result"
        return StageFailed(
            f"stage {name} ended ({child.ending()}){missing}: {child.last_error()} "
            f"(log: {child.log})",
            user_error=child.process.returncode == USER_ERROR,
        )
