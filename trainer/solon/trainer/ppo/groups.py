"""The formulas of GRPO and RLOO, which need no value network: pure functions, as in ``math``.

Each prompt is answered k times, and the k responses are each other's baseline. A response has one
advantage, which all of its tokens share.

Shapes as in ``math``: B episodes, those of one prompt side by side, G = B / k groups of them; N
real response tokens of some episodes. A reward that is not a number belongs to an episode that has
none: it moves no baseline, and its advantage is 0.

Knows nothing of networks, tokenizers, devices or processes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from solon.trainer.ppo.math import Metrics, kl_estimate, weighed

_SMALLEST_DEVIATION = 1e-4
"""Added to a group's deviation, as in TRL's GRPOTrainer."""


def leave_one_out_advantages(rewards_B: Tensor, group_size: int) -> Tensor:
    """[B]: the reward less the mean of the prompt's other ones (Ahmadian et al. 2024, section 3.3).

    RLOO, 2402.14740. 0 in a group with fewer than two rewards.
    """
    rewards_Gk = rewards_B.view(-1, group_size)
    others_G1 = (~rewards_Gk.isnan()).sum(dim=1, keepdim=True) - 1
    baseline_Gk = (rewards_Gk.nansum(dim=1, keepdim=True) - rewards_Gk) / others_G1.clamp(min=1)
    advantages_Gk = torch.where(others_G1 > 0, rewards_Gk - baseline_Gk, 0)
    return advantages_Gk.nan_to_num(nan=0.0).flatten()


def group_advantages(rewards_B: Tensor, group_size: int, *, scale: bool) -> Tensor:
    """[B]: the reward less the group's mean (Shao et al. 2024, 2402.03300, section 4.1.2).

    ``scale`` divides by the group's deviation (with Bessel's correction, as TRL does), which is
    GRPO; without it this is Dr. GRPO (Liu et al. 2025, 2503.20783, section 3.2), which does not
    weigh a prompt more because its responses are alike. 0 in a group with fewer than two rewards.
    """
    rewards_Gk = rewards_B.view(-1, group_size)
    others_G1 = (~rewards_Gk.isnan()).sum(dim=1, keepdim=True) - 1
    advantages_Gk = rewards_Gk - rewards_Gk.nanmean(dim=1, keepdim=True)
    if scale:
        variance_G1 = (advantages_Gk**2).nansum(dim=1, keepdim=True) / others_G1.clamp(min=1)
        advantages_Gk = advantages_Gk / (variance_G1.sqrt() + _SMALLEST_DEVIATION)
    return torch.where(others_G1 > 0, advantages_Gk, 0).nan_to_num(nan=0.0).flatten()


def grpo_loss(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    reference_logprobs_N: Tensor,
    advantages_N: Tensor,
    weights_N: Tensor,
    *,
    clip: float,
    kl_coefficient: float,
    tokens: Tensor,
    episodes: Tensor,
    importance_N: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """The clipped surrogate, negated, and lambda k3 beside it (Shao et al. 2024, eq. 3 and 4).

    Args:
        logprobs_N: Under the policy that learns.
        old_logprobs_N: Under the one that sampled.
        reference_logprobs_N: Under the SL model.
        advantages_N: Each token's episode's.
        weights_N: What part of its episode's loss a token is: 1 / length in GRPO, 1 / greatest
            length in Dr. GRPO.
        clip: As in ``math.policy_loss``.
        kl_coefficient: Lambda.
        tokens: Those of the whole minibatch; metrics are averaged over them.
        episodes: Those of the whole minibatch; the loss is averaged over them.
        importance_N: As in ``math.policy_loss``; weighs the surrogate, not the KL.

    Metrics: those of ``math.policy_loss``; ``loss/kl_avg``: the part of the loss that is the KL's.
    """
    ratio_N = (logprobs_N - old_logprobs_N).exp()
    plain_N = -advantages_N * ratio_N
    clipped_N = -advantages_N * ratio_N.clamp(1 - clip, 1 + clip)
    kl_N = kl_coefficient * kl_estimate(logprobs_N, reference_logprobs_N, "k3")
    kl_loss = (kl_N * weights_N).sum() / episodes
    worse_N = weighed(torch.maximum(plain_N, clipped_N), importance_N)
    loss = (worse_N * weights_N).sum() / episodes + kl_loss
    with torch.no_grad():
        metrics = {
            "loss/policy_avg": loss.detach(),
            "loss/kl_avg": kl_loss.detach(),
            "policy/approxkl_avg": kl_estimate(old_logprobs_N, logprobs_N, "k3").sum() / tokens,
            "policy/clipfrac_avg": (clipped_N > plain_N).sum() / tokens,
            "val/ratio": ratio_N.sum() / tokens,
        }
    return loss, metrics


def rloo_loss(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_b: Tensor,
    mask_bR: Tensor,
    *,
    clip: float,
    tokens: Tensor,
    episodes: Tensor,
    importance_b: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """The clipped surrogate of whole responses, negated: the response is one action.

    At the first step, where every ratio is 1, its gradient is REINFORCE's (Ahmadian et al. 2024,
    eq. 6); the clip, as in TRL's RLOOTrainer, bounds the further steps on the same batch.

    Args:
        logprobs_N: Under the policy that learns.
        old_logprobs_N: Under the one that sampled.
        advantages_b: Of each episode.
        mask_bR: Where the N tokens stand.
        clip: Bounds the ratio of a response's probabilities.
        tokens: Those of the whole minibatch.
        episodes: Those of the whole minibatch; the loss is averaged over them.
        importance_b: Of each episode, where another than the old policy has sampled it.

    Metrics: those of ``math.policy_loss``, but ``policy/clipfrac_avg`` and ``val/ratio`` are
    averages over episodes.
    """
    log_ratio_bR = logprobs_N.new_zeros(mask_bR.shape)
    log_ratio_bR[mask_bR] = logprobs_N - old_logprobs_N
    ratio_b = log_ratio_bR.sum(dim=1).exp()
    plain_b = -advantages_b * ratio_b
    clipped_b = -advantages_b * ratio_b.clamp(1 - clip, 1 + clip)
    loss = weighed(torch.maximum(plain_b, clipped_b), importance_b).sum() / episodes
    with torch.no_grad():
        metrics = {
            "loss/policy_avg": loss.detach(),
            "policy/approxkl_avg": kl_estimate(old_logprobs_N, logprobs_N, "k3").sum() / tokens,
            "policy/clipfrac_avg": (clipped_b > plain_b).sum() / episodes,
            "val/ratio": (ratio_b * mask_bR.any(dim=1)).sum() / episodes,
        }
    return loss, metrics
