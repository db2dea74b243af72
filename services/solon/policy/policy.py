"""The policy: answers a conversation, once or n times.

Knows nothing of gRPC, constitutions or judgement.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace

from solon.chat import Conversation
from solon.constitution import derive_seed
from solon.engine.base import (
    Engine,
    Generation,
    GenerationPiece,
    Sampling,
    Timing,
    Unsupported,
    Usage,
)
from solon.serving.session import Session


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One answer, and the seed that repeats it on its own."""

    generation: Generation
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """The answers to one conversation, all by the same weights."""

    samples: tuple[Sample, ...]
    weight_version: str
    usage: Usage
    timing: Timing


class Policy:
    """A model that answers people."""

    def __init__(self, engine: Engine) -> None:
        """``engine``: runs the model."""
        self._engine = engine

    def check_tokens(self) -> None:
        """Hold that answers come with their tokens.

        Raises:
            Unsupported: This engine does not tell them.
        """
        info = self._engine.info
        if not info.supports_tokens:
            raise Unsupported(
                f"return_tokens: the {info.engine} engine does not tell the tokens of "
                f"{info.model!r}: ask for none, or use another engine"
            )

    async def generate(
        self,
        conversation: Conversation,
        sampling: Sampling,
        *,
        n: int = 1,
        weight_version: str | None = None,
    ) -> Answers:
        """Answer n times, with a seed of its own for each; the first has ``sampling.seed``.

        Raises:
            WeightVersionMismatch: The weights are not ``weight_version``.
            EngineError: As ``Engine.generate``.
        """
        session = Session(self._engine, weight_version=weight_version)
        seeds = [sample_seed(sampling.seed, index) for index in range(n)]
        made = await session.generate_all(
            [(conversation, sampling if n == 1 else replace(sampling, seed=seed)) for seed in seeds]
        )
        return Answers(
            samples=tuple(
                Sample(generation=generation, seed=seed)
                for generation, seed in zip(made, seeds, strict=True)
            ),
            weight_version=session.weight_version,
            usage=session.usage,
            timing=session.timing,
        )

    async def stream(
        self,
        conversation: Conversation,
        sampling: Sampling,
        *,
        weight_version: str | None = None,
    ) -> AsyncGenerator[GenerationPiece, None]:
        """Answer once, a piece at a time; ``aclose`` stops the model. Errors as ``generate``."""
        session = Session(self._engine, weight_version=weight_version)
        async with aclosing(session.stream(conversation, sampling)) as pieces:
            async for piece in pieces:
                yield piece


def sample_seed(seed: int, index: int) -> int:
    """The seed of the answer at ``index``: the first has the request's own."""
    return seed if index == 0 else derive_seed(seed, "sample", index)
