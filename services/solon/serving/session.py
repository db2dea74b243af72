"""One request's use of an engine: one set of weights throughout, its spending added up.

A request may take many model calls, and the weights may be replaced between two of them. A session
holds the request to the weights it asked for, or else to those of its first call, so that no
answer mixes two models. Each call is a span, whatever the engine. Knows nothing of gRPC.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from solon import tracing
from solon.chat import Conversation
from solon.engine.base import (
    ContentFiltered,
    Engine,
    Generation,
    GenerationPiece,
    Sampling,
    Scored,
    Timing,
    Usage,
)
from solon.engine.tasks import concurrently
from solon.serving.errors import WeightVersionMismatch
from solon.tracing import Span


class Session:
    """An engine, as one request may use it."""

    def __init__(self, engine: Engine, *, weight_version: str | None = None) -> None:
        """Refuse at once if the engine has other weights than the request demands.

        Raises:
            WeightVersionMismatch: It has.
        """
        self._engine = engine
        self._expected = weight_version
        self.usage = Usage()
        """Spent so far."""
        self.timing = Timing()
        """Time taken so far; of calls made at the same time, that of the slowest."""
        if weight_version is not None:
            self._check(engine.weight_version)

    @property
    def weight_version(self) -> str:
        """The weights that answer this request."""
        return self._engine.weight_version if self._expected is None else self._expected

    @property
    def tells_logprobs(self) -> bool:
        """Whether ``score`` can answer at all."""
        return self._engine.info.supports_logprobs

    async def generate(self, conversation: Conversation, sampling: Sampling) -> Generation:
        """One generation; errors as ``Engine.generate``, and WeightVersionMismatch."""
        return (await self.generate_all([(conversation, sampling)]))[0]

    async def generate_all(
        self, asked: Sequence[tuple[Conversation, Sampling]]
    ) -> list[Generation]:
        """Generations that are asked for at the same time, in the order given.

        Raises:
            WeightVersionMismatch: The weights were replaced while this request ran.
            EngineError: The first failure; the other generations are cancelled.
        """
        made = await concurrently([self._generate(*one) for one in asked])
        self._count(made)
        return made

    async def generate_what_passes(
        self, asked: Sequence[tuple[Conversation, Sampling]]
    ) -> list[Generation | None]:
        """As ``generate_all``; None for those that a filter in front of the model withholds."""

        async def one(conversation: Conversation, sampling: Sampling) -> Generation | None:
            try:
                return await self._generate(conversation, sampling)
            except ContentFiltered:
                return None

        made = await concurrently([one(*some) for some in asked])
        self._count([generation for generation in made if generation is not None])
        return made

    async def stream(
        self, conversation: Conversation, sampling: Sampling
    ) -> AsyncGenerator[GenerationPiece, None]:
        """One generation, a piece at a time; ``aclose`` stops the work. Errors as ``generate``."""
        # an engine's stream is a generator: closing it is what stops the model
        async with (
            aclosing(self._engine.stream(conversation, sampling)) as made,
            aclosing(tracing.within("engine.generate", made)) as pieces,
        ):
            async for span, piece in pieces:
                self._check(piece.weight_version)
                if piece.final is not None:
                    _describe(span, piece.final)
                    self._spend([piece.final.usage], [piece.final.timing])
                yield piece

    async def score(
        self, prompts: Sequence[Conversation], continuations: Sequence[Sequence[str]]
    ) -> Scored:
        """Log-probabilities; errors as ``Engine.score``, and WeightVersionMismatch."""
        with tracing.span("engine.score") as span:
            scored = await self._engine.score(prompts, continuations)
            _describe(span, scored)
        self._check(scored.weight_version)
        self._spend([scored.usage], [scored.timing])
        return scored

    async def _generate(self, conversation: Conversation, sampling: Sampling) -> Generation:
        with tracing.span("engine.generate") as span:
            made = await self._engine.generate(conversation, sampling)
            _describe(span, made)
        return made

    def _count(self, made: Sequence[Generation]) -> None:
        for generation in made:
            self._check(generation.weight_version)
        if made:
            self._spend([g.usage for g in made], [g.timing for g in made])

    def _check(self, actual: str) -> None:
        if self._expected is None:
            self._expected = actual
        if actual != self._expected:
            raise WeightVersionMismatch(expected=self._expected, actual=actual)

    def _spend(self, usages: Sequence[Usage], timings: Sequence[Timing]) -> None:
        self.usage = sum(usages, start=self.usage)
        self.timing += max(timings, key=lambda t: t.queue + t.inference)


def _describe(span: Span, made: Generation | Scored) -> None:
    if span.is_recording():
        span.set_attributes(
            {
                "solon.prompt_tokens": made.usage.prompt_tokens,
                "solon.cached_tokens": made.usage.cached_tokens,
                "solon.completion_tokens": made.usage.completion_tokens,
                "solon.model_calls": made.usage.model_calls,
                "solon.queue_seconds": made.timing.queue,
                "solon.inference_seconds": made.timing.inference,
                "solon.weight_version": made.weight_version,
            }
        )
