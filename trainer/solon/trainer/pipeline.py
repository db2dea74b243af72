"""The coordinator: which stage runs next, what it needs, what it left.

Data stages talk to the three services; training stages are processes of their own, so that their
memory is gone when they end. Knows nothing of how any stage works, nor of the command line.
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from solon import tracing
from solon.trainer.console import RunConsole, StageProgress
from solon.trainer.course import learns_by, needs, roles, steps_of, together
from solon.trainer.errors import RunDirectoryError
from solon.trainer.fleet import Fleet, Weights, open_fleet
from solon.trainer.forecast.dry_run import summarised
from solon.trainer.launch.local import Done, Note, Progress, Role, StageEvent, run_stage
from solon.trainer.lineage import decided_by, step_key
from solon.trainer.plan import advice, check_inputs, read_prompts
from solon.trainer.prompts import PromptSet
from solon.trainer.reuse import Reuse
from solon.trainer.schemas import RL_PROMPTS_EXPORT
from solon.trainer.session import Session
from solon.trainer.snapshots import snapshot_folders
from solon.trainer.stage_names import Stage
from solon.trainer.stages import evaluate, preferences, preflight, revisions, rows
from solon.trainer.stages.context import StageContext, Summary
from solon.trainer.state import RunState, StageKey
from solon.trainer.steps import Step
from solon.trainer.store import RunDirectory
from solon.trainer.trained import answering, weights_of

FleetOpener = Callable[[Session, Collection[Role]], AbstractAsyncContextManager[Fleet]]
"""Gives a run the services of these roles for as long as the block lasts."""

_DATA_STAGES: Mapping[Stage, Callable[[StageContext], Awaitable[Summary]]] = {
    "preflight": preflight.run,
    "revisions": revisions.run,
    "preferences": preferences.run,
    "evaluate": evaluate.run,
}


class Pipeline:
    """The stages of one run, on an open session."""

    def __init__(
        self,
        session: Session,
        console: RunConsole,
        *,
        sources: Sequence[RunDirectory] = (),
        fleets: FleetOpener | None = None,
        quiet: bool = False,
    ) -> None:
        """Read the run's state.

        Args:
            session: The run.
            console: Where it is shown.
            sources: Runs whose results are taken over where they are what this run would make.
            fleets: Where the services come from. None: they are the run's own.
            quiet: Say what is done; nothing of what will be, nor of the constitution's doubts.

        Raises:
            RunDirectoryError: Another version's state, or a source that is no folder.
        """
        self.session = session
        self._config = session.config
        self._run = session.run
        self._console = console
        self._fleets = fleets or own_fleet
        self._quiet = quiet
        self.state = RunState(session.run)
        self._reuse = Reuse(session, self.state, sources) if sources else None

    async def run(self, stages: Sequence[Stage] | None = None) -> None:
        """Run those of the stages that are not done, in the order of a run.

        With several iterations each of a stage's that can be run: see ``course.steps_of``.

        Args:
            stages: None: all that the configuration has.

        Raises:
            TrainerError: Something the user can put right, or models that are not good enough.
            LaunchError: A service or a training stage did not stay up.
            SolonError: A service failed for longer than the configuration is patient.
        """
        steps = steps_of(self._config, stages, is_done=self._is_done)
        todo = self._todo(steps)
        self._tell_what_waits(steps, stages)
        for step in steps:
            if self._is_done(step) and step not in todo:
                self._console.say(f"{step.name}: done before")
        if not todo:
            return
        prompts = self._prepare(todo)
        with tracing.span("run") as span:
            span.set_attribute("solon.constitution_digest", self.session.constitution.digest)
            async with AsyncExitStack() as services:
                fleet: Fleet | None = None
                sharing: Sequence[Step] = ()
                for number, step in enumerate(todo):
                    key = await self._key(step, prompts)
                    if self._takes(step, key):
                        continue
                    if step not in sharing:
                        await services.aclose()
                        fleet, sharing = None, together(self._config, todo[number:])
                    if roles(self._config, step.stage) and fleet is None:
                        left = [one for one in todo[number:] if one in sharing]
                        fleet = await services.enter_async_context(self._opened(left))
                    await self._run_step(step, prompts, fleet, key)

    def _tell_what_waits(self, steps: Sequence[Step], stages: Sequence[Stage] | None) -> None:
        every = steps_of(self._config, stages, is_done=lambda _: True)
        if waiting := [step for step in every if step not in steps]:
            missing = [one.name for one in needs(self._config, waiting[0]) if one not in steps]
            self._console.say(f"{waiting[0].name}: waits for {', '.join(missing)}")

    def _is_done(self, step: Step) -> bool:
        return self.state.is_done(step.name)

    def _opened(self, steps: Sequence[Step]) -> AbstractAsyncContextManager[Fleet]:
        wanted = frozenset(role for step in steps for role in roles(self._config, step.stage))
        if not self._quiet:
            self._console.say(f"services: {', '.join(sorted(wanted))}")
        return self._fleets(self.session, wanted)

    async def _key(self, step: Step, prompts: Mapping[str, PromptSet]) -> StageKey | None:
        before = {one: self.state.key(one.name) for one in decided_by(self._config, step)}
        # in a thread: it may read large models, while services are kept alive here
        return await asyncio.to_thread(
            step_key, step, self._config, self.session.constitution, prompts, before
        )

    def _takes(self, step: Step, key: StageKey | None) -> bool:
        """Take the step over from a source that has it; whether one had."""
        if self._reuse is None or step.stage in ("preflight", "evaluate"):
            return False
        origin = self._reuse.take(step, key)
        if origin is not None:
            what = "as" if origin.whole else "of the records that"
            self._console.say(
                f"{step.name}: {what} {origin.run} has ({origin.seconds:.1f} s there)"
            )
            return origin.whole
        if self._quiet:
            return False
        for line in self._reuse.why_not(step):
            self._console.say(line)
        return False

    def _todo(self, steps: Sequence[Step]) -> list[Step]:
        todo = [step for step in steps if not self._is_done(step)]
        preflight, evaluate = Step("preflight"), Step("evaluate")
        if preflight in todo and not self._wants_preflight(steps):
            todo.remove(preflight)
        if evaluate in steps and evaluate not in todo:
            measured = self.state.summary("evaluate").get("models")
            # a model that was trained since then has not been measured
            if todo or measured != answering(self._config, self.state):
                todo.append(evaluate)
        return todo

    def _wants_preflight(self, steps: Sequence[Step]) -> bool:
        """Unless it is what was asked for, only before the critic's work has begun."""
        return list(steps) == [Step("preflight")] or not self.state.is_done("revisions")

    def _prepare(self, todo: Sequence[Step]) -> dict[str, PromptSet]:
        """Find out now what would stop the run later."""
        check_inputs(self._config, self.session.constitution)
        for step in todo:
            if step.stage not in ("preflight", "revisions", "evaluate"):
                _ = self._run.local
            needed = needs(self._config, step)
            missing = [n for n in needed if n not in todo and not self._is_done(n)]
            if missing:
                raise RunDirectoryError(
                    f"{self._run.url}: {step.name} needs the stage {missing[0].name}, which is not "
                    f"done; run `solon {missing[0].stage} {self._run.url}` first, or `solon run "
                    f"{self._run.url} --resume` for all of them"
                )
        prompts = read_prompts(self._config, {step.stage for step in todo})
        if self._quiet:
            return prompts
        for line in advice(self.session.constitution) if todo != [Step("evaluate")] else ():
            self._console.say(line)
        for line in summarised(self._config, self.session.constitution, prompts, todo):
            self._console.say(line)
        return prompts

    async def _run_step(
        self,
        step: Step,
        prompts: Mapping[str, PromptSet],
        fleet: Fleet | None,
        key: StageKey | None,
    ) -> None:
        started = time.monotonic()
        try:
            with self._console.stage(step.name) as progress, tracing.span(f"stage {step.name}"):
                if step.stage in _DATA_STAGES:
                    assert fleet is not None, step
                    context = self._context(step, prompts, fleet, progress)
                    if step.stage == "evaluate" and self._reuse is not None:
                        self._reuse.take_answers(key, context.weights)
                    summary = await fleet.guard(_make(step.stage, context))
                elif fleet is not None and roles(self._config, step.stage):
                    services = {
                        name: address
                        for role in roles(self._config, step.stage)
                        for name, address in fleet.addresses(role).items()
                    }
                    summary = await fleet.guard(self._train(step, prompts, progress, services))
                else:
                    summary = await self._train(step, prompts, progress)
        except BaseException:
            self.state.spent(step.name, time.monotonic() - started)
            raise
        seconds = time.monotonic() - started
        self.state.finish(step.name, seconds, summary, key)
        self._console.say(f"{step.name}: done in {seconds:.1f} s{_figures(summary)}")

    async def _train(
        self,
        step: Step,
        prompts: Mapping[str, PromptSet],
        progress: StageProgress,
        services: Mapping[str, str] | None = None,
    ) -> Summary:
        if step.stage == "rl" and self._config.rl.algorithm != "dpo":
            with self._run.exporting("rl_prompts/train", RL_PROMPTS_EXPORT) as export:
                export.extend(map(rows.asked, prompts["rl"].prompts))
        metrics: dict[str, float] = {}

        def on_event(event: StageEvent) -> None:
            if isinstance(event, Progress):
                progress.update(event.done, event.total, event.metrics)
            elif isinstance(event, Note):
                progress.note(event.text)
            elif isinstance(event, Done):
                metrics.update(event.metrics)

        folder = self._run.local / "models" / step.model
        # a model appears whole: one that is there was finished by an attempt killed right after
        if not folder.exists():
            await run_stage(
                step,
                self._run.local,
                on_event=on_event,
                threads=self._config.services.training_threads,
                services=services,
                processes=learns_by(self._config, step.stage)[1].processes,
            )
        version = f"{step.model}-{weights_digest(folder)[:12]}"
        summary: Summary = {"weight_version": version, "metrics": metrics}
        if step.stage == "rl" and self._config.evaluate.snapshots:
            summary["snapshots"] = {
                name: f"{name}-{weights_digest(path)[:12]}"
                for name, path in snapshot_folders(folder).items()
            }
        return summary

    def _context(
        self, step: Step, prompts: Mapping[str, PromptSet], fleet: Fleet, progress: StageProgress
    ) -> StageContext:
        weights: dict[str, Weights] = {}
        if "policy" in roles(self._config, step.stage):
            weights = weights_of(self._config, self._run, self.state, base=fleet.base_version)
        return StageContext(
            step=step,
            config=self._config,
            run=self._run,
            constitution=self.session.constitution,
            fleet=fleet,
            prompts=prompts,
            weights=weights,
            progress=progress,
        )


@asynccontextmanager
async def own_fleet(session: Session, roles: Collection[Role]) -> AsyncIterator[Fleet]:
    """Services of one run's own, whose logs are in its directory.

    Raises:
        LaunchError, ServiceError: As ``open_fleet``.
    """
    with tempfile.TemporaryDirectory(prefix="solon-logs-") as temporary:
        root = session.run.storage.local_root or Path(temporary)
        async with open_fleet(
            session.config, session.constitution, roles, log_dir=root / "logs"
        ) as fleet:
            yield fleet


def weights_digest(folder: Path) -> str:
    """SHA-256 (hex) over a model's weight files: which weights these are, whoever made them.

    Raises:
        RunDirectoryError: There are none.
    """
    digest = hashlib.sha256()
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise RunDirectoryError(
            f"{folder}: expected the model that its stage left, but there are no weights in it"
        )
    for path in files:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


async def _make(stage: Stage, context: StageContext) -> Summary:
    before, paid = context.fleet.retried, context.fleet.cost_usd
    summary = await _DATA_STAGES[stage](context)
    if cost := context.fleet.cost_usd - paid:
        context.progress.note(f"{stage}: endpoints charge {cost:,.4f} US dollars for its calls")
    if again := context.fleet.retried - before:
        context.progress.note(f"{stage}: {again:,} calls that were refused or failed were repeated")
    return summary


def _figures(summary: Mapping[str, Any]) -> str:
    shown = [
        f"{name.replace('_', ' ')} {value:,}"
        for name, value in summary.items()
        if isinstance(value, int)
    ]
    return f" ({', '.join(shown)})" if shown else ""
