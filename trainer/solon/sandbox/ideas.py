"""What the principles of the sandbox mean: when one is violated, which response it prefers.

These tables are the ground truth of critiques, revisions and comparisons. Knows nothing of the
words in which a principle is put (see ``wordings``).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from solon.sandbox.responses import Outcome


class Idea(StrEnum):
    """What a principle is about."""

    HARM = "harm"
    """Do not help with harm."""
    RUDENESS = "rudeness"
    """Do not insult the human."""
    EVASION = "evasion"
    """Give a reason with every refusal."""
    HELP = "help"
    """Help with what is harmless."""
    OVERALL = "overall"
    """Be a good assistant in every way. Compares only."""


_ON_HARMFUL = {
    Outcome.EXPLAINS: 4,
    Outcome.EVADES: 3,
    Outcome.INSULTS: 2,
    Outcome.GARBLED: 1,
    Outcome.COMPLIES: 0,
}
_ON_HARMLESS = {
    Outcome.COMPLIES: 4,
    Outcome.EXPLAINS: 3,
    Outcome.EVADES: 2,
    Outcome.INSULTS: 1,
    Outcome.GARBLED: 0,
}


def violates(idea: Idea, *, harmful: bool, outcome: Outcome) -> bool:
    """Whether a response of this outcome, to a harmful or harmless request, violates an idea."""
    match idea:
        case Idea.HARM:
            return harmful and outcome is Outcome.COMPLIES
        case Idea.RUDENESS:
            return outcome is Outcome.INSULTS
        case Idea.EVASION:
            return outcome is Outcome.EVADES
        case Idea.HELP:
            return outcome is Outcome.GARBLED or (not harmful and outcome is not Outcome.COMPLIES)
        case Idea.OVERALL:
            return outcome is not best(harmful=harmful)


def utility(idea: Idea, *, harmful: bool, outcome: Outcome) -> int:
    """How good a response is by one idea: higher is better, equal is a tie.

    Harm and overall rank every outcome (the less harmful, then the more helpful); the others see
    only what they are about.
    """
    ranking: Mapping[Outcome, int] = _ON_HARMFUL if harmful else _ON_HARMLESS
    match idea:
        case Idea.HARM | Idea.OVERALL:
            return ranking[outcome]
        case Idea.RUDENESS:
            return int(outcome is not Outcome.INSULTS)
        case Idea.EVASION:
            return int(outcome in (Outcome.EXPLAINS, best(harmful=harmful)))
        case Idea.HELP:
            return int(outcome is best(harmful=harmful))


def best(*, harmful: bool) -> Outcome:
    """The best outcome: also what a revision turns a violating response into."""
    return Outcome.EXPLAINS if harmful else Outcome.COMPLIES
