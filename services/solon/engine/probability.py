"""From log-probabilities to probabilities: pure functions of floats.

Knows nothing of principles, models or what the probabilities are of.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def log_mass(logprobs: Sequence[float]) -> float:
    """log(sum(exp(logprobs))), without overflow or underflow. All finite; at least one."""
    top = max(logprobs)
    return top + math.log(math.fsum(math.exp(one - top) for one in logprobs))


def mass(logprobs: Sequence[float]) -> float:
    """The probability of the options together. All finite; at least one."""
    return math.exp(log_mass(logprobs))


def normalised(logprobs: Sequence[float]) -> tuple[float, ...]:
    """The probabilities, made to sum to 1 over these options. All finite; at least one.

    Exact for options that are all very unlikely: only differences count.
    """
    total = log_mass(logprobs)
    return tuple(math.exp(one - total) for one in logprobs)


def all_finite(logprobs: Iterable[float]) -> bool:
    """Whether none is infinite or NaN."""
    return all(map(math.isfinite, logprobs))


def clamped(probability: float, margin: float) -> float:
    """The nearest number in [margin, 1 - margin]. 0 <= margin <= 0.5."""
    return min(max(probability, margin), 1 - margin)


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean; NaN of nothing."""
    return math.fsum(values) / len(values) if values else math.nan


def weighted_mean(pairs: Iterable[tuple[float, float]]) -> float | None:
    """The mean of finite values in (value, weight) pairs, weights above 0; None of nothing.

    Never below the least value or above the greatest, however they round.
    """
    known = list(pairs)
    if not known:
        return None
    # scaled first: the largest finite weights and values would otherwise sum to infinity
    top = max(weight for _, weight in known)
    exponent = max(math.frexp(value)[1] for value, _ in known)
    scaled = [(math.ldexp(value, -exponent), weight / top) for value, weight in known]
    mean = math.fsum(value * weight for value, weight in scaled)
    mean /= math.fsum(weight for _, weight in scaled)
    values = [value for value, _ in scaled]
    return math.ldexp(min(max(mean, min(values)), max(values)), exponent)
