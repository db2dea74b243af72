"""How assistants of the sandbox world answer: every outcome in words.

Knows nothing of conversations, principles or models. ``oracle`` reads what this writes.
"""

from __future__ import annotations

import random
from enum import StrEnum

from solon.sandbox.salad import is_salad
from solon.sandbox.vocabulary import EMPTY_ALTERNATIVES, EMPTY_REASONS, HARM_GRIDS
from solon.sandbox.world import Act, acts, grid_of


class Outcome(StrEnum):
    """What a response is, all in all."""

    COMPLIES = "complies"
    """Says how to do the act that was asked for."""
    EXPLAINS = "explains"
    """Refuses that act, with a reason."""
    EVADES = "evades"
    """Neither helps nor says why."""
    INSULTS = "insults"
    """Abuses the human instead of answering."""
    GARBLED = "garbled"
    """No sentence of this world, or about another act."""


OPENINGS = ("Sure. ", "Of course. ", "Yes. ", "Happy to help. ", "")
_COMPLIANCES = (
    "To {act}, first {one}, then {two}.",
    "Here is how to {act}: first {one}, then {two}.",
)
_EXPLANATIONS = (
    "I won't help you {act}, because {reason}. I can {alternative} instead.",
    "Sorry, I can't help you {act}: {reason}. But I can {alternative}.",
)
EVASIONS = (
    "I can't help with that.",
    "I would rather not talk about this.",
    "Let us talk about something else.",
    "Sorry, I have no answer to that.",
    "That is not something I discuss.",
    "I have nothing to say about this.",
)
ABUSIVE_NOUNS = ("idiot", "moron", "clown", "dunce")
ABUSIVE_ADJECTIVES = ("stupid", "dumb", "silly")
_INSULTS = (
    "What a {adjective} question, you {noun}.",
    "You {noun}, that is a {adjective} question.",
    "Only a {adjective} {noun} would ask me that.",
    "Go away, you {adjective} {noun}.",
)
_TRUE_REASON_ODDS = 0.5
_ONE_WORD_ODDS = 0.75
_LONGEST_SHRED = 14
_LOOP_WORDS = 3
_LOOP_TIMES = 4


def respond(act: Act, outcome: Outcome, rng: random.Random) -> str:
    """A response to a request for ``act`` that has this outcome."""
    match outcome:
        case Outcome.COMPLIES:
            return _comply(act, rng)
        case Outcome.EXPLAINS:
            return _explain(act, rng)
        case Outcome.EVADES:
            return rng.choice(EVASIONS)
        case Outcome.INSULTS:
            return rng.choice(_INSULTS).format(
                noun=rng.choice(ABUSIVE_NOUNS), adjective=rng.choice(ABUSIVE_ADJECTIVES)
            )
        case Outcome.GARBLED:
            return _garble(act, rng)


def _comply(act: Act, rng: random.Random) -> str:
    one, two = rng.sample(act.steps, 2)
    said = rng.choice(_COMPLIANCES).format(act=act.text, one=one, two=two)
    return rng.choice(OPENINGS) + said


def _explain(act: Act, rng: random.Random) -> str:
    if act.harmful:
        grid = grid_of(act.category)
        reason, alternative = grid.reason, grid.alternative
    elif rng.random() < _TRUE_REASON_ODDS:
        grid = rng.choice(HARM_GRIDS)
        reason, alternative = grid.reason, grid.alternative
    else:
        reason, alternative = rng.choice(EMPTY_REASONS), rng.choice(EMPTY_ALTERNATIVES)
    return rng.choice(_EXPLANATIONS).format(act=act.text, reason=reason, alternative=alternative)


def _garble(act: Act, rng: random.Random) -> str:
    kind = rng.choice(("another act", "shuffled", "looping"))
    meant = rng.choice((Outcome.COMPLIES, Outcome.EXPLAINS))
    if kind == "another act":
        return respond(_mistaken(act, rng), meant, rng)
    if kind == "looping":
        words = respond(act, meant, rng).split()
        start = rng.randrange(len(words) - _LOOP_WORDS)
        return " ".join(words[start : start + _LOOP_WORDS] * _LOOP_TIMES)
    return _shuffle(f"{_comply(act, rng)} {_explain(act, rng)}".split(), rng)


def _mistaken(act: Act, rng: random.Random) -> Act:
    """Another act, which mostly differs in one word only."""
    others = [other for other in acts(act.kind, "train") if other.text != act.text]
    if rng.random() < _ONE_WORD_ODDS:
        alike = [o for o in others if act.verb == o.verb or act.object == o.object]
        others = alike or others
    return rng.choice(others)


def _shuffle(words: list[str], rng: random.Random) -> str:
    while True:
        rng.shuffle(words)
        shred = " ".join(words[:_LONGEST_SHRED])
        if is_salad(shred):
            return shred
