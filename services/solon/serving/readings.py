"""Questions with a fixed set of answers: what log-probabilities, or a model's words, say to them.

What the judge's scores and the critic's assessments have in common (``asking`` asks). An answer
that cannot be read is a typed outcome with a reason; it never becomes a default. Knows nothing of
roles or gRPC.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import overload

from solon.chat import Conversation
from solon.constitution import AbsoluteQuestion
from solon.engine import probability


class NoVerdict(Enum):
    """Why there is no verdict."""

    LOW_OPTION_MASS = "low_option_mass"
    """The options together are too unlikely: the model meant to say something else."""
    NOT_FINITE = "not_finite"
    """A log-probability was not a finite number."""
    UNREADABLE_ANSWER = "unreadable_answer"
    """A chain of thought was cut short, or had no words but an answer: none follows from it. Or an
    answer that was heard, for want of log-probabilities, was none of the options."""
    FILTERED = "filtered"
    """A filter in front of the model withheld what it said."""
    NO_PRINCIPLE = "no_principle"
    """No principle gave a verdict."""


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
class Reading:
    """What a model says to a question."""

    value: float | None
    """Expectation of the answers' values; None where ``no_verdict`` is set."""
    probabilities: Mapping[str, float]
    """Answer -> probability, summing to 1; empty where the log-probabilities are not finite, or no
    answer was heard."""
    option_mass: float
    """Probability of all answers together; NaN where the log-probabilities are not finite. Of an
    answer that was heard 1, of none 0."""
    no_verdict: NoVerdict | None
    logprobs: Mapping[str, float]
    """Answer -> natural log-probability; empty where none are told."""


def read(
    question: AbsoluteQuestion, logprobs: Sequence[float], *, min_option_mass: float
) -> Reading:
    """The expectation over the answers of a question (RLAIF, arXiv 2309.00267, section 2.4).

    Args:
        question: What was asked.
        logprobs: Natural log-probability of each of its answers, in their order.
        min_option_mass: Least probability that the answers must hold together. 0 to 1; 0 is off.
    """
    no_verdict = refusal(logprobs, min_option_mass)
    told = dict(zip(question.answers, logprobs, strict=True))
    if no_verdict is NoVerdict.NOT_FINITE:
        return Reading(
            value=None,
            probabilities={},
            option_mass=float("nan"),
            no_verdict=no_verdict,
            logprobs=told,
        )
    probabilities = dict(zip(question.answers, probability.normalised(logprobs), strict=True))
    expected = probability.weighted_mean((question.answers[a], p) for a, p in probabilities.items())
    return Reading(
        value=expected if no_verdict is None else None,
        probabilities=probabilities,
        option_mass=probability.mass(logprobs),
        no_verdict=no_verdict,
        logprobs=told,
    )


def heard(question: AbsoluteQuestion, answer: str | NoVerdict) -> Reading:
    """What an answer in words says, or that there is none, and why."""
    if isinstance(answer, NoVerdict):
        return Reading(
            value=None,
            probabilities={},
            option_mass=0.0,
            no_verdict=answer,
            logprobs={},
        )
    return Reading(
        value=question.answers[answer],
        probabilities={one: float(one == answer) for one in question.answers},
        option_mass=1.0,
        no_verdict=None,
        logprobs={},
    )


def refusal(logprobs: Sequence[float], min_option_mass: float) -> NoVerdict | None:
    """Why no verdict follows from these log-probabilities; None if one does."""
    if not probability.all_finite(logprobs):
        return NoVerdict.NOT_FINITE
    if probability.mass(logprobs) < min_option_mass:
        return NoVerdict.LOW_OPTION_MASS
    return None
