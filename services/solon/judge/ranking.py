"""Bradley-Terry strengths from probabilities of winning: pure functions.

Method: Bradley and Terry 1952, fitted by the fixed-point iteration of Newman 2023 (Efficient
computation of rankings from pairwise comparisons, JMLR 24, eq. 10), which has the maximum that the
MM iteration of Hunter 2004 has and reaches it in far fewer steps. A comparison counts as a share of
a win for either side (soft labels). Knows nothing of responses or judges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

# a certain win would put infinite distance between two strengths
_SUREST = 1e-6
_TOLERANCE = 1e-10
_MOST_SWEEPS = 10_000


class Win(NamedTuple):
    """How likely ``first`` is to beat ``second``."""

    first: int
    second: int
    probability: float


def strengths(count: int, wins: Sequence[Win]) -> list[float | None]:
    """Log-strengths of ``count`` things; None for one that is in no comparison.

    The mean over things that are connected by comparisons is 0; between groups that no comparison
    connects, strengths say nothing of each other.

    Raises:
        ArithmeticError: No convergence in 10,000 sweeps.
    """
    shares: list[dict[int, float]] = [{} for _ in range(count)]
    for first, second, probability in wins:
        surely = min(max(probability, _SUREST), 1 - _SUREST)
        shares[first][second] = shares[first].get(second, 0.0) + surely
        shares[second][first] = shares[second].get(first, 0.0) + 1 - surely
    found: list[float | None] = [None] * count
    for group in _groups(shares):
        for index, value in _fit(group, shares).items():
            found[index] = value
    return found


def _fit(group: Sequence[int], shares: Sequence[dict[int, float]]) -> dict[int, float]:
    strength = dict.fromkeys(group, 1.0)
    for _ in range(_MOST_SWEEPS):
        before = dict(strength)
        for i in group:
            won = math.fsum(
                share * strength[j] / (strength[i] + strength[j]) for j, share in shares[i].items()
            )
            lost = math.fsum(shares[j][i] / (strength[i] + strength[j]) for j in shares[i])
            strength[i] = won / lost
        centre = math.fsum(map(math.log, strength.values())) / len(group)
        strength = {i: value / math.exp(centre) for i, value in strength.items()}
        if all(abs(math.log(strength[i] / before[i])) < _TOLERANCE for i in group):
            return {i: math.log(value) for i, value in strength.items()}
    raise ArithmeticError(f"Bradley-Terry: no convergence in {_MOST_SWEEPS} sweeps")


def _groups(shares: Sequence[dict[int, float]]) -> list[list[int]]:
    """What comparisons connect, each group in ascending order; none of a single thing."""
    groups: list[list[int]] = []
    seen: set[int] = set()
    for start in range(len(shares)):
        if start in seen or not shares[start]:
            continue
        group, reached = [start], {start}
        for i in group:
            new = shares[i].keys() - reached
            group.extend(new)
            reached |= new
        seen |= reached
        groups.append(sorted(group))
    return groups
