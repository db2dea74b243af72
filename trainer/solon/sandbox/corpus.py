"""What the sandbox model is pretrained on: documents in the very prompts that it will meet.

Four kinds: dialogues of a helpful-only assistant, critiques with revisions, comparisons and
absolute questions. All prompts are rendered by ``solon.constitution.prompts``. Acts that are held
out appear in none of them: neither in dialogues nor in what is criticised or compared; nothing
else states about an act whether it is harmful. Knows nothing of tokens or models.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from solon.chat import Conversation, Message
from solon.constitution.prompts import (
    OPTION_A,
    OPTION_B,
    comparison_prompt,
    critique_prompt,
    revision_prompt,
    score_prompt,
)
from solon.constitution.types import AbsoluteQuestion, Constitution, Principle
from solon.sandbox.asking import ask
from solon.sandbox.ideas import Idea, best, utility, violates
from solon.sandbox.responses import Outcome, respond
from solon.sandbox.vocabulary import EMPTY_REASONS
from solon.sandbox.wordings import WORDINGS, Question
from solon.sandbox.world import Act, Kind, acts, grid_of

_Choice = TypeVar("_Choice")

_KIND_ODDS: dict[Kind, float] = {"harmful": 0.5, "benign": 0.2, "sounds_dangerous": 0.3}
_HELPFUL_ONLY = {
    True: {
        Outcome.COMPLIES: 0.97,
        Outcome.EXPLAINS: 0.01,
        Outcome.EVADES: 0.01,
        Outcome.INSULTS: 0.01,
    },
    False: {
        Outcome.COMPLIES: 0.93,
        Outcome.EXPLAINS: 0.025,
        Outcome.EVADES: 0.02,
        Outcome.INSULTS: 0.025,
    },
}
"""Harmful? -> how often a dialogue's answer has an outcome."""
_REVIEWED = {
    Outcome.COMPLIES: 0.42,
    Outcome.EXPLAINS: 0.28,
    Outcome.EVADES: 0.12,
    Outcome.INSULTS: 0.1,
    Outcome.GARBLED: 0.08,
}
"""How often a response that is reviewed or compared has an outcome."""
_IDEA_ODDS = {Idea.HARM: 0.55, Idea.HELP: 0.2, Idea.EVASION: 0.12, Idea.RUDENESS: 0.13}
_COMPARED_IDEA_ODDS = {
    Idea.HARM: 0.3,
    Idea.OVERALL: 0.3,
    Idea.HELP: 0.2,
    Idea.EVASION: 0.1,
    Idea.RUDENESS: 0.1,
}
_DOCUMENT_ODDS = {"dialogue": 0.28, "review": 0.36, "comparison": 0.36}
_SYSTEM = Message("system", "You are a helpful assistant.")
_SYSTEM_ODDS = 0.05
_SKIP_CRITIQUE_ODDS = 0.15
_REVIEWS_OF_ONE_RESPONSE = 2
_QUESTIONS_ON_ONE_RESPONSE = 1
_COMPARISONS_OF_ONE_PAIR = 3
_NO_EXEMPLARS = Constitution(name="corpus", version="1", principles=())


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A conversation that ends with the assistant, and which of its turns are to be learnt."""

    conversation: Conversation
    learnt: tuple[int, ...]
    """Indices of messages."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """Samples that begin alike, so that their common beginning need be read only once."""

    kind: str
    """``dialogue``, ``review`` or ``comparison``."""
    samples: tuple[Sample, ...]


def documents(seed: int) -> Iterator[Document]:
    """Documents without end; the same for the same seed."""
    rng = random.Random(seed)
    make: dict[str, Callable[[random.Random], Document]] = {
        "dialogue": _dialogue,
        "review": _review,
        "comparison": _comparison,
    }
    while True:
        yield make[_draw(_DOCUMENT_ODDS, rng)](rng)


def _draw(odds: dict[_Choice, float], rng: random.Random) -> _Choice:
    return rng.choices(list(odds), weights=list(odds.values()))[0]


def _request(rng: random.Random) -> tuple[Act, Conversation]:
    act = rng.choice(acts(_draw(_KIND_ODDS, rng), "train"))
    conversation = ask(act, rng)
    if rng.random() < _SYSTEM_ODDS:
        conversation = Conversation((_SYSTEM, *conversation.messages))
    return act, conversation


def _dialogue(rng: random.Random) -> Document:
    act, conversation = _request(rng)
    answer = respond(act, _draw(_HELPFUL_ONLY[act.harmful], rng), rng)
    return Document(kind="dialogue", samples=(_answered(conversation, answer),))


def _review(rng: random.Random) -> Document:
    act, conversation = _request(rng)
    outcome = _draw(_REVIEWED, rng)
    response = respond(act, outcome, rng)
    critiqued = [
        _revised(act, conversation, outcome, response, rng) for _ in range(_REVIEWS_OF_ONE_RESPONSE)
    ]
    scored = [
        _scored(act, conversation, outcome, response, rng)
        for _ in range(_QUESTIONS_ON_ONE_RESPONSE)
    ]
    return Document(kind="review", samples=(*critiqued, *scored))


def _revised(
    act: Act, conversation: Conversation, outcome: Outcome, response: str, rng: random.Random
) -> Sample:
    idea = _draw(_IDEA_ODDS, rng)
    wordings = WORDINGS[idea]
    principle = Principle(
        id=idea,
        critique_request=rng.choice(wordings.critique_requests),
        revision_request=rng.choice(wordings.revision_requests),
    )
    if violates(idea, harmful=act.harmful, outcome=outcome):
        critique = wordings.found.format(act=act.text, reason=_reason(act))
        revision = respond(act, best(harmful=act.harmful), rng)
    else:
        critique, revision = wordings.nothing_found, response
    if rng.random() < _SKIP_CRITIQUE_ODDS:
        asked = revision_prompt(_NO_EXEMPLARS, principle, conversation, response, None)
        return _answered(asked, revision)
    asked = revision_prompt(_NO_EXEMPLARS, principle, conversation, response, critique)
    first = len(critique_prompt(_NO_EXEMPLARS, principle, conversation, response).messages)
    answered = asked.then(Message("assistant", revision))
    return Sample(conversation=answered, learnt=(first, len(answered.messages) - 1))


def _reason(act: Act) -> str:
    return grid_of(act.category).reason if act.harmful else EMPTY_REASONS[0]


def _scored(
    act: Act, conversation: Conversation, outcome: Outcome, response: str, rng: random.Random
) -> Sample:
    idea = _draw(_IDEA_ODDS, rng)
    question: Question = rng.choice(WORDINGS[idea].questions)
    principle = Principle(
        id=idea,
        absolute_question=AbsoluteQuestion(text=question.text, answers={"Yes": 0.0, "No": 1.0}),
    )
    violated = violates(idea, harmful=act.harmful, outcome=outcome)
    good = "No" if question.bad == "Yes" else "Yes"
    return _answered(
        score_prompt(principle, conversation, response), question.bad if violated else good
    )


def _comparison(rng: random.Random) -> Document:
    act, conversation = _request(rng)
    outcomes = _draw(_REVIEWED, rng), _draw(_REVIEWED, rng)
    response_a, response_b = (respond(act, outcome, rng) for outcome in outcomes)
    samples = []
    for _ in range(_COMPARISONS_OF_ONE_PAIR):
        idea = _draw(_COMPARED_IDEA_ODDS, rng)
        principle = Principle(
            id=idea, comparison_instruction=rng.choice(WORDINGS[idea].comparisons)
        )
        value_a, value_b = (
            utility(idea, harmful=act.harmful, outcome=outcome) for outcome in outcomes
        )
        a_is_better = value_a > value_b if value_a != value_b else rng.random() < 0.5
        asked = comparison_prompt(_NO_EXEMPLARS, principle, conversation, response_a, response_b)
        samples.append(_answered(asked, OPTION_A if a_is_better else OPTION_B))
    return Document(kind="comparison", samples=tuple(samples))


def _answered(asked: Conversation, answer: str) -> Sample:
    return Sample(
        conversation=asked.then(Message("assistant", answer)), learnt=(len(asked.messages),)
    )
