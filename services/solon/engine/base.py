"""What every engine does: generate text, score continuations, change weights.

The seam between the roles and whatever runs the model. Roles know this module and nothing below
it. Knows nothing of gRPC, principles or judgement; imports no torch.

Exceptions::

    EngineError
    ├── InvalidInput          the request can never work: say which value and why
    │   ├── ContextExceeded   prompt and max_tokens do not fit the model
    │   └── ContentFiltered   a filter in front of the model withholds the answer
    ├── Overloaded            the queue is full: come back later
    ├── Paused                paused by the control plane
    ├── Unsupported           this engine cannot do that
    ├── BackendUnavailable    the process or host behind the engine does not answer
    ├── WeightsNotLoaded      an update failed; the old weights are in use
    └── EngineFailed          the model failed on this request
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol, runtime_checkable

from solon.chat import Conversation


class EngineError(Exception):
    """Anything an engine refuses or fails at."""


class InvalidInput(EngineError):
    """The request can never work on this engine."""


class ContextExceeded(InvalidInput):
    """Prompt and ``max_tokens`` together exceed the model's context."""

    def __init__(
        self, *, prompt_tokens: int, max_tokens: int, context_tokens: int, at_least: bool = False
    ) -> None:
        """Name the three sizes, in tokens.

        ``at_least``: the prompt is too long to be worth counting; it has no fewer than these.
        """
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self.context_tokens = context_tokens
        super().__init__(
            f"the prompt has {'at least ' if at_least else ''}{prompt_tokens} tokens and "
            f"max_tokens is {max_tokens}, but the model's context is {context_tokens}: shorten the "
            "conversation or lower max_tokens"
        )


class ContentFiltered(InvalidInput):
    """A filter in front of the model refuses the conversation, or withholds the answer."""


class Overloaded(EngineError):
    """The queue is full."""

    def __init__(self, message: str, *, retry_after: float) -> None:
        """``retry_after``: seconds after which trying again makes sense."""
        self.retry_after = retry_after
        super().__init__(message)


class Paused(EngineError):
    """Generation is paused and new requests are refused."""


class Unsupported(EngineError):
    """This engine cannot do that."""


class BackendUnavailable(EngineError):
    """What runs the model does not answer."""


class WeightsNotLoaded(EngineError):
    """An update of the weights failed; the old ones are still in use."""


class EngineFailed(EngineError):
    """The model failed on this request."""


class FinishReason(Enum):
    """Why a generation ended."""

    STOP = "stop"
    """The model ended its turn, or a stop text appeared."""
    LENGTH = "length"
    """``max_tokens`` were made."""
    ABORT = "abort"
    """Generation was paused with ``PauseMode.ABORT``."""


class PauseMode(Enum):
    """What becomes of requests when generation is paused."""

    ABORT = "abort"
    """End running generations with ``FinishReason.ABORT``; refuse new ones."""
    WAIT = "wait"
    """Let running requests finish; refuse new ones."""
    KEEP = "keep"
    """Hold running and new requests until resumed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How text is drawn. Checked by the engine before any work."""

    temperature: float = 1.0
    """Softmax temperature, >= 0; 0 is greedy."""
    top_p: float = 1.0
    """Nucleus mass, in (0, 1]."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 is off."""
    max_tokens: int = 256
    """Most tokens to make, >= 1."""
    seed: int = 0
    """The draw's seed, in [0, 2**64). Same request, seed and weights: same text, in any batch."""
    stop: tuple[str, ...] = ()
    """Texts that end the generation; not part of the result."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """One generated token."""

    id: int
    text: str
    logprob: float
    """Natural log, under the model at temperature 1, before top_k and top_p."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Tokens spent. Adds up."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens that were not computed again; part of ``prompt_tokens``."""
    completion_tokens: int = 0
    model_calls: int = 0
    """Generations, and prompts whose continuations were scored."""
    cost_usd: float = 0.0
    """What the model's host charges for them, in US dollars; 0 where no prices are known."""

    def __add__(self, other: Usage) -> Usage:
        """The sum, field by field."""
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            model_calls=self.model_calls + other.model_calls,
            cost_usd=self.cost_usd + other.cost_usd,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Where the time went, in seconds. Adds up."""

    queue: float = 0.0
    inference: float = 0.0

    def __add__(self, other: Timing) -> Timing:
        """The sum, field by field."""
        return Timing(queue=self.queue + other.queue, inference=self.inference + other.inference)


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """One sampled text."""

    text: str
    """Without the end-of-turn token and the stop text."""
    tokens: tuple[Token, ...]
    """All that were made, the end-of-turn token included; none if the engine cannot tell them."""
    finish_reason: FinishReason
    usage: Usage
    timing: Timing
    weight_version: str


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationPiece:
    """A piece of a streamed generation."""

    text: str
    """New text, in whole characters."""
    tokens: tuple[Token, ...]
    final: Generation | None = None
    """The whole generation; set in the last piece only."""
    weight_version: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """Log-probabilities of each continuation of each prompt."""

    logprobs: tuple[tuple[float, ...], ...]
    """[prompt][continuation]: natural log-probability of the whole continuation; NaN where what
    runs the model does not tell it."""
    usage: Usage
    timing: Timing
    weight_version: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """How busy an engine is."""

    queued: int
    """Sequences waiting for a place in a batch."""
    running: int
    """Sequences in the batch that runs."""
    queue_capacity: int
    """Sequences that may wait before new ones are refused."""
    paused: bool
    wait: float = 0.0
    """Seconds that a sequence would wait if it came now; 0 also where that cannot be told."""
    batches: int = 0
    """Forward passes that made tokens or scores, since the start."""
    batched_sequences: int = 0
    """Sequences in all of them together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineInfo:
    """What an engine is and can do."""

    engine: str
    model: str
    context_tokens: int
    """0: unknown."""
    supports_logprobs: bool
    supports_weight_update: bool
    supports_tokens: bool = True
    """Whether a generation has its tokens; else ``Generation.tokens`` is empty."""
    extra: dict[str, str] = field(default_factory=dict)
    """Device, dtype and the like, for the log."""


class Engine(Protocol):
    """A model that generates and scores. All methods run on one event loop.

    Cancelling a task that awaits an engine frees the work's place in the batch.
    """

    async def start(self) -> None:
        """Load the model and answer one warm-up request. Called once, before all else.

        Raises:
            InvalidInput: The model path or an option is wrong; the text says what to do.
        """

    async def close(self) -> None:
        """Free the model. Requests that run are ended with ``EngineFailed``."""

    @property
    def info(self) -> EngineInfo:
        """What this engine is. Complete after ``start``."""

    @property
    def weight_version(self) -> str:
        """The weights in use."""

    def load(self) -> Load:
        """How busy it is at this moment."""

    async def generate(self, conversation: Conversation, sampling: Sampling) -> Generation:
        """Answer the conversation, or continue it if it ends with the assistant.

        Raises:
            InvalidInput, ContextExceeded, Overloaded, Paused, BackendUnavailable, EngineFailed.
        """

    def stream(
        self, conversation: Conversation, sampling: Sampling
    ) -> AsyncGenerator[GenerationPiece, None]:
        """As ``generate``, a piece at a time; ``aclose`` on the iterator stops the work."""

    async def score(
        self, prompts: Sequence[Conversation], continuations: Sequence[Sequence[str]]
    ) -> Scored:
        """Log-probabilities of whole continuations, as the start of the assistant's answer.

        Args:
            prompts: P conversations; those that share a prefix should be given together.
            continuations: P sequences of texts, each text at least one token.

        Raises:
            As ``generate``, and Unsupported if the engine gives no log-probabilities.
        """

    async def update_weights(self, path: str, weight_version: str) -> None:
        """Replace the weights, all or nothing, once what runs has finished.

        Cancelling the task changes nothing afterwards: it ends when nothing is being loaded any
        more. Only if the swap had begun by then is it completed.

        Args:
            path: A directory or URL of full weights, or of an adapter: it is merged into the full
                weights that were loaded last.
            weight_version: What to call them.

        Raises:
            WeightsNotLoaded: The old weights are still in use; the text says why.
            InvalidInput: ``path`` is neither a path nor a URL.
            Unsupported: This engine cannot.
        """

    async def pause(self, mode: PauseMode) -> int:
        """Stop the model; returns, when nothing runs any more, the number of aborted requests."""

    async def resume(self) -> None:
        """Go on. Harmless if not paused."""


@runtime_checkable
class Mortal(Protocol):
    """An engine whose model is run by a process that may end without being asked to."""

    async def lost(self) -> str:
        """Return, when it can answer nothing any more, why."""
