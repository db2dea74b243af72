"""The ``vllm`` engine: checks and tokenizes, lets in as much as keeps vLLM busy, and makes text.

vLLM's AsyncLLM runs on this event loop; its core and workers have processes of their own. Knows
nothing of tensors.

What a seed guarantees: each request draws from a generator of its own, so that the same request,
seed, weights and machine give the same text, whatever else is in the batch, but for draws that fall
within the arithmetic's noise of a border: vLLM's kernels add up in an order that depends on the
batch. (On GPUs that it supports, ``VLLM_BATCH_INVARIANT=1`` in the environment ends that.)
Temperatures above 2 are refused by vLLM, and those between 0 and 0.01 count as 0.01.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from threading import Event

from solon.chat import Conversation
from solon.engine.base import (
    BackendUnavailable,
    EngineError,
    EngineFailed,
    EngineInfo,
    FinishReason,
    Generation,
    GenerationPiece,
    Load,
    Paused,
    PauseMode,
    Sampling,
    Scored,
    Timing,
    Usage,
    WeightsNotLoaded,
)
from solon.engine.options import EngineOptions, read_extra
from solon.engine.pretrained import eos_ids, read_config, read_tokenizer
from solon.engine.prompts import Prompts, Question
from solon.engine.tasks import concurrently
from solon.engine.text import Codec
from solon.engine.vllm import backend as vllm
from solon.engine.vllm.growing import Growing
from solon.engine.vllm.options import VllmOptions
from solon.engine.vllm.places import Place, Places
from solon.engine.vllm.positions import Position, positions, summed
from solon.engine.vllm.requests import Answer, answers, new_name, next_logprobs, parameters
from solon.engine.vllm.weights import Prepared, Weights, stamps_of
from solon.engine.weights import until_ended

_CLOSED = "the engine was closed while this request waited or ran"
_POLL_SECONDS = 0.05
"""How soon an update that waits for requests to end learns that nobody waits for it."""


class _Aborted(EngineError):
    """The request was ended by ``PauseMode.ABORT`` before it began."""


@dataclass(slots=True, eq=False)
class _Call:
    """A request to the engine, which may be many to vLLM."""

    ended: asyncio.Future[None]
    names: set[str] = field(default_factory=set)
    """What vLLM knows it by, while it works for it."""
    aborting: bool = False
    aborted: bool = False
    """Whether it was ended by that: it may have come to its own end first."""


class VllmEngine:
    """See the module. Every method is as ``solon.engine.base.Engine`` says."""

    def __init__(self, options: EngineOptions) -> None:
        """Read the options; vLLM is started by ``start``.

        Raises:
            InvalidInput: An unknown option, or a value that is out of its range.
        """
        self._options = options
        self._own = read_extra(VllmOptions, "vllm", options.extra)
        self._places = Places(
            batch=options.max_batch,
            capacity=options.queue_capacity,
            token_capacity=options.token_capacity,
        )
        self._calls: set[_Call] = set()
        self._mode: PauseMode | None = None
        self._kept = False
        """Whether vLLM is stopped, with requests in it."""
        self._updating = asyncio.Lock()
        self._closed = False
        self._serving: _Serving | None = None
        self._version = options.weight_version
        self._lost: asyncio.Future[str] | None = None

    async def start(self) -> None:
        """Start vLLM and answer one warm-up request."""
        self._lost = asyncio.get_running_loop().create_future()
        self._serving = await asyncio.to_thread(_load, self._options, self._own)
        await self.generate(Conversation.from_user("Hello"), Sampling(max_tokens=1))
        self._serving.backend.llm.output_handler.add_done_callback(
            lambda _: self._lose(str(vllm.gone()))
        )

    async def close(self) -> None:
        """End vLLM and everything that it runs."""
        if self._closed:
            return
        self._closed = True
        self._places.refuse(EngineFailed(_CLOSED))
        if self._serving is None:
            return
        calls = list(self._calls)
        await self._abort(calls)
        if calls:
            await asyncio.wait([call.ended for call in calls])
        self._serving.prompts.close()
        await asyncio.to_thread(self._serving.close)

    async def lost(self) -> str:
        """Return, when vLLM has ended though nobody asked it to, how."""
        assert self._lost is not None
        return await asyncio.shield(self._lost)

    @property
    def info(self) -> EngineInfo:
        """What this engine is."""
        backend = self._ready.backend
        return EngineInfo(
            engine="vllm",
            model=self._options.model,
            context_tokens=backend.context_tokens,
            supports_logprobs=True,
            supports_weight_update=True,
            extra={
                "device": backend.device,
                "dtype": backend.dtype,
                "tensor_parallel_size": str(self._own.tensor_parallel_size),
                "adapters": "beside the weights" if self._own.enable_lora else "merged",
            },
        )

    @property
    def weight_version(self) -> str:
        """The weights in use."""
        return self._version

    def load(self) -> Load:
        """How busy it is."""
        passes = self._ready.backend.passes
        return self._places.load(
            paused=self._mode is not None,
            batches=passes.batches,
            batched_sequences=passes.batched_sequences,
        )

    async def generate(self, conversation: Conversation, sampling: Sampling) -> Generation:
        """Answer the conversation."""
        async with aclosing(self._pieces(conversation, sampling, stream=False)) as pieces:
            async for piece in pieces:
                if piece.final is not None:
                    return piece.final
        raise EngineFailed("vLLM ended a request without an answer")

    def stream(
        self, conversation: Conversation, sampling: Sampling
    ) -> AsyncGenerator[GenerationPiece, None]:
        """Answer the conversation, a piece at a time."""
        return self._pieces(conversation, sampling, stream=True)

    async def score(
        self, prompts: Sequence[Conversation], continuations: Sequence[Sequence[str]]
    ) -> Scored:
        """Log-probabilities of whole continuations."""
        questions = await self._ready.prompts.questions(prompts, continuations)
        asked = positions(questions)
        sequences, tokens = len(questions), sum(question.tokens for question in questions)
        started = time.monotonic()
        try:
            async with (
                self._call(sequences, tokens) as call,
                self._places.enter(sequences, tokens) as place,
            ):
                version, left = self._version, Counter(one.row for one in asked)
                given = await concurrently(
                    [self._position(call, place, one, left) for one in asked]
                )
        except _Aborted:
            raise Paused("generation was paused while this request waited or ran") from None
        queue = place.waited + min(answer.queue for answer, _ in given)
        return Scored(
            logprobs=summed(
                questions,
                [(one, known) for one, (_, known) in zip(asked, given, strict=True)],
            ),
            usage=_scored_usage(questions, asked, [answer for answer, _ in given]),
            timing=Timing(queue=queue, inference=time.monotonic() - started - queue),
            weight_version=version,
        )

    async def update_weights(self, path: str, weight_version: str) -> None:
        """Check the new weights, then load them in place between two requests."""
        await until_ended(lambda abandoned: self._update(path, weight_version, abandoned))

    async def pause(self, mode: PauseMode) -> int:
        """Stop vLLM."""
        self._places.look(paused=self._mode is not None)
        self._mode = mode
        if mode is PauseMode.KEEP:
            await self._keep()
            return 0
        calls = list(self._calls)
        if mode is PauseMode.ABORT:
            self._places.refuse(_Aborted("generation was paused"))
            await self._abort(calls)
        await self._let_go()
        if calls:
            await asyncio.wait([call.ended for call in calls])
        return sum(call.aborted for call in calls)

    async def resume(self) -> None:
        """Go on."""
        self._places.look(paused=self._mode is not None)
        self._mode = None
        await self._let_go()

    @property
    def _ready(self) -> _Serving:
        if self._closed:
            raise EngineFailed("the engine is closed")
        if self._serving is None:
            raise EngineFailed("the engine is not started")
        if self._lost is not None and self._lost.done():
            raise BackendUnavailable(self._lost.result())
        return self._serving

    async def _keep(self) -> None:
        backend = self._ready.backend
        if not self._kept:
            self._kept = True
            self._places.hold()
        await backend.answer(backend.llm.pause_generation(mode="keep", clear_cache=False))

    async def _let_go(self) -> None:
        if self._kept:
            self._kept = False
            backend = self._ready.backend
            await backend.answer(backend.llm.resume_generation())
            self._places.release()

    async def _abort(self, calls: Sequence[_Call]) -> None:
        """End calls; each still has to notice."""
        names: list[str] = []
        for call in calls:
            call.aborting = True
            names += call.names
        if names and self._serving is not None:
            await self._serving.backend.llm.abort(names)

    @asynccontextmanager
    async def _call(self, sequences: int, tokens: int) -> AsyncIterator[_Call]:
        """A request, from when it is admitted."""
        _ = self._ready
        if self._mode in (PauseMode.ABORT, PauseMode.WAIT):
            raise Paused("generation is paused: try again after it is resumed")
        self._places.admit(sequences, tokens)
        call = _Call(asyncio.get_running_loop().create_future())
        self._calls.add(call)
        try:
            yield call
        except _Aborted:
            call.aborted = True
            raise
        finally:
            self._calls.discard(call)
            call.ended.set_result(None)

    @asynccontextmanager
    async def _named(self, call: _Call) -> AsyncIterator[str]:
        """A name for vLLM's work for a call, by which it can be ended."""
        if call.aborting:
            raise self._ended_early()
        name = new_name()
        call.names.add(name)
        try:
            yield name
        finally:
            call.names.discard(name)

    def _ended_early(self) -> EngineError:
        """Why vLLM ended a request that it would have gone on with."""
        return EngineFailed(_CLOSED) if self._closed else _Aborted("generation was paused")

    async def _position(
        self, call: _Call, place: Place, position: Position, left: Counter[int]
    ) -> tuple[Answer, Mapping[int, float]]:
        """One position's answer. ``left``: how many of each prompt are still to come."""
        serving = self._ready
        async with self._named(call) as name:
            answer, known = await next_logprobs(
                serving.backend, position, serving.weights.adapter, name
            )
        if answer.reason is FinishReason.ABORT:
            raise self._ended_early()
        left[position.row] -= 1
        if not left[position.row]:
            self._places.leave(place)
        return answer, known

    async def _pieces(
        self, conversation: Conversation, sampling: Sampling, *, stream: bool
    ) -> AsyncGenerator[GenerationPiece, None]:
        """The pieces of an answer; without ``stream`` only the last, which has it all."""
        serving = self._ready
        prompt = await serving.prompts.prompt(conversation, sampling)
        asked = parameters(sampling, serving.eos_ids, stream=stream)
        growing = Growing(serving.prompts.codec, serving.eos_ids, sampling, stream=stream)
        started, tokens = time.monotonic(), len(prompt) + sampling.max_tokens
        queue, version = 0.0, self._version
        async with self._call(1, tokens) as call:
            try:
                async with self._places.enter(1, tokens) as place, self._named(call) as name:
                    queue, version = place.waited, self._version
                    said = answers(serving.backend, prompt, asked, serving.weights.adapter, name)
                    async with aclosing(said):
                        async for answer in said:
                            growing.add(answer)
                            if answer.reason is None and stream:
                                yield growing.piece(version)
            except _Aborted:
                growing.reason = FinishReason.ABORT
            if growing.reason is FinishReason.ABORT:
                if self._closed:
                    raise EngineFailed(_CLOSED)
                call.aborted = True
        queue += growing.queue
        timing = Timing(queue=queue, inference=time.monotonic() - started - queue)
        yield growing.last(len(prompt), timing, version)

    async def _update(self, path: str, weight_version: str, abandoned: Event) -> None:
        serving = self._ready
        async with self._updating:
            prepared = await asyncio.to_thread(serving.weights.prepare, path, abandoned)
            try:
                self._places.hold()
                try:
                    await self._emptied(abandoned)
                    await self._take(serving, prepared)
                    self._version = weight_version
                finally:
                    self._places.release()
            finally:
                await asyncio.to_thread(prepared.files.close)

    async def _emptied(self, abandoned: Event) -> None:
        """Wait until nothing runs, with new requests held."""
        while self._places.inside:
            if self._kept:
                raise WeightsNotLoaded(
                    f"{self._places.inside} requests are held by a pause in mode KEEP and must end "
                    "on the old weights: resume, or pause in mode ABORT, first"
                )
            with suppress(TimeoutError):
                await asyncio.wait_for(self._places.empty(), _POLL_SECONDS)
            _ = self._ready
            if abandoned.is_set():
                raise WeightsNotLoaded("nobody waits for these weights any more")

    async def _take(self, serving: _Serving, prepared: Prepared) -> None:
        try:
            await serving.weights.load(prepared, serving.backend)
        except EngineFailed as error:
            # it has neither the old weights nor the new ones
            self._lose(str(error))
            raise

    def _lose(self, reason: str) -> None:
        if self._lost is not None and not self._lost.done() and not self._closed:
            self._lost.set_result(reason)
            self._places.refuse(BackendUnavailable(reason))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Serving:
    """What there is once vLLM runs."""

    backend: vllm.Backend
    prompts: Prompts
    weights: Weights
    eos_ids: frozenset[int]

    def close(self) -> None:
        """End it; takes seconds."""
        self.backend.llm.shutdown()
        # its finalizer does so again, and fails if that is as late as the interpreter's end
        self.backend.llm.shutdown = _done
        self.weights.close()


def _done() -> None:
    """Nothing is left to do."""


def _load(options: EngineOptions, own: VllmOptions) -> _Serving:
    config = read_config(options.model)
    tokenizer = read_tokenizer(options.model, own.chat_template)
    stamps = stamps_of(options.model)
    backend = vllm.start(options, own)
    return _Serving(
        backend=backend,
        prompts=Prompts(Codec(tokenizer), backend.context_tokens),
        weights=Weights(options.model, stamps, backend.dtype, beside=own.enable_lora),
        eos_ids=eos_ids(options.model, config, tokenizer),
    )


def _scored_usage(
    questions: Sequence[Question], asked: Sequence[Position], answers: Sequence[Answer]
) -> Usage:
    """Prompts less what was cached are all tokens that were computed, continuations included."""
    prompts = sum(len(question.prompt) for question in questions)
    computed = sum(
        len(one.ids) - answer.cached_tokens for one, answer in zip(asked, answers, strict=True)
    )
    total = max(prompts, computed)
    return Usage(prompt_tokens=total, cached_tokens=total - computed, model_calls=len(questions))
