"""A deterministic fake engine: says what a script says, as slowly and as badly as it is told.

Ships with the services, so that everything above an engine can be tested, and loaded with ten
thousand requests in flight, without a model. Knows nothing of tensors.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from solon.chat import Conversation
from solon.engine.base import (
    ContextExceeded,
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
    Token,
    Usage,
    WeightsNotLoaded,
)
from solon.engine.checks import check_sampling, check_score
from solon.engine.gate import Aborted, Gate
from solon.engine.options import EngineOptions, read_extra
from solon.engine.scripted.faults import Fault, Faults
from solon.engine.scripted.script import Script, count, render, split
from solon.engine.sources import Source


@dataclass(frozen=True, kw_only=True, slots=True)
class ScriptedOptions:
    """The scripted engine's own options (``--engine-option``)."""

    script: str | None = None
    """Path of a script; see ``solon.engine.scripted.script``."""
    latency: float = 0.0
    """Seconds that each call takes, >= 0."""
    token_latency: float = 0.0
    """Further seconds for each token made, >= 0."""
    concurrency: int = 0
    """Calls that run at once; 0 is no limit."""
    context_tokens: int = 8192
    """The pretended model's context, in words."""
    fail_every: int = 0
    """Each call whose number this divides goes wrong; 0 is off."""
    fail_with: str = "failed"
    """How: ``failed``, ``overloaded``, ``unavailable``, ``nan`` or ``empty``."""
    crash_after: int = 0
    """Kill the process with SIGKILL at the call after so many; 0 is off."""


class ScriptedEngine:
    """See the module. Every method is as ``solon.engine.base.Engine`` says."""

    def __init__(self, options: EngineOptions) -> None:
        """Read the options.

        Raises:
            InvalidInput: An unknown option, or a script that cannot be read.
        """
        self._options = options
        self._own = read_extra(ScriptedOptions, "scripted", options.extra)
        self._script = Script.load(self._own.script) if self._own.script else Script()
        self._faults = Faults(
            every=self._own.fail_every,
            kind=self._own.fail_with,
            crash_after=self._own.crash_after,
        )
        self._gate = Gate(
            "scripted",
            concurrency=self._own.concurrency,
            capacity=options.queue_capacity,
            token_capacity=options.token_capacity,
        )
        self._version = options.weight_version

    async def start(self) -> None:
        """Nothing to load."""

    async def close(self) -> None:
        """End what runs."""
        await self._gate.close()

    @property
    def info(self) -> EngineInfo:
        """What this engine is."""
        return EngineInfo(
            engine="scripted",
            model=self._options.model,
            context_tokens=self._own.context_tokens,
            supports_logprobs=True,
            supports_weight_update=True,
            extra={"script": self._own.script or ""},
        )

    @property
    def weight_version(self) -> str:
        """The weights in use."""
        return self._version

    def load(self) -> Load:
        """How busy it is."""
        return self._gate.load()

    async def generate(self, conversation: Conversation, sampling: Sampling) -> Generation:
        """Answer by the script."""
        async with aclosing(self.stream(conversation, sampling)) as pieces:
            async for piece in pieces:
                if piece.final is not None:
                    return piece.final
        raise EngineFailed("the script ended without an answer")

    async def stream(
        self, conversation: Conversation, sampling: Sampling
    ) -> AsyncGenerator[GenerationPiece, None]:
        """Answer by the script, a word at a time."""
        check_sampling(sampling)
        prompt = self._prompt_tokens(conversation, sampling.max_tokens)
        fault = self._faults.next_call()
        made: list[Token] = []
        queued = 0.0
        version = self._version
        started = asyncio.get_running_loop().time()
        tokens, reason = _draw(self._script, conversation, sampling, fault)
        try:
            self._gate.admit(1, prompt + sampling.max_tokens)
            async with self._gate.enter(prompt + sampling.max_tokens) as place:
                queued, version = place.queued, self._version
                await self._gate.spend(self._own.latency)
                for token in tokens:
                    if self._own.token_latency:
                        await self._gate.spend(self._own.token_latency)
                    made.append(token)
                    yield GenerationPiece(text=token.text, tokens=(token,), weight_version=version)
        except Aborted:
            reason = FinishReason.ABORT
        final = Generation(
            text="".join(token.text for token in made),
            tokens=tuple(made),
            finish_reason=reason,
            usage=Usage(prompt_tokens=prompt, completion_tokens=len(made), model_calls=1),
            timing=_timing(queued, started),
            weight_version=version,
        )
        yield GenerationPiece(text="", tokens=(), final=final, weight_version=version)

    async def score(
        self, prompts: Sequence[Conversation], continuations: Sequence[Sequence[str]]
    ) -> Scored:
        """Log-probabilities by the script."""
        check_score(prompts, continuations)
        tokens = sum(self._prompt_tokens(prompt, 1) for prompt in prompts)
        fault = self._faults.next_call()
        started = asyncio.get_running_loop().time()
        logprobs = tuple(
            tuple(
                math.nan if fault is Fault.NAN else self._script.logprob(prompt, text)
                for text in texts
            )
            for prompt, texts in zip(prompts, continuations, strict=True)
        )
        try:
            self._gate.admit(1, tokens)
            async with self._gate.enter(tokens) as place:
                version = self._version
                await self._gate.spend(self._own.latency)
        except Aborted:
            raise Paused("generation was paused while this request ran") from None
        return Scored(
            logprobs=logprobs,
            usage=Usage(prompt_tokens=tokens, model_calls=len(prompts)),
            timing=_timing(place.queued, started),
            weight_version=version,
        )

    async def update_weights(self, path: str, weight_version: str) -> None:
        """Take the new version's name, if ``path`` may exist, once what runs has finished."""
        if not await asyncio.to_thread(_may_exist, path):
            raise WeightsNotLoaded(f"path: expected a directory of weights, {path!r} is not there")
        await self._gate.drained()
        self._version = weight_version

    async def pause(self, mode: PauseMode) -> int:
        """Stop."""
        return await self._gate.pause(mode)

    async def resume(self) -> None:
        """Go on."""
        self._gate.resume()

    def _prompt_tokens(self, conversation: Conversation, max_tokens: int) -> int:
        tokens = count(render(conversation))
        if tokens + max_tokens > self._own.context_tokens:
            raise ContextExceeded(
                prompt_tokens=tokens,
                max_tokens=max_tokens,
                context_tokens=self._own.context_tokens,
            )
        return tokens


def _draw(
    script: Script, conversation: Conversation, sampling: Sampling, fault: Fault
) -> tuple[tuple[Token, ...], FinishReason]:
    """The tokens of an answer, and why it ends."""
    text = "" if fault is Fault.EMPTY else script.reply(conversation, sampling)
    cuts = [at for stop in sampling.stop if (at := text.find(stop)) >= 0]
    tokens = split(text[: min(cuts, default=len(text))])
    if fault is Fault.NAN:
        tokens = tuple(Token(id=t.id, text=t.text, logprob=math.nan) for t in tokens)
    if len(tokens) > sampling.max_tokens:
        return tokens[: sampling.max_tokens], FinishReason.LENGTH
    return tokens, FinishReason.STOP


def _may_exist(path: str) -> bool:
    """Whether a path exists; URLs are taken at their word."""
    source = Source.parse(path)
    try:
        return bool(source.scheme) or Path(source.path).exists()
    except OSError:  # such as a name that is longer than any can be
        return False


def _timing(queued: float, started: float) -> Timing:
    elapsed = asyncio.get_running_loop().time() - started
    return Timing(queue=queued, inference=elapsed - queued)
