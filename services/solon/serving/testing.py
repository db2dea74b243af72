"""For tests of services and of what calls them: a server on a free port, an engine of functions.

The engine stands at the same seam as a real one; nothing of the service is replaced. For a fake
process, start a service with ``--engine scripted``. Knows nothing of any role.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from solon.chat import Conversation
from solon.constitution import Constitution
from solon.engine.base import (
    Engine,
    EngineInfo,
    FinishReason,
    Generation,
    GenerationPiece,
    Load,
    PauseMode,
    Sampling,
    Scored,
    Timing,
    Token,
    Usage,
)
from solon.serving.constitutions import Library
from solon.serving.options import ServerOptions
from solon.serving.server import Resources, Role, Server


@asynccontextmanager
async def running(
    role: Role,
    engine: Engine,
    *,
    constitutions: Iterable[Constitution] = (),
    **changed: Any,
) -> AsyncIterator[str]:
    """Serve a role on a free port of this machine, model loaded; gives the address.

    ``changed``: fields of ``ServerOptions`` that are not to have their defaults.
    """
    options = ServerOptions(**{"settle_seconds": 0, "drain_seconds": 5} | changed)
    resources = Resources(
        engine=engine,
        library=Library(constitutions),
        max_tokens_default=options.max_tokens_default,
    )
    server = Server(role, resources, options)
    port = await server.bind()
    await server.load()
    try:
        yield f"{options.host}:{port}"
    finally:
        await server.drain()


@dataclass(frozen=True, slots=True)
class Said:
    """What a ``FunctionEngine`` answers, if more than a text that ends by itself."""

    text: str
    finish_reason: FinishReason = FinishReason.STOP


@dataclass(kw_only=True)
class FunctionEngine:
    """An engine whose texts and log-probabilities are functions; it records what it was asked."""

    answer: Callable[[Conversation, Sampling], str | Said] = lambda conversation, sampling: "Yes."
    """The answer to a conversation; may raise an EngineError."""
    logprob: Callable[[Conversation, str], float] = lambda conversation, continuation: -1.0
    """The log-probability of a continuation; may raise an EngineError."""
    supports_logprobs: bool = True
    weight_version: str = "initial"
    asked: list[tuple[Conversation, Sampling]] = field(default_factory=list)
    """Generations, in the order of the calls."""
    scored: list[list[Conversation]] = field(default_factory=list)
    """The prompts of each call of ``score``."""
    running: int = 0
    """Generations that wait at ``gate`` now."""
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    """Generations wait for it; it is set at first."""
    wait: float = 0.0
    """What ``load`` says of it, in seconds."""
    paused: PauseMode | None = None
    closed: bool = False

    def __post_init__(self) -> None:
        """Open the gate."""
        self.gate.set()

    async def start(self) -> None:
        """See ``Engine``."""

    async def close(self) -> None:
        """See ``Engine``."""
        self.closed = True

    @property
    def info(self) -> EngineInfo:
        """See ``Engine``."""
        return EngineInfo(
            engine="function",
            model="function",
            context_tokens=1024,
            supports_logprobs=self.supports_logprobs,
            supports_weight_update=True,
        )

    def load(self) -> Load:
        """See ``Engine``."""
        paused = self.paused is not None
        return Load(queued=0, running=self.running, queue_capacity=8, paused=paused, wait=self.wait)

    async def generate(self, conversation: Conversation, sampling: Sampling) -> Generation:
        """See ``Engine``."""
        self.asked.append((conversation, sampling))
        self.running += 1
        try:
            await self.gate.wait()
        finally:
            self.running -= 1
        said = self.answer(conversation, sampling)
        said = said if isinstance(said, Said) else Said(said)
        words = said.text.split()
        return Generation(
            text=said.text,
            tokens=tuple(Token(id=len(w), text=w, logprob=-0.5) for w in words),
            finish_reason=said.finish_reason,
            usage=Usage(prompt_tokens=10, completion_tokens=len(words), model_calls=1),
            timing=Timing(queue=0.25, inference=0.5),
            weight_version=self.weight_version,
        )

    async def stream(
        self, conversation: Conversation, sampling: Sampling
    ) -> AsyncGenerator[GenerationPiece, None]:
        """See ``Engine``. A piece a word."""
        whole = await self.generate(conversation, sampling)
        for index, token in enumerate(whole.tokens):
            yield GenerationPiece(
                text=token.text if index == 0 else f" {token.text}",
                tokens=(token,),
                weight_version=whole.weight_version,
            )
            await self.gate.wait()
        yield GenerationPiece(text="", tokens=(), final=whole, weight_version=whole.weight_version)

    async def score(
        self, prompts: Sequence[Conversation], continuations: Sequence[Sequence[str]]
    ) -> Scored:
        """See ``Engine``."""
        self.scored.append(list(prompts))
        return Scored(
            logprobs=tuple(
                tuple(self.logprob(prompt, text) for text in texts)
                for prompt, texts in zip(prompts, continuations, strict=True)
            ),
            usage=Usage(prompt_tokens=10 * len(prompts), model_calls=len(prompts)),
            timing=Timing(queue=0.25, inference=0.5),
            weight_version=self.weight_version,
        )

    async def update_weights(self, path: str, weight_version: str) -> None:
        """See ``Engine``."""
        self.weight_version = weight_version

    async def pause(self, mode: PauseMode) -> int:
        """See ``Engine``. Ends nothing."""
        self.paused = mode
        return 0

    async def resume(self) -> None:
        """See ``Engine``."""
        self.paused = None
