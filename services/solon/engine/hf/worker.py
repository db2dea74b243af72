"""The one thread that owns the model, and the queue before it.

Each turn: obey the control plane, score what waits, let new sequences join, take a step. Answers
go back to the event loop in one call a turn. Knows nothing of text.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from solon import tracing
from solon.engine.base import (
    EngineError,
    EngineFailed,
    FinishReason,
    Paused,
    PauseMode,
    WeightsNotLoaded,
)
from solon.engine.hf.decoding import DecodeBatch
from solon.engine.hf.jobs import (
    GenerateJob,
    Job,
    Made,
    MadePiece,
    PauseJob,
    ScoreJob,
    Scores,
    WeightsJob,
)
from solon.engine.hf.kept import Kept
from solon.engine.hf.runner import Runner
from solon.engine.hf.scoring import Part, PartLogprobs, Scorer, split

T = TypeVar("T")

_SCORE_PROMPT_TOKENS = 8192
"""Prompt tokens of the calls that are scored together, at most, unless one call has more."""


_JOIN_SHARE = 0.2
"""Sequences join at once if they are at least this share of those that run."""
_JOIN_STEPS = 8
"""Fewer wait so many steps for company, at most."""
_JOIN_TOKENS = 4096
"""Prompt tokens that join in one step, about: with more, intermediate results leave the caches,
and those that run wait long for their next token."""


class Worker:
    """Runs jobs until it is closed. Made, and called, on the event loop."""

    def __init__(
        self,
        *,
        runner: Runner,
        batch: DecodeBatch,
        kept: Kept,
        max_batch: int,
        score_keys: int,
        weight_version: str,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """``score_keys``: keys of cache that one scoring forward may take."""
        self._runner = runner
        self._batch = batch
        self._kept = kept
        self._scorer = Scorer(runner, kept)
        self._max_batch = max_batch
        self._score_keys = score_keys
        self._loop = loop
        self._wake = threading.Condition()
        self._generate: deque[GenerateJob] = deque()
        self._score: deque[ScoreJob] = deque()
        self._control: deque[PauseJob | WeightsJob | None] = deque()
        self._waiting_pause: PauseJob | None = None
        self._waiting_weights: deque[WeightsJob] = deque()
        self._held = False
        self._closing = False
        self._outbox: list[Callable[[], None]] = []
        self._queued = {GenerateJob: 0, ScoreJob: 0}
        self._finished = {GenerateJob: 0, ScoreJob: 0}
        self._queued_tokens = 0
        self._running = 0
        self._patience = _JOIN_STEPS
        self.weight_version = weight_version
        """The weights in use."""
        self.batches = 0
        """Forward passes."""
        self.batched_sequences = 0
        """Sequences in all of them."""
        self._thread = threading.Thread(target=self._run, name="solon-engine", daemon=True)

    def start(self) -> None:
        """Begin to run jobs."""
        self._thread.start()

    @property
    def queued(self) -> int:
        """Sequences that wait."""
        return sum(self._queued.values())

    def counts(self, kind: type[GenerateJob | ScoreJob]) -> tuple[int, int]:
        """Sequences of a kind of job that wait, and that have left the model since the start."""
        return self._queued[kind], self._finished[kind]

    @property
    def queued_tokens(self) -> int:
        """Their tokens, with those of the longest answers."""
        return self._queued_tokens

    @property
    def running(self) -> int:
        """Sequences in the model."""
        return self._running

    def submit(self, job: GenerateJob | ScoreJob) -> None:
        """Queue a job."""
        with self._wake:
            if isinstance(job, GenerateJob):
                self._generate.append(job)
            else:
                self._score.append(job)
            self._queued[type(job)] += job.sequences
            self._queued_tokens += job.tokens
            self._wake.notify()

    def control(self, job: PauseJob | WeightsJob | None) -> None:
        """Pause, change weights, or (``None``) resume; obeyed between two steps."""
        with self._wake:
            self._control.append(job)
            self._wake.notify()

    def cancel(self, job: GenerateJob | ScoreJob) -> None:
        """Nobody waits for the job any more: its place is free at once."""
        with self._wake:
            job.cancelled = True
            self._take(job)

    def close(self) -> None:
        """Fail what waits and runs, and end the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        with torch.inference_mode():
            while not self._closing:
                self._obey()
                if not self._held:
                    self._work()
                self._settle()
                self._flush()
                self._rest()
            self._end(EngineFailed("the engine was closed while this request waited or ran"))
            self._flush()

    def _rest(self) -> None:
        """Sleep until there is something to do."""
        with self._wake:
            while not (self._closing or self._control or self._has_work()):
                self._wake.wait()

    def _has_work(self) -> bool:
        if self._held:
            return False
        if self._waiting_weights:
            return True
        return bool(self._batch.rows or self._generate or self._score)

    def _work(self) -> None:
        if not self._waiting_weights:
            self._score_some()
        self._batch.drop_cancelled()
        joining = [] if self._waiting_weights else self._admitted()
        self._running = len(self._batch.rows) + len(joining)
        if joining:
            self._guard(lambda: self._join(joining), lambda error: self._fail_join(joining, error))
        elif self._batch.rows:
            self._guard(self._step, self._fail_batch)

    def _join(self, joining: Sequence[GenerateJob]) -> None:
        with tracing.batch("prefill", [job.span for job in joining], sequences=len(joining)):
            self._step(joining)

    def _step(self, joining: Sequence[GenerateJob] = ()) -> None:
        self._count(len(self._batch.rows) + len(joining))
        for row, event in self._batch.step(joining, self.weight_version):
            if isinstance(event, MadePiece):
                assert row.job.piece is not None
                self._post(row.job.piece, event)
            elif isinstance(event, Made):
                self._finished[GenerateJob] += 1
                self._post(row.job.done, event)
            else:
                self._post(row.job.fail, event)
        self._running = len(self._batch.rows)

    def _taken(self, job: GenerateJob | ScoreJob) -> bool:
        """Take a job from the queue; whether anybody still waits for it."""
        with self._wake:
            self._take(job)
            return not job.cancelled

    def _take(self, job: GenerateJob | ScoreJob) -> None:
        if not job.taken:
            job.taken = True
            self._queued[type(job)] -= job.sequences
            self._queued_tokens -= job.tokens

    def _count(self, sequences: int) -> None:
        self.batches += 1
        self.batched_sequences += sequences

    def _admitted(self) -> list[GenerateJob]:
        """The sequences that join in the next step.

        Where a prefill is a forward of its own, which costs as much fixed overhead as a step, they
        join several at once, unless that keeps the first of them long.
        """
        running = len(self._batch.rows)
        free = self._max_batch - running
        if not (self._generate and free):
            return []
        if not self._runner.runs:
            self._patience -= 1
            few = min(len(self._generate), free) < running * _JOIN_SHARE
            if few and self._patience > 0:
                return []
            self._patience = _JOIN_STEPS
        jobs: list[GenerateJob] = []
        tokens = 0
        while self._generate and len(jobs) < free and tokens < _JOIN_TOKENS:
            if self._taken(job := self._generate.popleft()):
                jobs.append(job)
                tokens += len(job.prompt)
        return jobs

    def _score_some(self) -> None:
        jobs: list[ScoreJob] = []
        tokens = 0
        while self._score and (not jobs or tokens < _SCORE_PROMPT_TOKENS):
            if self._taken(job := self._score.popleft()):
                jobs.append(job)
                tokens += sum(map(len, job.prompts))
        if jobs:
            self._running = len(self._batch.rows) + sum(job.sequences for job in jobs)
            self._guard(
                lambda: self._score_jobs(jobs), lambda error: self._fail_scores(jobs, error)
            )
            self._running = len(self._batch.rows)

    def _score_jobs(self, jobs: Sequence[ScoreJob]) -> None:
        started = time.monotonic()
        parts = [part for job in jobs for part in split(job, self._score_keys)]
        done: list[tuple[Part, PartLogprobs]] = []
        known: Counter[int] = Counter()
        for group in self._grouped(parts):
            prompts = sum(part.last - part.first for part in group)
            self._count(prompts)
            for part in group:
                known[id(part.job)] += self._kept.compute(part.prefix)
            with tracing.batch("score", [part.job.span for part in group], sequences=prompts):
                done += zip(group, self._scorer.score(group), strict=True)
        for job in jobs:
            of_job = [pair for pair in done if pair[0].job is job]
            self._answer(job, of_job, known[id(job)], started)

    def _grouped(self, parts: Sequence[Part]) -> list[list[Part]]:
        groups: list[list[Part]] = []
        slots = longest = 0
        for part in parts:
            slots, longest = slots + part.slots, max(longest, part.longest)
            if not groups or slots * longest > self._score_keys:
                groups.append([])
                slots, longest = part.slots, part.longest
            groups[-1].append(part)
        return groups

    def _answer(
        self,
        job: ScoreJob,
        done: Sequence[tuple[Part, PartLogprobs]],
        known: int,
        started: float,
    ) -> None:
        """``known``: prompt tokens that an earlier call had computed."""
        logprobs = [tuple(values) for _, rows in done for values in rows]
        if any(value != value for values in logprobs for value in values):  # noqa: PLR0124 - NaN
            self._post(
                job.fail,
                EngineFailed("the model's logits are not finite: the weights are damaged"),
            )
            return
        prompt_tokens = sum(map(len, job.prompts))
        computed = sum(part.tree.prompt_tokens for part, _ in done) - known
        self._finished[ScoreJob] += job.sequences
        scores = Scores(
            logprobs=tuple(logprobs),
            prompt_tokens=prompt_tokens,
            cached_tokens=prompt_tokens - computed,
            started=started,
            weight_version=self.weight_version,
        )
        self._post(job.done, scores)

    def _obey(self) -> None:
        while self._control:
            job = self._control.popleft()
            if job is None:
                self._held = False
                self._release_pause()
            elif isinstance(job, WeightsJob):
                self._waiting_weights.append(job)
            else:
                self._release_pause()
                self._waiting_pause = job
                self._held = job.mode is PauseMode.KEEP
                if job.mode is PauseMode.ABORT:
                    job.aborted = self._abort()

    def _settle(self) -> None:
        """Answer what waited for the model to be idle."""
        if self._held:
            self._release_pause()
        if self._waiting_weights:
            self._swap_if_idle()
        if not (self._batch.rows or self._generate or self._score):
            self._release_pause()

    def _swap_if_idle(self) -> None:
        waiting, self._waiting_weights = self._waiting_weights, deque()
        for job in waiting:
            if job.abandoned.is_set():
                self._post(job.fail, WeightsNotLoaded("nobody waits for these weights any more"))
            elif not self._batch.rows:
                self._runner.model.load_state_dict(job.weights)
                self._kept.clear()
                self.weight_version = job.weight_version
                self._post(job.done, None)
            elif self._held:
                held = WeightsNotLoaded(
                    f"{len(self._batch.rows)} requests are held by a pause in mode KEEP and "
                    "must end on the old weights: resume, or pause in mode ABORT, first"
                )
                self._post(job.fail, held)
            else:
                self._waiting_weights.append(job)

    def _abort(self) -> int:
        rows = [row for row in self._batch.end() if not row.job.cancelled]
        for row in rows:
            self._post(row.job.done, row.made(FinishReason.ABORT))
        waiting = [job for job in self._generate if self._taken(job)]
        self._generate.clear()
        for job in waiting:
            self._post(job.done, self._nothing(job))
        scores = [job for job in self._score if self._taken(job)]
        self._score.clear()
        for score in scores:
            self._post(score.fail, Paused("generation was paused while this request waited"))
        self._running = 0
        return len(rows) + len(waiting) + len(scores)

    def _nothing(self, job: GenerateJob) -> Made:
        return Made(
            ids=(),
            logprobs=(),
            text="",
            reason=FinishReason.ABORT,
            ended_by_token=False,
            cached_tokens=0,
            started=time.monotonic(),
            weight_version=self.weight_version,
        )

    def _release_pause(self) -> None:
        if self._waiting_pause is not None:
            self._post(self._waiting_pause.done, self._waiting_pause.aborted)
            self._waiting_pause = None

    def _guard(self, work: Callable[[], None], failed: Callable[[EngineError], None]) -> None:
        """Run a piece of work; whatever the model throws ends these requests, not the engine."""
        try:
            work()
        except Exception as error:  # out of memory, a kernel's refusal: anything
            failure = EngineFailed(f"the model failed: {type(error).__name__}: {error}")
            failure.__cause__ = error
            failed(failure)

    def _fail_batch(self, error: EngineError) -> None:
        for row in self._batch.rows:
            self._post(row.job.fail, error)
        self._batch.reset()
        self._running = 0

    def _fail_join(self, joining: Sequence[GenerateJob], error: EngineError) -> None:
        """What runs already lost nothing but a step, and goes on without."""
        self._batch.forget(joining)
        for job in joining:
            self._post(job.fail, error)
        self._running = len(self._batch.rows)

    def _fail_scores(self, jobs: Sequence[ScoreJob], error: EngineError) -> None:
        for job in jobs:
            self._post(job.fail, error)
        self._scorer.reset()

    def _end(self, error: EngineError) -> None:
        jobs: list[Job | WeightsJob] = [row.job for row in self._batch.end()]
        jobs += [*self._generate, *self._score, *self._waiting_weights]
        jobs += [job for job in self._control if isinstance(job, WeightsJob)]
        for job in jobs:
            self._post(job.fail, error)
        self._release_pause()

    def _post(self, call: Callable[[T], None], value: T) -> None:
        self._outbox.append(lambda: call(value))

    def _flush(self) -> None:
        if self._outbox:
            calls, self._outbox = self._outbox, []
            self._loop.call_soon_threadsafe(_call_all, calls)


def _call_all(calls: Sequence[Callable[[], None]]) -> None:
    for call in calls:
        call()
