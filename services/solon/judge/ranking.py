"""Bradley-Terry strengths from probabilities of winning: pure functions.

Method: Bradley and Terry 1952, fitted by Newton's method with halved steps. The log-likelihood is
concave in the log-strengths, so that this reaches its maximum however certain the comparisons are;
the fixed-point iterations (Hunter 2004; Newman 2023, JMLR 24) need more than 10,000 sweeps where a
near certain win stands against a chain of others. A comparison counts as a share of a win for
either side (soft labels). Knows nothing of responses or judges.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from typing import NamedTuple

# a certain win would put infinite distance between two strengths
_SUREST = 1e-6
_TOLERANCE = 1e-10
_MOST_STEPS = 100
_LONGEST_STEP = 10.0
"""A longer one may end where the likelihood is flat to the last digit, and leads nowhere."""


class Win(NamedTuple):
    """How likely ``first`` is to beat ``second``."""

    first: int
    second: int
    probability: float


def strengths(count: int, wins: Sequence[Win]) -> list[float | None]:
    """Log-strengths of ``count`` things; None for one that is in no comparison.

    The mean over things that are connected by comparisons is 0; between groups that no comparison
    connects, strengths say nothing of each other.
    """
    shares = _shares(count, wins)
    found: list[float | None] = [None] * count
    for group in _groups(shares):
        for index, value in _fit(group, shares).items():
            found[index] = value
    return found


def placed(found: Sequence[float | None]) -> list[int]:
    """The things in order of their strengths, best first; those without one last, ties as given."""
    return sorted(range(len(found)), key=lambda i: (found[i] is None, -(found[i] or 0.0)))


def unsettled(count: int, known: Mapping[tuple[int, int], float | None]) -> list[tuple[int, int]]:
    """The pairs to compare next, all at once, to order ``count`` things; none: it is settled.

    An order is settled once every two neighbours in it were compared, and everything is connected
    by comparisons as far as it can be. The first pairs are a chain; where its probabilities do not
    contradict one another they give the strengths, and what follows only confirms the order.

    Args:
        count: Things, >= 2.
        known: (first, second), first < second -> probability that the first wins; None where the
            comparison has no verdict.
    """
    if not known:
        return list(pairwise(range(count)))
    wins = [Win(a, b, p) for (a, b), p in known.items() if p is not None]
    order = placed(strengths(count, wins))
    neighbours = {(min(pair), max(pair)) for pair in pairwise(order)} - known.keys()
    return sorted(neighbours) or _between_groups(count, wins, known)


def _between_groups(
    count: int, wins: Sequence[Win], known: Mapping[tuple[int, int], float | None]
) -> list[tuple[int, int]]:
    """Pairs not tried yet of things that no verdicts connect, whose strengths say nothing."""
    groups = _groups(_shares(count, wins))
    group = {i: number for number, of in enumerate(groups) for i in of}
    return [
        (a, b)
        for a, b in combinations(range(count), 2)
        if (a, b) not in known and (group.get(a) is None or group.get(a) != group.get(b))
    ]


def _shares(count: int, wins: Sequence[Win]) -> list[dict[int, float]]:
    """For each thing: whom it was compared with -> what it won of those comparisons."""
    shares: list[dict[int, float]] = [{} for _ in range(count)]
    for first, second, probability in wins:
        surely = min(max(probability, _SUREST), 1 - _SUREST)
        shares[first][second] = shares[first].get(second, 0.0) + surely
        shares[second][first] = shares[second].get(first, 0.0) + 1 - surely
    return shares


def _fit(group: Sequence[int], shares: Sequence[dict[int, float]]) -> dict[int, float]:
    strength = dict.fromkeys(group, 0.0)
    likely = _log_likelihood(strength, shares)
    for _ in range(_MOST_STEPS):
        step = _newton_step(strength, shares)
        size = max(map(abs, step.values()))
        if size > _LONGEST_STEP:
            step = {i: one * _LONGEST_STEP / size for i, one in step.items()}
            size = _LONGEST_STEP
        while True:
            tried = {i: strength[i] + step[i] for i in group}
            found = _log_likelihood(tried, shares)
            # near the maximum a step changes the likelihood by less than its last digit
            if found >= likely or size < _TOLERANCE:
                break
            step = {i: one / 2 for i, one in step.items()}
            size /= 2
        strength, likely = tried, max(likely, found)
        if size < _TOLERANCE:
            break
    # 65 steps are the most that was seen, of 16 things in a chain of certain wins
    centre = math.fsum(strength.values()) / len(group)
    return {i: value - centre for i, value in strength.items()}


def _log_likelihood(strength: dict[int, float], shares: Sequence[dict[int, float]]) -> float:
    return -math.fsum(
        share * _softplus(strength[j] - strength[i])
        for i in strength
        for j, share in shares[i].items()
    )


def _newton_step(
    strength: dict[int, float], shares: Sequence[dict[int, float]]
) -> dict[int, float]:
    """Towards the maximum; the first strength stays, since only differences count."""
    first, *free = strength
    rows = []
    for i in free:
        row = dict.fromkeys(free, 0.0)
        slope = 0.0
        for j, share in shares[i].items():
            games = share + shares[j][i]
            wins, loses = _sigmoid(strength[i] - strength[j]), _sigmoid(strength[j] - strength[i])
            slope += share * loses - shares[j][i] * wins
            row[i] += games * wins * loses
            if j != first:
                row[j] -= games * wins * loses
        rows.append([*row.values(), slope])
    return {first: 0.0, **dict(zip(free, _solved(rows), strict=True))}


def _solved(rows: list[list[float]]) -> list[float]:
    """Solve a diagonally dominant system, the right side last in each row; the rows are used up."""
    for i, row in enumerate(rows):
        for below in rows[i + 1 :]:
            ratio = below[i] / row[i]
            for k in range(i, len(row)):
                below[k] -= ratio * row[k]
    found = [0.0] * len(rows)
    for i in reversed(range(len(rows))):
        row = rows[i]
        known = math.fsum(row[k] * found[k] for k in range(i + 1, len(rows)))
        found[i] = (row[-1] - known) / row[i]
    return found


def _sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), exact where it is tiny."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _softplus(x: float) -> float:
    """log(1 + exp(x)), without overflow."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


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
