"""What a judge is asked, and in which manner. Knows nothing of models or gRPC."""

from __future__ import annotations

from dataclasses import dataclass

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
