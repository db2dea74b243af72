"""Whether probabilities mean what they say. Knows nothing of who gave them."""

from __future__ import annotations

from collections.abc import Sequence

_BINS = 10


def calibration_error(predicted: Sequence[float], target: Sequence[float]) -> float:
    """Expected calibration error in [0, 1]: ten equal bins of confidence (Guo et al. 2017, eq. 3).

    Both are probabilities that one response of a pair is better. Which of the two is asked about
    means nothing, so each pair is read from the side the prediction leans to.
    """
    bins: list[list[tuple[float, float]]] = [[] for _ in range(_BINS)]
    for p, q in zip(predicted, target, strict=True):
        leaning, agreed = (p, q) if p >= 0.5 else (1 - p, 1 - q)
        bins[min(int((leaning - 0.5) * 2 * _BINS), _BINS - 1)].append((leaning, agreed))
    gaps = (abs(sum(p - q for p, q in pairs)) for pairs in bins)
    return sum(gaps) / len(predicted)
