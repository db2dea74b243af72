"""Drawing tokens: pure functions from logits and counters to tokens.

A draw is by inverse CDF: one uniform number a token, from a counter-based generator keyed by
(seed, position). So a draw depends on the request's own seed and logits, never on what else is in
the batch, and costs one hash a token instead of one a vocabulary entry. Knows nothing of models
and text.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from solon.engine.base import Sampling

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, kw_only=True, slots=True)
class Draws:
    """What was drawn, a row each."""

    token_B: Tensor
    """int64 token ids; meaningless where ``finite_B`` is false."""
    logprob_B: Tensor
    """Natural log-probability at temperature 1, before truncation, of the token."""
    finite_B: Tensor
    """Whether the row's logits make a distribution: no NaN, no +inf, not all -inf."""
    margin_B: Tensor
    """How far the draw is from another token: in logits where greedy, in probability else."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The decoding settings of a batch as columns; made once while the batch stays the same."""

    inverse_temperature_B: Tensor
    greedy_B: Tensor
    top_k_B: Tensor
    top_p_B: Tensor
    seed_B: npt.NDArray[np.uint64]
    any_greedy: bool
    all_greedy: bool
    any_truncated: bool

    @classmethod
    def of(cls, rows: Sequence[Sampling], device: torch.device) -> Settings:
        """Columns of the rows' settings; ``top_k`` 0 becomes the whole vocabulary."""
        greedy = [row.temperature < _GREEDY_BELOW for row in rows]
        inverse = [1.0 if g else 1.0 / r.temperature for r, g in zip(rows, greedy, strict=True)]
        truncated = [(r.top_k, r.top_p) != (0, 1.0) for r in rows]
        return cls(
            inverse_temperature_B=torch.tensor(inverse, dtype=torch.float32, device=device),
            greedy_B=torch.tensor(greedy, device=device),
            top_k_B=torch.tensor([r.top_k or 2**31 for r in rows], device=device),
            top_p_B=torch.tensor([r.top_p for r in rows], dtype=torch.float64, device=device),
            seed_B=np.array([r.seed for r in rows], dtype=np.uint64),
            any_greedy=any(greedy),
            all_greedy=all(greedy),
            any_truncated=any(t and not g for t, g in zip(truncated, greedy, strict=True)),
        )


_GREEDY_BELOW = 1e-5
"""Below this temperature the likeliest token has all the mass that float32 can tell."""


def uniforms(
    seed_B: npt.NDArray[np.uint64],
    position_B: npt.NDArray[np.uint64],
) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1) by splitmix64 (Steele et al. 2014), one a (seed, position)."""
    with np.errstate(over="ignore"):
        state = _mix(seed_B + _GOLDEN) + (position_B + np.uint64(1)) * _GOLDEN
        return (_mix(state) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw(logits_B_V: Tensor, settings: Settings, uniform_B: Tensor) -> Draws:
    """Draw a token a row.

    Args:
        logits_B_V: float32 [B, V].
        settings: B rows.
        uniform_B: float64 in [0, 1).
    """
    logsumexp_B = torch.logsumexp(logits_B_V, dim=-1)
    if settings.all_greedy:
        token_B, margin_B = _greedy(logits_B_V)
    else:
        token_B, margin_B = _sampled(logits_B_V, settings, uniform_B)
        if settings.any_greedy:
            best_B, gap_B = _greedy(logits_B_V)
            token_B = torch.where(settings.greedy_B, best_B, token_B)
            margin_B = torch.where(settings.greedy_B, gap_B, margin_B)
    chosen_B = logits_B_V.gather(-1, token_B[:, None]).squeeze(-1)
    return Draws(
        token_B=token_B,
        logprob_B=chosen_B - logsumexp_B,
        finite_B=torch.isfinite(logsumexp_B),
        margin_B=margin_B,
    )


def _greedy(logits_B_V: Tensor) -> tuple[Tensor, Tensor]:
    values_B_2, ids_B_2 = logits_B_V.topk(2, dim=-1)
    gap_B = (values_B_2[:, 0] - values_B_2[:, 1]).double()
    return ids_B_2[:, 0], gap_B


def _sampled(
    logits_B_V: Tensor,
    settings: Settings,
    uniform_B: Tensor,
) -> tuple[Tensor, Tensor]:
    # the maximum goes first, so that a small temperature cannot make inf - inf
    peak_B_1 = logits_B_V.amax(dim=-1, keepdim=True)
    scaled_B_V = (logits_B_V - peak_B_1) * settings.inverse_temperature_B[:, None]
    mass_B_V = scaled_B_V.exp()
    slack_B = None
    if settings.any_truncated:
        mass_B_V, slack_B = _truncated(mass_B_V, settings)
    cdf_B_V = mass_B_V.cumsum(dim=-1, dtype=torch.float64)
    total_B_1 = cdf_B_V[:, -1:]
    target_B_1 = uniform_B[:, None] * total_B_1
    token_B_1 = torch.searchsorted(cdf_B_V, target_B_1, right=True)
    token_B_1 = token_B_1.clamp_(max=cdf_B_V.shape[-1] - 1)
    above_B_1 = cdf_B_V.gather(-1, token_B_1) - target_B_1
    below_B_1 = mass_B_V.gather(-1, token_B_1).double() - above_B_1
    margin_B = (torch.minimum(above_B_1, below_B_1) / total_B_1).squeeze(-1)
    if slack_B is not None:
        margin_B = torch.minimum(margin_B, slack_B)
    return token_B_1.squeeze(-1), margin_B


def _truncated(mass_B_V: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """Zero the mass outside top_k and top_p; how near the cut was to fall elsewhere.

    A token stays if its rank is below top_k and the likelier ones hold less than top_p of what
    top_k leaves (Holtzman et al. 2020, section 3.1). Equal masses rank by token id.
    """
    sorted_B_V, order_B_V = mass_B_V.sort(dim=-1, descending=True, stable=True)
    rank_V = torch.arange(mass_B_V.shape[-1], device=mass_B_V.device)
    in_k_B_V = rank_V < settings.top_k_B[:, None]
    sorted_B_V = sorted_B_V.masked_fill(~in_k_B_V, 0.0)
    cdf_B_V = sorted_B_V.cumsum(dim=-1, dtype=torch.float64)
    cdf_B_V = cdf_B_V / cdf_B_V[:, -1:]
    before_B_V = cdf_B_V.roll(1, dims=-1)
    before_B_V[:, 0] = 0.0
    kept_B_V = in_k_B_V & (before_B_V < settings.top_p_B[:, None])
    last_B_1 = kept_B_V.sum(dim=-1, keepdim=True) - 1
    next_B_1 = (last_B_1 + 1).clamp(max=mass_B_V.shape[-1] - 1)
    ranked_B_V = mass_B_V.gather(-1, order_B_V)
    # by rank: the last one kept against the first one dropped; by mass: the cut against top_p
    swap_B = (ranked_B_V.gather(-1, last_B_1) - ranked_B_V.gather(-1, next_B_1)).squeeze(-1)
    cut_B = (before_B_V - settings.top_p_B[:, None]).abs().amin(dim=-1)
    everything_B = last_B_1.squeeze(-1) == mass_B_V.shape[-1] - 1
    slack_B = torch.minimum(swap_B.double(), cut_B)
    slack_B = slack_B.masked_fill(everything_B, 1.0)
    keep_B_V = torch.zeros_like(kept_B_V).scatter_(-1, order_B_V, kept_B_V)
    return mass_B_V.masked_fill(~keep_B_V, 0.0), slack_B


def _mix(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
