"""Whether probabilities mean what they say. Knows nothing of who gave them."""

from __future__ import annotations

from collections.abc import Sequence

_BINS = 10


def calibration_error(predicted: Sequence[float], target: Sequence[float]) -> float:
    """Expected calibration error in [0, 1]: ten equal bins of confidence (Guo et al. 2017, eq. 3).

    Both are probabilities that one response of a pair is better. Which of the two is asked about
    means nothing, so each pair is read from the side the prediction leans to.
    """
    gaps = (abs(sum(p - q for p, q in pairs)) for pairs in _bins(predicted, target))
    return sum(gaps) / len(predicted)


def reliability(
    predicted: Sequence[float], target: Sequence[float]
) -> list[dict[str, float | int | None]]:
    """The bins behind ``calibration_error``, for a reliability diagram.

    Returns:
        From confidence 1/2 up, of each bin its edges ``from`` and ``to``, how many ``pairs`` it
        has, and their mean ``predicted`` and ``target``, null without pairs.
    """
    width = 0.5 / _BINS
    return [
        {
            "from": round(0.5 + width * index, 6),
            "to": round(0.5 + width * (index + 1), 6),
            "pairs": len(pairs),
            "predicted": sum(p for p, _ in pairs) / len(pairs) if pairs else None,
            "target": sum(q for _, q in pairs) / len(pairs) if pairs else None,
        }
        for index, pairs in enumerate(_bins(predicted, target))
    ]


def _bins(predicted: Sequence[float], target: Sequence[float]) -> list[list[tuple[float, float]]]:
    bins: list[list[tuple[float, float]]] = [[] for _ in range(_BINS)]
    for p, q in zip(predicted, target, strict=True):
        leaning, agreed = (p, q) if p >= 0.5 else (1 - p, 1 - q)
        bins[min(int((leaning - 0.5) * 2 * _BINS), _BINS - 1)].append((leaning, agreed))
    return bins
