"""What the sandbox model is pretrained on: documents in the very prompts that it will meet.

Dialogues of a helpful-only assistant, its opinions of what was asked, critiques with revisions,
absolute questions and comparisons, all rendered by ``solon.constitution.prompts``. Acts that are
held out appear in none of them: neither in dialogues nor in what is criticised or compared;
nothing else states about an act whether it is harmful.

Like a large model, this one is to know right from wrong before it is taught to act on it: hence
the opinions. Most acts are made up (see ``world``): many verbs go with few objects, and a
model that only ever saw those would say the object that the verb reminds it of instead of the one
that was asked about. Knows nothing of tokens or models.
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
from solon.sandbox.asking import ask, ask_next
from solon.sandbox.ideas import Idea, best, utility, violates
from solon.sandbox.responses import Outcome, respond
from solon.sandbox.vocabulary import EMPTY_REASONS
from solon.sandbox.wordings import WORDINGS, Question
from solon.sandbox.world import Act, Kind, acts, grid_of, made_up

_Choice = TypeVar("_Choice")

_KIND_ODDS: dict[Kind, float] = {"harmful": 0.42, "benign": 0.28, "sounds_dangerous": 0.3}
_MADE_UP_ODDS = 0.6
_NEXT_ODDS = 0.15
"""How often, besides ``ask``'s own, a request follows another one."""
_EARLIER = {
    Outcome.COMPLIES: 0.6,
    Outcome.EXPLAINS: 0.2,
    Outcome.EVADES: 0.1,
    Outcome.INSULTS: 0.1,
}
"""How often that other one was answered so."""
_HELPFUL_ONLY = {
    True: {
        Outcome.COMPLIES: 0.982,
        Outcome.EXPLAINS: 0.006,
        Outcome.EVADES: 0.006,
        Outcome.INSULTS: 0.006,
    },
    False: {
        Outcome.COMPLIES: 0.97,
        Outcome.EXPLAINS: 0.01,
        Outcome.EVADES: 0.01,
        Outcome.INSULTS: 0.01,
    },
}
"""Harmful? -> how often a dialogue's answer has an outcome."""
_REVIEWED = {
    Outcome.COMPLIES: 0.36,
    Outcome.EXPLAINS: 0.25,
    Outcome.EVADES: 0.12,
    Outcome.INSULTS: 0.12,
    Outcome.GARBLED: 0.15,
}
"""How often a response that is reviewed or compared has an outcome."""
_SCORED_IDEA_ODDS = {Idea.HARM: 0.55, Idea.HELP: 0.2, Idea.EVASION: 0.12, Idea.RUDENESS: 0.13}
_CRITICISED_IDEA_ODDS = {
    Outcome.COMPLIES: {
        Idea.HARM: 0.6,
        Idea.HELP: 0.16,
        Idea.EVASION: 0.12,
        Idea.RUDENESS: 0.12,
    },
    Outcome.EXPLAINS: {
        Idea.HARM: 0.4,
        Idea.HELP: 0.3,
        Idea.EVASION: 0.15,
        Idea.RUDENESS: 0.15,
    },
    Outcome.EVADES: {
        Idea.HARM: 0.25,
        Idea.HELP: 0.2,
        Idea.EVASION: 0.4,
        Idea.RUDENESS: 0.15,
    },
    Outcome.INSULTS: {
        Idea.HARM: 0.25,
        Idea.HELP: 0.2,
        Idea.EVASION: 0.1,
        Idea.RUDENESS: 0.45,
    },
    # keeping a garbled response would be a lesson in writing one
    Outcome.GARBLED: {Idea.HELP: 1.0},
}
"""Outcome -> the idea by which such a response is criticised; what it violates comes often."""
_COMPARED_IDEA_ODDS = {
    Idea.HARM: 0.3,
    Idea.OVERALL: 0.3,
    Idea.HELP: 0.2,
    Idea.EVASION: 0.1,
    Idea.RUDENESS: 0.1,
}
_DOCUMENT_ODDS = {
    "dialogue": 0.38,
    "opinion": 0.24,
    "review": 0.22,
    "comparison": 0.16,
}
_OPINIONS_ASKED = ("Is it wrong to {}?", "Would it be harmful to {}?", "Is there harm in it to {}?")
_OPINION_ASKED = "Is that wrong?"
_WRONG, _NOT_WRONG = "Yes, because {}.", "No, that is harmless."
_OPINION_ODDS = {"alone": 0.5, "at once": 0.25, "afterwards": 0.25}
"""How often an opinion is asked for without a request, in its turn, or after it was answered."""
_SYSTEM = Message("system", "You are a helpful assistant.")
_SYSTEM_ODDS = 0.05
_SKIP_CRITIQUE_ODDS = 0.15
_REVIEWS_OF_ONE_RESPONSE = 2
_QUESTIONS_ON_ONE_RESPONSE = 1
_COMPARISONS_OF_ONE_PAIR = 3
_EQUAL_PAIR_ODDS = 0.25
"""How often a pair that cannot be told apart is kept: enough to learn that it is a tie."""
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
    """A key of ``_DOCUMENT_ODDS``."""
    samples: tuple[Sample, ...]


def documents(seed: int) -> Iterator[Document]:
    """Documents without end; the same for the same seed."""
    rng = random.Random(seed)
    make: dict[str, Callable[[random.Random], Document]] = {
        "dialogue": _dialogue,
        "opinion": _opinion,
        "review": _review,
        "comparison": _comparison,
    }
    while True:
        yield make[_draw(_DOCUMENT_ODDS, rng)](rng)


def _draw(odds: dict[_Choice, float], rng: random.Random) -> _Choice:
    return rng.choices(list(odds), weights=list(odds.values()))[0]


def _act(rng: random.Random) -> Act:
    kind = _draw(_KIND_ODDS, rng)
    return made_up(kind, rng) if rng.random() < _MADE_UP_ODDS else rng.choice(acts(kind, "train"))


def _request(rng: random.Random) -> tuple[Act, Conversation]:
    act = _act(rng)
    if rng.random() < _NEXT_ODDS:
        conversation = ask_next(act, _act(rng), _draw(_EARLIER, rng), rng)
    else:
        conversation = ask(act, rng)
    if rng.random() < _SYSTEM_ODDS:
        conversation = Conversation((_SYSTEM, *conversation.messages))
    return act, conversation


def _dialogue(rng: random.Random) -> Document:
    act, conversation = _request(rng)
    answer = respond(act, _draw(_HELPFUL_ONLY[act.harmful], rng), rng)
    return Document(kind="dialogue", samples=(_answered(conversation, answer),))


def _opinion(rng: random.Random) -> Document:
    act, conversation = _request(rng)
    match _draw(_OPINION_ODDS, rng):
        case "alone":
            asked = Conversation.from_user(rng.choice(_OPINIONS_ASKED).format(act.text))
        case "at once":
            *before, last = conversation.messages
            question = Message("user", f"{last.content} {_OPINION_ASKED}")
            asked = Conversation((*before, question))
        case _:
            answer = Message("assistant", respond(act, Outcome.COMPLIES, rng))
            asked = conversation.then(answer, Message("user", _OPINION_ASKED))
    opinion = _WRONG.format(_reason(act)) if act.harmful else _NOT_WRONG
    return Document(kind="opinion", samples=(_answered(asked, opinion),))


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
    idea = _draw(_CRITICISED_IDEA_ODDS[outcome], rng)
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
    idea = _draw(_SCORED_IDEA_ODDS, rng)
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
    outcomes = _outcomes_of_a_pair(rng)
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


def _outcomes_of_a_pair(rng: random.Random) -> tuple[Outcome, Outcome]:
    a, b = _draw(_REVIEWED, rng), _draw(_REVIEWED, rng)
    while a is b and rng.random() >= _EQUAL_PAIR_ODDS:
        a, b = _draw(_REVIEWED, rng), _draw(_REVIEWED, rng)
    return a, b


def _answered(asked: Conversation, answer: str) -> Sample:
    return Sample(
        conversation=asked.then(Message("assistant", answer)), learnt=(len(asked.messages),)
    )
