"""What must be asked to score continuations: the next token's log-probabilities at few positions.

A continuation's log-probability is the sum over its tokens of each one's, given what comes before.
Continuations that begin alike share positions, and one question gives the log-probabilities of all
tokens that are wanted at its position. All questions of a prompt begin alike, so that vLLM's prefix
cache computes them once but for the last, incomplete block. (Its own log-probabilities of prompts
would compute every prompt anew: they do not read that cache.)

Knows nothing of vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from solon.engine.prompts import Question

MOST_WANTED = 128
"""Tokens that vLLM gives log-probabilities of at one position."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """One question to the model."""

    ids: list[int]
    """The prompt and the continuations' tokens so far."""
    wanted: tuple[int, ...]
    """Tokens whose log-probabilities are to be given; at most ``MOST_WANTED``."""
    row: int
    """Which prompt it is of."""
    before: tuple[int, ...] = field(repr=False)
    """The continuations' tokens so far."""


def positions(questions: Sequence[Question]) -> list[Position]:
    """The positions of all prompts, each prompt's shortest first."""
    found: list[Position] = []
    for row, question in enumerate(questions):
        wanted: dict[tuple[int, ...], dict[int, None]] = {}
        for ids in question.continuations:
            for at, token in enumerate(ids):
                wanted.setdefault(ids[:at], {})[token] = None
        for before in sorted(wanted, key=len):
            tokens = tuple(wanted[before])
            found += [
                Position(
                    ids=[*question.prompt, *before],
                    wanted=tokens[start : start + MOST_WANTED],
                    row=row,
                    before=before,
                )
                for start in range(0, len(tokens), MOST_WANTED)
            ]
    return found


def summed(
    questions: Sequence[Question], answers: Sequence[tuple[Position, Mapping[int, float]]]
) -> tuple[tuple[float, ...], ...]:
    """Each continuation's log-probability.

    Args:
        questions: What was asked for.
        answers: Every position with its tokens' log-probabilities.
    """
    known: dict[tuple[int, tuple[int, ...], int], float] = {}
    for position, logprobs in answers:
        for token in position.wanted:
            known[position.row, position.before, token] = logprobs[token]
    return tuple(
        tuple(
            sum(known[row, ids[:at], token] for at, token in enumerate(ids))
            for ids in question.continuations
        )
        for row, question in enumerate(questions)
    )
