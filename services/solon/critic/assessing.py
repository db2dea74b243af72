"""Whether there is something to criticise, asked before anything is written.

Some small models cannot see harm in their own answers (arXiv 2503.17365), and a critique that is
asked for is written whether or not there is a reason for one. Here the critic says first how
probable it is that there is one. Knows nothing of critiques, revisions or gRPC.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from solon.chat import Conversation
from solon.constitution import AbsoluteQuestion, Principle
from solon.constitution.prompts import assessment_prompt, assessment_question
from solon.engine.base import Timing, Usage
from solon.serving import asking
from solon.serving.readings import NoVerdict, Prompts, Reading
from solon.serving.session import Session


@dataclass(frozen=True, kw_only=True, slots=True)
class Assessment:
    """What the critic makes of a response by one principle."""

    principle: Principle
    probability: float | None
    """That there is something to criticise, 0 to 1; None where ``no_verdict`` is set."""
    logprobs: Mapping[str, float]
    """Answer -> natural log-probability; empty where none are told."""
    option_mass: float
    """Probability of all answers together; NaN where a log-probability is not finite."""
    no_verdict: NoVerdict | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Assessed:
    """What the critic makes of a response, and what it cost."""

    probability: float | None
    """Highest of the principles' probabilities; None if none has a verdict."""
    no_verdict: NoVerdict | None
    principles: tuple[Assessment, ...]
    weight_version: str
    usage: Usage
    timing: Timing


async def assess(
    session: Session,
    principles: Sequence[Principle],
    conversation: Conversation,
    response: str,
    *,
    min_option_mass: float,
) -> tuple[Assessment, ...]:
    """Ask by every principle at once; one prompt each, which share all but the question.

    Raises:
        WeightVersionMismatch: The weights were replaced meanwhile.
        EngineError: As ``Engine.score``.
    """
    questions = [assessment_question(principle) for principle in principles]
    prompts = Prompts([partial(assessment_prompt, p, conversation, response) for p in principles])
    found = await asking.ask(session, questions, prompts, min_option_mass=min_option_mass)
    return tuple(
        _assessment(principle, question, reading)
        for principle, question, reading in zip(principles, questions, found, strict=True)
    )


def _assessment(principle: Principle, question: AbsoluteQuestion, reading: Reading) -> Assessment:
    return Assessment(
        principle=principle,
        probability=None if reading.value is None else _shortfall(question, reading.value),
        logprobs=reading.logprobs,
        option_mass=reading.option_mass,
        no_verdict=reading.no_verdict,
    )


def _shortfall(question: AbsoluteQuestion, value: float) -> float:
    """How far a value is from the best answer's, as a part of the way to the worst one's."""
    best, worst = max(question.answers.values()), min(question.answers.values())
    # scaled first: the largest finite values differ by more than a float can hold
    exponent = max(math.frexp(best)[1], math.frexp(worst)[1])
    best, worst, value = (math.ldexp(one, -exponent) for one in (best, worst, value))
    return (best - value) / (best - worst)
