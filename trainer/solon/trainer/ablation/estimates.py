"""Means over seeds, what lies within chance, and the rule by which a finding is reproduced.

Pure: numbers in, numbers out. Knows nothing of runs, models or tables.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Cases = Mapping[str, float]
"""Case -> value, such as prompt -> 1 if the model complied. One case: a figure of a whole run."""
Verdict = Literal["reproduced", "not reproduced", "within noise", "not measured"]
Relation = Literal["lower", "higher", "same", "at_most", "at_least"]

_Z = 1.959964
"""Of a normal distribution's middle 95 %."""
_T = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)
"""Of Student's, for 1 to 9 degrees of freedom: 2 to 10 seeds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean over seeds with its 95 % interval."""

    mean: float
    half: float | None
    """Half of the interval; None if one figure is all there is."""
    seeds: Mapping[int, float]
    """Each seed's own mean."""
    cases: int
    """In all."""

    @property
    def low(self) -> float:
        """The interval's lower end."""
        return self.mean - (self.half or 0.0)

    @property
    def high(self) -> float:
        """The interval's upper end."""
        return self.mean + (self.half or 0.0)


def estimate(by_seed: Mapping[int, Cases]) -> Estimate | None:
    """The mean over seeds; None without any case.

    Half of the interval is the largest of three: over seeds (Student's t), which has all sources of
    chance in it but is unsure of itself with few seeds; over cases within the seeds (normal), which
    knows nothing of how another seed would train; and 3 / n, for what none of n cases shows may
    still be as frequent as that (the rule of three).
    """
    kept = {seed: list(cases.values()) for seed, cases in by_seed.items() if cases}
    if not kept:
        return None
    means = {seed: statistics.fmean(values) for seed, values in kept.items()}
    errors = [_squared_error(values) for values in kept.values()]
    return _estimate(means, errors, {seed: len(values) for seed, values in kept.items()})


def effect(ours: Mapping[int, Cases], theirs: Mapping[int, Cases]) -> Estimate | None:
    """The mean difference, ours - theirs, over the seeds that both have; None if there are none.

    Cases of the same name are paired, so that what makes a prompt hard for both cancels out. Where
    no case is in both (other prompts, other pairs) the means are compared.
    """
    means: dict[int, float] = {}
    errors: list[float] = []
    cases: dict[int, int] = {}
    for seed in sorted(ours.keys() & theirs.keys()):
        mine, other = ours[seed], theirs[seed]
        both = sorted(mine.keys() & other.keys())
        if both:
            differences = [mine[case] - other[case] for case in both]
            means[seed], error = statistics.fmean(differences), _squared_error(differences)
            cases[seed] = len(both)
        elif mine and other:
            values = list(mine.values()), list(other.values())
            means[seed] = statistics.fmean(values[0]) - statistics.fmean(values[1])
            error = sum(map(_squared_error, values))
            cases[seed] = min(map(len, values))
        else:
            continue
        errors.append(error)
    return _estimate(means, errors, cases) if means else None


def verdict(relation: Relation, found: Estimate | None, limit: float | None = None) -> Verdict:
    """Whether the data show a relation, show its contrary, or neither.

    Args:
        relation: What is expected.
        found: The difference (``lower``, ``higher``, ``same``), or the figure itself.
        limit: The largest difference that counts as none, or the bound.

    Returns:
        ``reproduced`` if the whole 95 % interval is as expected, ``not reproduced`` if the whole
        interval is not, ``within noise`` if a part is. A figure without an interval is noise.
    """
    if found is None:
        return "not measured"
    if found.half is None:
        return "within noise"
    bound = limit or 0.0
    if relation in ("lower", "at_most"):
        inside, outside = _below(relation, found, bound)
    elif relation in ("higher", "at_least"):
        inside, outside = _above(relation, found, bound)
    else:
        inside = -bound <= found.low and found.high <= bound
        outside = found.low > bound or found.high < -bound
    return "reproduced" if inside else "not reproduced" if outside else "within noise"


def together(verdicts: Sequence[Verdict]) -> Verdict:
    """Of several expectations: reproduced if all are, not if one is not."""
    order: tuple[Verdict, ...] = ("not reproduced", "not measured", "within noise")
    return next((worst for worst in order if worst in verdicts), "reproduced")


def _below(relation: Relation, found: Estimate, bound: float) -> tuple[bool, bool]:
    if relation == "lower":
        return found.high < 0, found.low > 0
    return found.high <= bound, found.low > bound


def _above(relation: Relation, found: Estimate, bound: float) -> tuple[bool, bool]:
    if relation == "higher":
        return found.low > 0, found.high < 0
    return found.low >= bound, found.high < bound


def _estimate(
    means: Mapping[int, float], errors: Sequence[float], cases: Mapping[int, int]
) -> Estimate:
    """``errors``: each seed's squared standard error over its cases."""
    total = sum(cases.values())
    halves: list[float] = []
    if len(means) > 1:
        spread = statistics.stdev(means.values()) / math.sqrt(len(means))
        halves.append(_T[len(means) - 2] * spread)
    if all(count > 1 for count in cases.values()):
        halves += [_Z * math.sqrt(sum(errors)) / len(errors), 3 / total]
    return Estimate(
        mean=statistics.fmean(means.values()),
        half=max(halves, default=None),
        seeds=dict(means),
        cases=total,
    )


def _squared_error(values: Sequence[float]) -> float:
    """Of their mean."""
    return statistics.variance(values) / len(values) if len(values) > 1 else 0.0
