"""The ``openai`` engine: a model behind an endpoint that speaks OpenAI's API.

Admission, concurrency and pausing are here, rate limits and retries are the client's
(``endpoint``). What is promised of an engine holds as far as the endpoint lets it: seeds are sent,
and honoured by vLLM, elsewhere at best now and then; tokens and their ids are told by vLLM alone;
what people say stays text only if the endpoint sees to that. Weights cannot be replaced.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from solon.chat import Conversation
from solon.engine.base import (
    BackendUnavailable,
    ContentFiltered,
    ContextExceeded,
    EngineFailed,
    EngineInfo,
    FinishReason,
    Generation,
    GenerationPiece,
    InvalidInput,
    Load,
    Paused,
    PauseMode,
    Sampling,
    Scored,
    Timing,
    Token,
    Unsupported,
    Usage,
)
from solon.engine.checks import check_sampling, check_score
from solon.engine.gate import Aborted, Gate
from solon.engine.openai.endpoint import Endpoint
from solon.engine.openai.options import OpenAIOptions
from solon.engine.openai.probing import Found, probe
from solon.engine.openai.replies import Chat, finish_reason, usage
from solon.engine.options import EngineOptions, read_extra
from solon.engine.tasks import concurrently

_LOG = logging.getLogger(__name__)

_CHARACTERS_A_TOKEN = 4
"""In ordinary text; only the queue is measured by it."""
_MOST_TEMPLATE_TOKENS = 64
"""Of a chat template, for each turn and for all together; above it prompts are counted exactly."""


class OpenAIEngine:
    """See the module. Every method is as ``solon.engine.base.Engine`` says."""

    def __init__(self, options: EngineOptions) -> None:
        """Read the options; the endpoint is asked by ``start``.

        Raises:
            InvalidInput: An option is unknown or wrong.
        """
        self._options = options
        self._own = read_extra(OpenAIOptions, "openai", options.extra)
        if not options.model:
            raise InvalidInput("model: expected the name that the endpoint gives it, got ''")
        self._endpoint = Endpoint(self._own, options.model)
        self._gate = Gate(
            "request",
            concurrency=options.max_batch,
            capacity=options.queue_capacity,
            token_capacity=options.token_capacity,
        )
        self._found: Found | None = None

    async def start(self) -> None:
        """Ask the endpoint what it can do, and for an answer."""
        self._found = await probe(self._endpoint, self._own, self._options.model)
        self._endpoint.started = True
        _LOG.info("endpoint", extra={"fields": dict(self.info.extra)})

    async def close(self) -> None:
        """End what runs, and close the connections."""
        await self._gate.close()
        await self._endpoint.close()

    @property
    def info(self) -> EngineInfo:
        """What this engine is."""
        found = self._ready
        prices = {
            name: f"{price:g}"
            for name in ("input_price", "cached_price", "output_price")
            if (price := getattr(self._own, name))
        }
        return EngineInfo(
            engine="openai",
            model=self._options.model,
            context_tokens=found.context_tokens,
            supports_logprobs=found.scorer is not None,
            supports_weight_update=False,
            supports_tokens=found.requests.is_vllm,
            extra={
                "base_url": self._own.base_url,
                "dialect": "vllm" if found.requests.is_vllm else "openai",
                "scoring": found.scoring,
                **prices,
            },
        )

    @property
    def weight_version(self) -> str:
        """The weights in use."""
        return self._options.weight_version

    def load(self) -> Load:
        """How busy it is. A batch is one request: what the endpoint makes of them is not known."""
        if self._found is None:
            raise EngineFailed("the engine is not started")
        return self._gate.load()

    async def generate(self, conversation: Conversation, sampling: Sampling) -> Generation:
        """Answer the conversation."""
        body = self._asked(conversation, sampling)
        tokens = _tokens(conversation) + sampling.max_tokens
        clock = _Clock()
        made = _Made(with_tokens=self._ready.requests.is_vllm)
        try:
            self._gate.admit(1, tokens)
            async with self._gate.enter(tokens) as place:
                clock.queued = place.queued
                made.take(await self._gate.finish(self._chat(conversation, body, sampling)))
        except Aborted:
            # nothing of an answer is known before all of it is
            made.reason = FinishReason.ABORT
        return self._generation(made, clock)

    async def stream(
        self, conversation: Conversation, sampling: Sampling
    ) -> AsyncGenerator[GenerationPiece, None]:
        """Answer the conversation, a piece at a time."""
        body = self._asked(conversation, sampling)
        tokens = _tokens(conversation) + sampling.max_tokens
        clock = _Clock()
        made = _Made(with_tokens=self._ready.requests.is_vllm)
        pieces: asyncio.Queue[Chat | None] = asyncio.Queue()
        try:
            self._gate.admit(1, tokens)
            async with self._gate.enter(tokens) as place:
                clock.queued = place.queued
                # a task of its own: a wait for the endpoint can then be aborted
                work = asyncio.ensure_future(
                    self._gate.finish(self._pump(conversation, body, sampling, pieces))
                )
                work.add_done_callback(lambda _: pieces.put_nowait(None))
                try:
                    while (piece := await pieces.get()) is not None:
                        await self._gate.spend(0)
                        text, made_tokens = made.add(piece)
                        if text or made_tokens:
                            yield GenerationPiece(
                                text=text, tokens=made_tokens, weight_version=self.weight_version
                            )
                    await work
                finally:
                    work.cancel()
                    await asyncio.wait({work})
            if made.reason is None:
                raise BackendUnavailable("the endpoint hung up before the answer had ended")
        except Aborted:
            made.reason = FinishReason.ABORT
        final = self._generation(made, clock)
        yield GenerationPiece(text="", tokens=(), final=final, weight_version=self.weight_version)

    async def score(
        self, prompts: Sequence[Conversation], continuations: Sequence[Sequence[str]]
    ) -> Scored:
        """Log-probabilities of continuations, each prompt a request of its own."""
        check_score(prompts, continuations)
        scorer = self._ready.scorer
        if scorer is None:
            raise Unsupported(
                "the endpoint tells no log-probabilities (engine option scoring is none)"
            )
        clock = _Clock()
        queued: list[float] = []
        sizes = [_tokens(prompt) for prompt in prompts]

        async def one(index: int) -> tuple[tuple[float, ...], Usage]:
            # prompts are made when they are looked at: no sooner than there is a place for them
            async with self._gate.enter(sizes[index]) as place:
                queued.append(place.queued)
                try:
                    return await self._gate.finish(scorer(prompts[index], continuations[index]))
                except ContentFiltered:
                    # one of many prompts: of this one nothing is told
                    return (math.nan,) * len(continuations[index]), Usage(model_calls=1)

        self._gate.admit(len(sizes), sum(sizes))
        try:
            scored = await concurrently([one(index) for index in range(len(sizes))])
        except Aborted:
            raise Paused("generation was paused while this request ran") from None
        clock.queued = min(queued)
        spent = sum((used for _, used in scored), start=Usage())
        return Scored(
            logprobs=tuple(logprobs for logprobs, _ in scored),
            usage=self._priced(spent),
            timing=clock.timing(),
            weight_version=self.weight_version,
        )

    async def update_weights(self, path: str, weight_version: str) -> None:
        """Refuse."""
        raise Unsupported(
            "the weights of a model behind an endpoint cannot be replaced: use another engine"
        )

    async def pause(self, mode: PauseMode) -> int:
        """Stop asking the endpoint."""
        return await self._gate.pause(mode)

    async def resume(self) -> None:
        """Go on."""
        self._gate.resume()

    @property
    def _ready(self) -> Found:
        if self._found is None:
            raise EngineFailed("the engine is not started")
        return self._found

    def _asked(self, conversation: Conversation, sampling: Sampling) -> dict[str, Any]:
        check_sampling(sampling)
        return self._ready.requests.chat(conversation, sampling)

    async def _chat(
        self, conversation: Conversation, body: dict[str, Any], sampling: Sampling
    ) -> Chat:
        await self._check_length(conversation, sampling)
        return await self._endpoint.chat(body, max_tokens=sampling.max_tokens)

    async def _pump(
        self,
        conversation: Conversation,
        body: dict[str, Any],
        sampling: Sampling,
        pieces: asyncio.Queue[Chat | None],
    ) -> None:
        await self._check_length(conversation, sampling)
        stream = self._endpoint.stream(body, max_tokens=sampling.max_tokens)
        async with aclosing(stream) as chunks:
            async for chunk in chunks:
                pieces.put_nowait(chunk)

    async def _check_length(self, conversation: Conversation, sampling: Sampling) -> None:
        """Refuse what does not fit a vLLM server's model: it would cut the answer without a word.

        Raises:
            ContextExceeded: It does not.
        """
        requests, context_tokens = self._ready.requests, self._ready.context_tokens
        if not (requests.is_vllm and context_tokens):
            return
        most_tokens = sampling.max_tokens + requests.reasoning_tokens
        size = sum(len(turn.content.encode()) for turn in conversation.messages)
        template = _MOST_TEMPLATE_TOKENS * (1 + len(conversation.messages))
        if size + template + most_tokens <= context_tokens:
            return
        prompt = await self._endpoint.tokenize(requests.tokenized(conversation))
        if len(prompt.tokens) + most_tokens > context_tokens:
            raise ContextExceeded(
                prompt_tokens=len(prompt.tokens),
                max_tokens=most_tokens,
                context_tokens=context_tokens,
            )

    def _generation(self, made: _Made, clock: _Clock) -> Generation:
        assert made.reason is not None
        return Generation(
            text=made.text,
            tokens=tuple(made.tokens),
            finish_reason=made.reason,
            usage=self._priced(made.usage),
            timing=clock.timing(),
            weight_version=self.weight_version,
        )

    def _priced(self, spent: Usage) -> Usage:
        return replace(spent, cost_usd=self._own.cost(spent))


@dataclass(slots=True)
class _Made:
    """What there is of an answer."""

    with_tokens: bool
    """Whether the endpoint tells the tokens."""
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    usage: Usage = field(default_factory=lambda: Usage(model_calls=1))
    reason: FinishReason | None = None

    def take(self, reply: Chat) -> None:
        """Take a whole answer."""
        choice = reply.choice
        self.reason = finish_reason(choice.finish_reason)
        self.text = choice.message.text
        self.tokens += choice.tokens() if self.with_tokens else ()
        self.usage = usage(reply.usage)

    def add(self, piece: Chat) -> tuple[str, tuple[Token, ...]]:
        """Add a piece of one; returns what it brings."""
        if piece.usage is not None:
            self.usage = usage(piece.usage)
        if not piece.choices:  # as of the piece that brings the usage
            return "", ()
        choice = piece.choice
        if choice.finish_reason is not None:
            self.reason = finish_reason(choice.finish_reason)
        text = choice.delta.text
        tokens = choice.tokens() if self.with_tokens else ()
        self.text += text
        self.tokens += tokens
        return text, tokens


@dataclass(slots=True)
class _Clock:
    """Where the time of a request goes."""

    started: float = field(default_factory=time.monotonic)
    queued: float = 0.0

    def timing(self) -> Timing:
        """Up to now."""
        elapsed = time.monotonic() - self.started
        return Timing(queue=self.queued, inference=max(0.0, elapsed - self.queued))


def _tokens(conversation: Conversation) -> int:
    """About how many a conversation has: only the endpoint could tell."""
    return 1 + sum(len(turn.content) for turn in conversation.messages) // _CHARACTERS_A_TOKEN
