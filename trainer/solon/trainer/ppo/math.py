"""The formulas of PPO: pure functions, tensors in, tensors or (loss, metrics) out.

Shapes: B episodes, R response tokens of the longest one, N real response tokens of some episodes,
one after the other. A ``mask_BR`` is true on real tokens. Losses take [N], so that padding does not
exist for them, and divide by a given ``count``, so that micro-batches of one batch add up to it.

Knows nothing of networks, tokenizers, devices or processes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Metrics = dict[str, Tensor]
Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over all processes."""


def _one_process(total: Tensor) -> Tensor:
    return total


def masked_mean(values: Tensor, mask: Tensor, *, reduce: Reduce = _one_process) -> Tensor:
    """The mean over true positions of ``mask``; both of one shape. A scalar."""
    return reduce(torch.where(mask, values, 0).sum()) / reduce(mask.sum())


def masked_whiten(
    values: Tensor, mask: Tensor, *, shift_mean: bool = True, reduce: Reduce = _one_process
) -> Tensor:
    """Scale to deviation 1 and, with ``shift_mean``, to mean 0, over true positions; 0 elsewhere.

    The deviation is the population's, over all processes (Huang et al. 2024, details 9 and 18).
    """
    mean = masked_mean(values, mask, reduce=reduce)
    variance = masked_mean((values - mean) ** 2, mask, reduce=reduce)
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    return torch.where(mask, whitened if shift_mean else whitened + mean, 0)


def kl_estimate(logprobs: Tensor, other_logprobs: Tensor, estimator: Literal["k1", "k3"]) -> Tensor:
    """KL(p || q) per token, from the log-probabilities of tokens that p sampled.

    k1 = log p - log q is unbiased; k3 = q/p - 1 - log(q/p) is unbiased too and never negative
    (Schulman 2020, "Approximating KL divergence").
    """
    difference = logprobs - other_logprobs
    return difference if estimator == "k1" else torch.expm1(-difference) + difference


def token_rewards(
    scores_B: Tensor, kl_BR: Tensor, mask_BR: Tensor, kl_coefficient: float
) -> Tensor:
    """[B, R]: -lambda KL at every token, and the score at the last (Ziegler et al. 2019, eq. 2).

    Where an episode has no tokens its score stands in the first place, off the mask.
    """
    rewards_BR = torch.where(mask_BR, -kl_coefficient * kl_BR, 0)
    last_B1 = (mask_BR.sum(dim=1, keepdim=True) - 1).clamp(min=0)
    return rewards_BR.scatter_add(1, last_B1, scores_B.unsqueeze(1))


def gae(
    rewards_BR: Tensor, values_BR: Tensor, mask_BR: Tensor, *, discount: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns, [B, R] each (Schulman et al. 2016, eq. 16); 0 off the mask.

    The state after the last real token is worth 0, whether the response ended or was cut.
    """
    values_BR = torch.where(mask_BR, values_BR, 0)
    next_values_BR = torch.cat([values_BR[:, 1:], torch.zeros_like(values_BR[:, :1])], dim=1)
    deltas_BR = torch.where(mask_BR, rewards_BR + discount * next_values_BR - values_BR, 0)
    advantages_BR = torch.zeros_like(deltas_BR)
    running_B = torch.zeros_like(deltas_BR[:, 0])
    for t in reversed(range(deltas_BR.shape[1])):
        running_B = deltas_BR[:, t] + discount * lam * running_B
        advantages_BR[:, t] = running_B
    return advantages_BR, advantages_BR + values_BR


def policy_loss(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    *,
    clip: float,
    count: Tensor,
    importance_N: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """The clipped surrogate, negated (Schulman et al. 2017, eq. 7): a sum over N over ``count``.

    ``importance_N`` weighs each token, where another than the old policy has sampled them
    (the decoupled objective of Hilton et al. 2021, 2110.00641).

    Metrics, each a part of a mean over ``count``: ``loss/policy_avg``, ``policy/approxkl_avg``
    (k3 of the sampling policy against this one), ``policy/clipfrac_avg``, ``val/ratio``.
    """
    log_ratio_N = logprobs_N - old_logprobs_N
    ratio_N = log_ratio_N.exp()
    plain_N = -advantages_N * ratio_N
    clipped_N = -advantages_N * ratio_N.clamp(1 - clip, 1 + clip)
    loss = weighed(torch.maximum(plain_N, clipped_N), importance_N).sum() / count
    with torch.no_grad():
        kl_N = kl_estimate(old_logprobs_N, logprobs_N, "k3")
        metrics = {
            "loss/policy_avg": loss.detach(),
            "policy/approxkl_avg": kl_N.sum() / count,
            "policy/clipfrac_avg": (clipped_N > plain_N).sum() / count,
            "val/ratio": ratio_N.sum() / count,
        }
    return loss, metrics


def weighed(losses: Tensor, importance: Tensor | None) -> Tensor:
    """Losses of what another policy has sampled, each with its importance; else as they are."""
    return losses if importance is None else losses * importance


def value_loss(
    values_N: Tensor, old_values_N: Tensor, returns_N: Tensor, *, clip: float, count: Tensor
) -> tuple[Tensor, Metrics]:
    """Half the squared error, of the value or the clipped value, whichever is worse.

    As in Stiennon et al. 2020's code (Huang et al. 2024, detail 20): a sum over N over ``count``.
    Metrics: ``loss/value_avg``, ``val/clipfrac_avg``.
    """
    clipped_N = torch.clamp(values_N, old_values_N - clip, old_values_N + clip)
    plain_error_N = (values_N - returns_N) ** 2
    clipped_error_N = (clipped_N - returns_N) ** 2
    loss = 0.5 * torch.maximum(plain_error_N, clipped_error_N).sum() / count
    with torch.no_grad():
        clipped_share = (clipped_error_N > plain_error_N).sum() / count
    return loss, {"loss/value_avg": loss.detach(), "val/clipfrac_avg": clipped_share}


def explained_variance(
    values: Tensor, returns: Tensor, mask: Tensor, *, reduce: Reduce = _one_process
) -> Tensor:
    """1 - Var(returns - values) / Var(returns), over true positions: 1 is perfect, 0 a constant."""
    error = returns - values

    def variance(x: Tensor) -> Tensor:
        return masked_mean((x - masked_mean(x, mask, reduce=reduce)) ** 2, mask, reduce=reduce)

    return 1 - variance(error) / variance(returns).clamp(min=1e-8)


def adapted_kl_coefficient(
    coefficient: float, kl: float, *, target: float, horizon: int, episodes: int
) -> float:
    """Ziegler et al. 2019, section 2.2: a proportional controller in log space.

    Args:
        coefficient: The present one, in rewards per nat.
        kl: Mean nats per response of the last ``episodes``.
        target: Nats per response to steer to.
        horizon: Episodes in which the coefficient changes by at most about a fifth.
        episodes: Episodes since the last change.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coefficient * (1 + error * episodes / horizon)
