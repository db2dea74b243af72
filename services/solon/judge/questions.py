"""What a judge is asked, and in which manner. Knows nothing of models or gRPC."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

from solon.chat import Conversation
from solon.constitution import Constitution, Principle
from solon.engine.base import Sampling


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What responses are judged as answers to, and by what."""

    constitution: Constitution
    """Gives the exemplars that go first."""
    principles: tuple[Principle, ...]
    """At least one; each with what the call needs."""
    conversation: Conversation
    """Ends with the user."""


class Prompts(Sequence[Conversation]):
    """Prompts that are made when they are looked at, and not kept.

    Those of one request are up to tens of thousands, each with all of its conversation: together
    they could be thousands of times as large as the request, and the first may be refused.
    """

    def __init__(self, makers: Sequence[Callable[[], Conversation]]) -> None:
        """``makers``: one a prompt."""
        self._makers = makers

    def __len__(self) -> int:
        """How many there are."""
        return len(self._makers)

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> Prompts: ...
    def __getitem__(self, index: int | slice) -> Conversation | Prompts:
        """One, made anew, or some."""
        if isinstance(index, slice):
            return Prompts(self._makers[index])
        return self._makers[index]()


@dataclass(frozen=True, kw_only=True, slots=True)
class ChainOfThought:
    """Reason before answering."""

    chains: int = 1
    """Chains sampled and averaged per principle and order. >= 1."""
    clamp: float = 0.4
    """Probabilities are clamped to [clamp, 1 - clamp]. 0 to 0.5."""
    sampling: Sampling
    """How chains are drawn; each has a seed derived from its seed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manner:
    """How a judge compares."""

    both_orders: bool = True
    """Whether each pair is also shown swapped, which cancels position bias."""
    min_option_mass: float = 0.0
    """Least probability that the options must hold together. 0 to 1; 0 is off."""
    chain_of_thought: ChainOfThought | None = None
