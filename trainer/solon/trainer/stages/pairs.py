"""Judged pairs as tokens, and how well scores of theirs agree with the judge.

What the stages that learn from preferences share, ``reward`` and ``dpo``. Knows nothing of models,
of how a loss is made smaller, or of the run directory's layout.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from solon.constitution import derive_seed
from solon.trainer.errors import RunDirectoryError
from solon.trainer.stages.calibration import calibration_error, reliability
from solon.trainer.stages.modeling import ChatEncoder, Messages, Turn, read_columns
from solon.trainer.training import Report


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two responses to one prompt, and the judge's probability that ``chosen`` is better."""

    chosen: Turn
    rejected: Turn
    probability: float
    half: int
    """0 or 1, by the prompt's content alone: two models that are trained on pairs of different
    halves have no prompt in common."""

    @property
    def length(self) -> int:
        """Tokens of the longer of the two, prompt included."""
        return max(len(self.chosen.ids), len(self.rejected.ids))


def read_pairs(paths: Sequence[Path], encoder: ChatEncoder) -> list[Pair]:
    """The pairs of Parquet files in the format of ``schemas.PREFERENCES_EXPORT``.

    Raises:
        RunDirectoryError: One does not exist, lacks a column, or has no rows.
        ConfigError: The chat template cannot be trained on.
    """
    return [pair for path in paths for pair in _pairs_of(path, encoder)]


def read_test_pairs(paths: Sequence[Path], encoder: ChatEncoder) -> list[Pair]:
    """The same, to be measured on; none of files that do not exist or have no rows."""
    there = [path for path in paths if path.exists() and pq.read_metadata(path).num_rows]
    return read_pairs(there, encoder)


def _pairs_of(path: Path, encoder: ChatEncoder) -> list[Pair]:
    columns = read_columns(path, ["prompt", "chosen", "rejected", "probability"])
    prompts = cast("list[Messages]", columns["prompt"])
    chosen = encoder.turns(prompts, cast("list[Messages]", columns["chosen"]))
    rejected = encoder.turns(prompts, cast("list[Messages]", columns["rejected"]))
    return [
        Pair(chosen=c, rejected=r, probability=p, half=_half_of(prompt))
        for c, r, p, prompt in zip(
            chosen, rejected, cast("list[float]", columns["probability"]), prompts, strict=True
        )
    ]


def _half_of(prompt: Messages) -> int:
    return derive_seed(0, "half", json.dumps(list(prompt), sort_keys=True)) % 2


def without_long(
    pairs: Sequence[Pair], max_length: int, *, key: str, data: Sequence[Path], report: Report
) -> list[Pair]:
    """The pairs of at most ``max_length`` tokens; how many are left out is told.

    Raises:
        RunDirectoryError: All are longer.
    """
    kept = [pair for pair in pairs if pair.length <= max_length]
    if not kept:
        raise RunDirectoryError(
            f"{named(data)}: expected pairs of at most {key}.max_length={max_length} tokens, all "
            f"{len(pairs)} are longer; raise {key}.max_length"
        )
    if len(kept) < len(pairs):
        report.message(f"{len(pairs) - len(kept)} of {len(pairs)} pairs exceed {key}.max_length")
    return kept


def named(paths: Sequence[Path]) -> str:
    """Files, in a message."""
    return ", ".join(map(str, paths))


def target(probability: float, *, soft: bool) -> float:
    """What to train on: the judge's probability, or its rounding to 0 or 1; a tie has no winner."""
    return probability if soft or probability == 0.5 else float(probability > 0.5)


def soft_cross_entropy(logits_B: Tensor, probability_B: Tensor) -> Tensor:
    """-[p log s(d) + (1 - p) log s(-d)] of each of B pairs, d being ``logits_B``."""
    return -probability_B * logsigmoid(logits_B) - (1 - probability_B) * logsigmoid(-logits_B)


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How well predicted preferences agree with the judge's labels."""

    metrics: Mapping[str, float]
    """``test_pairs``; ``test_loss``, the soft cross-entropy; ``test_calibration_error``, see
    ``calibration``; ``test_accuracy`` on the pairs whose label is no near tie, if there are any."""
    reliability: Sequence[Mapping[str, Any]]
    """The bins behind the calibration error, as ``calibration.reliability`` gives them."""


def agreement(logits_B: Tensor, labels_B: Tensor, *, near_tie: float) -> Agreement:
    """Of B pairs, predictions s(``logits_B``) against the judge's probabilities ``labels_B``."""
    predicted, labels = torch.sigmoid(logits_B).tolist(), labels_B.tolist()
    metrics = {
        "test_pairs": float(len(labels)),
        "test_loss": soft_cross_entropy(logits_B, labels_B).mean().item(),
        "test_calibration_error": calibration_error(predicted, labels),
    }
    clear_B = (labels_B - 0.5).abs() >= near_tie
    if clear_B.any():
        right_B = (logits_B > 0) == (labels_B >= 0.5)
        metrics["test_accuracy"] = right_B[clear_B].float().mean().item()
    return Agreement(metrics=metrics, reliability=reliability(predicted, labels))
