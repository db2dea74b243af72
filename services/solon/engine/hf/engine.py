"""The ``transformers`` engine: an event loop's face for the worker thread that owns the model.

Checks and tokenizes before the queue, so that the model is never asked for what cannot work, and
makes text of what comes back. Knows nothing of tensors.

What a seed guarantees: the same request, seed, weights, machine and number of threads give the same
text, whatever else is in the batch; in float32 by construction (``exact``), in narrower types but
for draws that fall within the type's noise of a border. With one CPU thread, log-probabilities of
``generate`` and ``score`` are equal to the last bit too.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from solon.chat import Conversation
from solon.engine.base import (
    EngineFailed,
    EngineInfo,
    Generation,
    GenerationPiece,
    Load,
    Overloaded,
    Paused,
    PauseMode,
    Sampling,
    Scored,
    Timing,
    Token,
    Usage,
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
from solon.engine.hf.loading import LoadedModel, load
from solon.engine.hf.runner import Runner
from solon.engine.hf.worker import Worker
from solon.engine.options import EngineOptions, read_extra
from solon.engine.pace import Pace, retry_after
from solon.engine.prompts import Prompts
from solon.engine.text import Codec
from solon.engine.weights import Base, Served, read_weights, until_ended

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformersOptions:
    """The transformers engine's own options (``--engine-option``)."""

    chat_template: str | None = None
    """Path of a Jinja chat template to use instead of the tokenizer's."""
    score_keys: int = 65536
    """Keys of cache that scoring may hold at once, >= 1: more batches better, less saves memory."""
    prefix_keys: int = 16384
    """Keys of cache of what prompts begin with (a constitution's exemplars) that are kept from one
    request to the next, >= 0: 0 computes them for each."""


class TransformersEngine:
    """See the module. Every method is as ``solon.engine.base.Engine`` says."""

    def __init__(self, options: EngineOptions) -> None:
        """Read the options; the model is loaded by ``start``.

        Raises:
            InvalidInput: An unknown option.
        """
        self._options = options
        self._own = read_extra(TransformersOptions, "transformers", options.extra)
        self._mode: PauseMode | None = None
        self._closed = False
        self._serving: _Serving | None = None
        # what is scored goes before what is generated, and takes far less: each has its own pace
        self._paces: dict[type[GenerateJob | ScoreJob], Pace] = {
            GenerateJob: Pace(),
            ScoreJob: Pace(),
        }

    async def start(self) -> None:
        """Load the model and answer one warm-up request."""
        loop = asyncio.get_running_loop()
        self._serving = await asyncio.to_thread(_load, self._options, self._own, loop)
        self._serving.worker.start()
        await self.generate(Conversation.from_user("Hello"), Sampling(max_tokens=1))

    async def close(self) -> None:
        """End the worker thread and everything that it runs."""
        self._closed = True
        if self._serving is not None:
            self._serving.prompts.close()
            await asyncio.to_thread(self._serving.worker.close)

    @property
    def info(self) -> EngineInfo:
        """What this engine is."""
        return self._ready.info

    @property
    def weight_version(self) -> str:
        """The weights in use."""
        return self._ready.worker.weight_version

    def load(self) -> Load:
        """How busy it is."""
        worker = self._ready.worker
        return Load(
            queued=worker.queued,
            running=worker.running,
            queue_capacity=self._options.queue_capacity,
            paused=self._mode is not None,
            wait=self._wait(),
            batches=worker.batches,
            batched_sequences=worker.batched_sequences,
        )

    async def generate(self, conversation: Conversation, sampling: Sampling) -> Generation:
        """Answer the conversation."""
        prompt = await self._ready.prompts.prompt(conversation, sampling)
        future: asyncio.Future[Made] = asyncio.get_running_loop().create_future()
        job = GenerateJob(
            prompt=prompt,
            shared=self._ready.prompts.codec.shared(conversation, prompt),
            sampling=sampling,
            done=_setter(future),
            fail=_failer(future),
        )
        made = await self._run(job, future)
        return self._generation(job, made)

    async def stream(
        self, conversation: Conversation, sampling: Sampling
    ) -> AsyncGenerator[GenerationPiece, None]:
        """Answer the conversation, a piece at a time."""
        prompt = await self._ready.prompts.prompt(conversation, sampling)
        queue: asyncio.Queue[Made | MadePiece | Exception] = asyncio.Queue()
        job = GenerateJob(
            prompt=prompt,
            shared=self._ready.prompts.codec.shared(conversation, prompt),
            sampling=sampling,
            done=queue.put_nowait,
            fail=queue.put_nowait,
            piece=queue.put_nowait,
        )
        self._submit(job)
        try:
            async with aclosing(self._pieces(job, queue)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            self._cancel(job)

    async def score(
        self, prompts: Sequence[Conversation], continuations: Sequence[Sequence[str]]
    ) -> Scored:
        """Log-probabilities of whole continuations."""
        questions = await self._ready.prompts.questions(prompts, continuations)
        future: asyncio.Future[Scores] = asyncio.get_running_loop().create_future()
        ids = [one.prompt for one in questions]
        shared = min(map(self._ready.prompts.codec.shared, prompts, ids))
        job = ScoreJob(
            prompts=ids,
            shared=shared if len({tuple(one[:shared]) for one in ids}) == 1 else 0,
            continuations=[one.continuations for one in questions],
            done=_setter(future),
            fail=_failer(future),
        )
        scores = await self._run(job, future)
        return Scored(
            logprobs=scores.logprobs,
            usage=Usage(
                prompt_tokens=scores.prompt_tokens,
                cached_tokens=scores.cached_tokens,
                model_calls=len(prompts),
            ),
            timing=_timing(job, scores.started),
            weight_version=scores.weight_version,
        )

    async def update_weights(self, path: str, weight_version: str) -> None:
        """Load and check the new weights, then swap them in place between two batches."""
        await until_ended(lambda abandoned: self._update(path, weight_version, abandoned))

    async def pause(self, mode: PauseMode) -> int:
        """Stop the model."""
        worker = self._ready.worker
        self._mode = mode
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        worker.control(PauseJob(mode=mode, done=_setter(future)))
        return await future

    async def resume(self) -> None:
        """Go on."""
        worker = self._ready.worker
        self._look()
        self._mode = None
        worker.control(None)

    @property
    def _ready(self) -> _Serving:
        if self._closed:
            raise EngineFailed("the engine is closed")
        return self._started

    @property
    def _started(self) -> _Serving:
        """For what goes on after closing: a request that ends keeps what it made, or its error."""
        if self._serving is None:
            raise EngineFailed("the engine is not started")
        return self._serving

    def _submit(self, job: GenerateJob | ScoreJob) -> None:
        worker = self._ready.worker
        self._look()
        if self._mode in (PauseMode.ABORT, PauseMode.WAIT):
            raise Paused("generation is paused: try again after it is resumed")
        # a call that is larger than the queue is let in when nothing waits: else it never could be
        if queued := worker.queued:
            self._check_room("sequences", queued, job.sequences, self._options.queue_capacity)
            tokens, most = worker.queued_tokens, self._options.token_capacity
            self._check_room("tokens", tokens, job.tokens, most)
        worker.submit(job)

    def _check_room(self, what: str, waiting: int, more: int, capacity: int) -> None:
        if waiting + more > capacity:
            raise Overloaded(
                f"{waiting} {what} wait and {more} more were asked for, but at most {capacity} may "
                "wait: try again later",
                retry_after=retry_after(self._wait()),
            )

    def _look(self) -> None:
        for kind, pace in self._paces.items():
            pace.look(*self._ready.worker.counts(kind), paused=self._mode is not None)

    def _wait(self) -> float:
        """Seconds until all that waits has left the queue."""
        self._look()
        worker = self._ready.worker
        return sum(pace.wait(worker.counts(kind)[0]) for kind, pace in self._paces.items())

    async def _update(self, path: str, weight_version: str, abandoned: threading.Event) -> None:
        serving = self._ready
        new = await asyncio.to_thread(
            read_weights,
            path,
            base=serving.base,
            served=Served.of(serving.loaded.model),
            abandoned=abandoned,
        )
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ready.worker.control(
            WeightsJob(
                weights=new.model.state_dict(),
                weight_version=weight_version,
                abandoned=abandoned,
                done=_setter(future),
                fail=_failer(future),
            )
        )
        await future
        self._serving = replace(serving, base=new.base)

    async def _run(self, job: GenerateJob | ScoreJob, future: asyncio.Future[T]) -> T:
        self._submit(job)
        try:
            return await future
        finally:
            self._cancel(job)

    def _cancel(self, job: GenerateJob | ScoreJob) -> None:
        """Free the job's place; harmless once it is done."""
        self._started.worker.cancel(job)

    async def _pieces(
        self, job: GenerateJob, queue: asyncio.Queue[Made | MadePiece | Exception]
    ) -> AsyncGenerator[GenerationPiece, None]:
        characters = tokens = 0
        while True:
            event = await queue.get()
            if isinstance(event, Exception):
                raise event
            if isinstance(event, MadePiece):
                characters += len(event.text)
                tokens += len(event.ids)
                yield GenerationPiece(
                    text=event.text,
                    tokens=self._tokens(event.ids, event.logprobs),
                    weight_version=event.weight_version,
                )
                continue
            final = self._generation(job, event)
            yield GenerationPiece(
                text=final.text[characters:],
                tokens=final.tokens[tokens:],
                final=final,
                weight_version=final.weight_version,
            )
            return

    def _generation(self, job: GenerateJob, made: Made) -> Generation:
        text = made.text
        if text is None:
            ids = made.ids[:-1] if made.ended_by_token else made.ids
            text = self._started.prompts.codec.decode(ids)
        if made.ids:
            job.span.set_attribute("solon.batch.mean_sequences", made.company / len(made.ids))
        return Generation(
            text=text,
            tokens=self._tokens(made.ids, made.logprobs),
            finish_reason=made.reason,
            usage=Usage(
                prompt_tokens=len(job.prompt),
                cached_tokens=made.cached_tokens,
                completion_tokens=len(made.ids),
                model_calls=1,
            ),
            timing=_timing(job, made.started),
            weight_version=made.weight_version,
        )

    def _tokens(self, ids: Sequence[int], logprobs: Sequence[float]) -> tuple[Token, ...]:
        piece = self._started.prompts.codec.piece
        return tuple(
            Token(id=i, text=piece(i), logprob=logprob)
            for i, logprob in zip(ids, logprobs, strict=True)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Serving:
    """What there is once the model is loaded."""

    loaded: LoadedModel
    prompts: Prompts
    worker: Worker
    info: EngineInfo
    base: Base


def _load(
    options: EngineOptions, own: TransformersOptions, loop: asyncio.AbstractEventLoop
) -> _Serving:
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    loaded = load(options, own.chat_template)
    codec = Codec(loaded.tokenizer)
    runner = Runner(loaded)
    kept = Kept(runner, own.prefix_keys)
    worker = Worker(
        runner=runner,
        batch=DecodeBatch(runner, codec, loaded.eos_ids, kept),
        kept=kept,
        max_batch=options.max_batch,
        score_keys=own.score_keys,
        weight_version=options.weight_version,
        loop=loop,
    )
    info = EngineInfo(
        engine="transformers",
        model=options.model,
        context_tokens=loaded.context_tokens,
        supports_logprobs=True,
        supports_weight_update=True,
        extra={
            "device": str(loaded.device),
            "dtype": str(loaded.dtype).removeprefix("torch."),
            "threads": str(torch.get_num_threads()),
        },
    )
    return _Serving(
        loaded=loaded,
        prompts=Prompts(codec, loaded.context_tokens),
        worker=worker,
        info=info,
        base=Base.of(options.model),
    )


def _timing(job: Job, started: float) -> Timing:
    return Timing(queue=started - job.submitted, inference=time.monotonic() - started)


def _setter(future: asyncio.Future[T]) -> Callable[[T], None]:
    def done(value: T) -> None:
        if not future.done():
            future.set_result(value)

    return done


def _failer(future: asyncio.Future[T]) -> Callable[[Exception], None]:
    def fail(error: Exception) -> None:
        if not future.done():
            future.set_exception(error)

    return fail
