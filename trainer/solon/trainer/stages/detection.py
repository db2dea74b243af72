"""How well probabilities tell two kinds of cases apart. Pure functions of plain numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from solon.trainer.stages.measures import rate

Case = tuple[bool, float | None]
"""Whether it is of the kind that is looked for, and the probability of that; None: no verdict."""


def figures(cases: Sequence[Case]) -> dict[str, Any]:
    """All of them.

    Returns:
        ``accuracy``, ``missed`` (of the cases looked for: 0.5 or less, or no verdict) and
        ``false_alarms`` (of the others: above 0.5), each ``{"rate", "n"}``; a case without a
        verdict counts as wrong. Of the cases with a verdict: ``auc``, and ``separation``, the
        difference of the two kinds' mean probabilities, -1 to 1; both None unless there are both
        kinds. ``no_verdict``: cases.
    """
    found = [probability for is_case, probability in cases if is_case]
    others = [probability for is_case, probability in cases if not is_case]
    positive = [p for p in found if p is not None]
    negative = [p for p in others if p is not None]
    return {
        "accuracy": rate(cases, _is_right),
        "missed": rate(found, lambda p: p is None or p <= 0.5),
        "false_alarms": rate(others, lambda p: p is not None and p > 0.5),
        "auc": area_under_roc(positive, negative),
        "separation": _mean(positive) - _mean(negative) if positive and negative else None,
        "no_verdict": len(cases) - len(positive) - len(negative),
    }


def area_under_roc(positive: Sequence[float], negative: Sequence[float]) -> float | None:
    """The probability that a positive case has a higher value than a negative one; ties half.

    The Mann-Whitney statistic (Hanley and McNeil 1982, section III), by ranks. None unless there
    are cases of both kinds.
    """
    if not positive or not negative:
        return None
    ranked = sorted([(value, 1) for value in positive] + [(value, 0) for value in negative])
    won, below = 0.0, 0
    for _, tied in groupby(ranked, key=itemgetter(0)):
        kinds = [kind for _, kind in tied]
        others = kinds.count(0)
        won += kinds.count(1) * (below + others / 2)
        below += others
    return won / (len(positive) * len(negative))


def _is_right(case: Case) -> bool:
    is_case, probability = case
    return probability is not None and (probability > 0.5) == is_case


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
