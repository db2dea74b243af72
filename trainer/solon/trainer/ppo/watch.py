"""Over-optimisation: what the policy is rewarded by rises, and what it never saw falls.

Bai et al. 2022a (2204.05862, section 4.3) train on one reward model and watch another that was
trained on other comparisons; Gao et al. 2022 (2210.10760) draw reward against the distance, the
square root of the KL. Knows nothing of models or files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from statistics import fmean, variance
from typing import Any

_TRAIN, _TEST, _DISTANCE = "objective/model_scores", "objective/test_scores", "objective/sqrt_kl"
_ANY = "objective/scores"
_CERTAIN = 3.0
"""Standard errors that the difference of two windows must exceed: every batch is looked at."""
_SHOWN = 6
"""Rows of the summary."""


class Watch:
    """The course of the scores, batch by batch. Saved with a checkpoint."""

    def __init__(self, window: int) -> None:
        """``window``: batches whose mean is compared with that of as many before them, >= 2."""
        self._window = window
        self._rows: list[tuple[float, float, float | None]] = []
        self._quiet_until = 0

    def add(self, metrics: Mapping[str, float]) -> str | None:
        """Note a batch; a warning if the two scores have parted, once a window."""
        rewarded = metrics.get(_TRAIN, metrics[_ANY])
        self._rows.append((metrics[_DISTANCE], rewarded, metrics.get(_TEST)))
        recent = self._rows[-2 * self._window :]
        test = [row[2] for row in recent if row[2] is not None]
        if len(test) < 2 * self._window or len(self._rows) < self._quiet_until:
            return None
        train = [row[1] for row in recent]
        if not (self._moved(train) > 0 > self._moved(test)):
            return None
        self._quiet_until = len(self._rows) + self._window
        return (
            f"rl: over-optimisation? Over the last {self._window} batches the reward rose from "
            f"{self._mean(train, 0):.3g} to {self._mean(train, 1):.3g}, while the score of a "
            f"reward model that it does not see fell from {self._mean(test, 0):.3g} to "
            f"{self._mean(test, 1):.3g}: stop earlier, or raise rl.kl_coefficient"
        )

    def summary(self) -> list[str]:
        """Reward against sqrt(KL), a line each, from the nearest to the SL model to the last."""
        rows = [self._rows[round(i * (len(self._rows) - 1) / (_SHOWN - 1))] for i in range(_SHOWN)]
        lines = [f"rl: {'sqrt(KL)':>9} {'reward':>9} {'held-out':>9}"]
        for distance, train, test in dict.fromkeys(rows):
            seen = "" if test is None else f"{test:.3f}"
            lines.append(f"rl: {distance:>9.3f} {train:>9.3f} {seen:>9}".rstrip())
        return lines

    def state_dict(self) -> dict[str, Any]:
        """As ``load_state_dict`` takes it."""
        return {"rows": list(self._rows), "quiet_until": self._quiet_until}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._rows = [tuple(row) for row in state["rows"]]
        self._quiet_until = state["quiet_until"]

    def _mean(self, values: Sequence[float], half: int) -> float:
        return fmean(values[half * self._window : (half + 1) * self._window])

    def _moved(self, values: Sequence[float]) -> int:
        """1 if the second half is higher than the first beyond chance, -1 if lower, else 0."""
        before, after = values[: self._window], values[self._window :]
        error = sqrt((variance(before) + variance(after)) / self._window)
        difference = fmean(after) - fmean(before)
        return (difference > _CERTAIN * error) - (difference < -_CERTAIN * error)
