"""What the event loop hands to the worker thread, and what comes back.

Knows nothing of tensors.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from solon import tracing
from solon.engine.base import FinishReason, PauseMode, Sampling
from solon.tracing import Span


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """What generation made for one request."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str | None
    """The text, where it was followed token by token; else it is decoded from the ids."""
    reason: FinishReason
    ended_by_token: bool
    """Whether the last id is an end-of-turn token."""
    cached_tokens: int
    started: float
    """``time.monotonic()`` when the request left the queue."""
    company: int = 0
    """Sequences in its steps, itself included, added up."""
    weight_version: str


@dataclass(frozen=True, kw_only=True, slots=True)
class MadePiece:
    """A piece of a streamed generation."""

    text: str
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    weight_version: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Log-probabilities of one request's continuations."""

    logprobs: tuple[tuple[float, ...], ...]
    prompt_tokens: int
    cached_tokens: int
    started: float
    weight_version: str


@dataclass(kw_only=True, slots=True, eq=False)
class Job:
    """Something that waits in the queue. Its callbacks run on the event loop."""

    fail: Callable[[Exception], None]
    submitted: float = field(default_factory=time.monotonic)
    span: Span = field(default_factory=tracing.current)
    """The request's, taken where the job is made: the worker's thread has no context of its own."""
    cancelled: bool = False
    """Set by the event loop when nobody waits any more."""
    taken: bool = False
    """Whether it has left the queue."""

    @property
    def sequences(self) -> int:
        """Places in the queue that it takes."""
        return 1

    @property
    def tokens(self) -> int:
        """Tokens that the model will see for it, at most."""
        raise NotImplementedError


@dataclass(kw_only=True, slots=True, eq=False)
class GenerateJob(Job):
    """One sequence to make."""

    prompt: list[int]
    shared: int = 0
    """The first tokens that other prompts have, too."""
    sampling: Sampling
    done: Callable[[Made], None]
    piece: Callable[[MadePiece], None] | None = None
    """Called with new text, if the request streams."""

    @property
    def tokens(self) -> int:
        """Of the prompt and of the longest answer."""
        return len(self.prompt) + self.sampling.max_tokens


@dataclass(kw_only=True, slots=True, eq=False)
class ScoreJob(Job):
    """Continuations to score."""

    prompts: list[list[int]]
    shared: int = 0
    """The first tokens that all of them, and those of other calls, have."""
    continuations: list[list[tuple[int, ...]]]
    done: Callable[[Scores], None]

    @property
    def sequences(self) -> int:
        """Prompts."""
        return len(self.prompts)

    @property
    def tokens(self) -> int:
        """Of all prompts and continuations."""
        prompts = sum(map(len, self.prompts))
        return prompts + sum(len(ids) for options in self.continuations for ids in options)


@dataclass(kw_only=True, slots=True, eq=False)
class PauseJob:
    """A request to stop."""

    mode: PauseMode
    done: Callable[[int], None]
    aborted: int = 0


@dataclass(kw_only=True, slots=True, eq=False)
class WeightsJob:
    """New weights, checked, on the CPU."""

    weights: Mapping[str, object]
    weight_version: str
    abandoned: threading.Event
    """Set when nobody waits any more: they must not be taken into use then."""
    done: Callable[[None], None]
    fail: Callable[[Exception], None]
