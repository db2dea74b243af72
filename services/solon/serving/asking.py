"""Questions put to a model: its answers read from log-probabilities, or, without any, heard.

An engine that tells no log-probabilities, such as one before a hosted model, is asked the same and
answers in words. What it says counts if it begins with one of the answers, as a log-probability
would be that of a reply which begins so; then it is all that is known: probability 1. Nothing else
counts: no answer is guessed from what a model says. Knows nothing of roles or gRPC.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from solon.chat import Conversation
from solon.constitution import AbsoluteQuestion
from solon.engine.base import FinishReason, Paused, Sampling
from solon.serving import readings
from solon.serving.readings import NoVerdict, Reading
from solon.serving.session import Session

GREEDY = Sampling(temperature=0, max_tokens=16)
"""How answers in words are drawn: the likeliest, of no more than a few words."""

_DECORATION = re.compile(r"[\s*_#>`\"']+")
"""What may stand around an answer: blanks, quotes, Markdown."""


async def ask(
    session: Session,
    questions: Sequence[AbsoluteQuestion],
    prompts: Sequence[Conversation],
    *,
    min_option_mass: float,
) -> list[Reading]:
    """The answers to questions with fixed answers, each from a prompt of its own.

    Args:
        session: The request's.
        questions: One a prompt.
        prompts: Those that share a prefix side by side.
        min_option_mass: As for ``readings.read``; an answer that was heard has all there is.

    Raises:
        WeightVersionMismatch: The weights were replaced meanwhile.
        EngineError: As ``Engine.score``, or ``Engine.generate`` where answers are heard.
    """
    answers = [tuple(question.answers) for question in questions]
    if session.tells_logprobs:
        scored = await session.score(prompts, answers)
        return [
            readings.read(question, logprobs, min_option_mass=min_option_mass)
            for question, logprobs in zip(questions, scored.logprobs, strict=True)
        ]
    heard = await hear(session, prompts, answers)
    return [
        readings.heard(question, answer) for question, answer in zip(questions, heard, strict=True)
    ]


async def hear(
    session: Session, prompts: Sequence[Conversation], options: Sequence[Sequence[str]]
) -> list[str | NoVerdict]:
    """What the model answers to each prompt: one of its options, or why it is none.

    Raises:
        Paused: Paused with ``PauseMode.ABORT`` meanwhile.
        WeightVersionMismatch: The weights were replaced meanwhile.
        EngineError: As ``Engine.generate``.
    """
    made = await session.generate_what_passes([(prompt, GREEDY) for prompt in prompts])
    if any(one is not None and one.finish_reason is FinishReason.ABORT for one in made):
        raise Paused("generation was paused while this request ran")
    return [
        NoVerdict.FILTERED
        if one is None
        else option_of(one.text, some) or NoVerdict.UNREADABLE_ANSWER
        for one, some in zip(made, options, strict=True)
    ]


def option_of(said: str, options: Sequence[str]) -> str | None:
    """The option that a reply begins with, the longest if there are several; None: it does not."""
    start = _DECORATION.match(said)
    text = said[start.end() :] if start else said
    begun = [option for option in options if _begins(text, option)]
    return max(begun, key=len, default=None)


def _begins(text: str, option: str) -> bool:
    """Whether a text begins with an option that is not a part of a longer word."""
    follows = text[len(option) : len(option) + 1]
    return text.startswith(option) and not (option[-1:].isalnum() and follows.isalnum())
