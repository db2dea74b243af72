"""What is learned from: episodes and their rewards, made into advantages and targets.

Shapes as in ``samples``: B episodes of this process, R response tokens, H hidden.

Knows nothing of networks, optimisers, processes or files.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from solon.trainer.ppo import groups, math
from solon.trainer.ppo.config import PPOConfig
from solon.trainer.ppo.samples import Samples


@dataclass(frozen=True, kw_only=True, slots=True)
class ValueTargets:
    """What the value network learns from; 0 on padding."""

    values_BR: Tensor
    """Before the update, in normalised rewards."""
    returns_BR: Tensor
    features_BRH: Tensor | None
    """Of the value network, if its trunk is frozen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Experience:
    """A batch of episodes, ready to learn from; 0 on padding."""

    samples: Samples
    reference_BR: Tensor
    """Log-probabilities under the SL model."""
    advantages_BR: Tensor
    kl_coefficient: float
    """Of the KL in the loss (GRPO), in rewards per nat."""
    value: ValueTargets | None
    """None without a value network."""


def from_values(
    config: PPOConfig,
    samples: Samples,
    reference_BR: Tensor,
    rewards_BR: Tensor,
    values_BR: Tensor,
    features_BRH: Tensor | None,
    *,
    reduce: math.Reduce,
) -> Experience:
    """PPO's: advantages by generalised advantage estimation, whitened over the batch."""
    mask_BR = samples.mask_BR
    if config.whiten_rewards:
        rewards_BR = math.masked_whiten(rewards_BR, mask_BR, shift_mean=False, reduce=reduce)
    advantages_BR, returns_BR = math.gae(
        rewards_BR, values_BR, mask_BR, discount=config.discount, lam=config.gae_lambda
    )
    return Experience(
        samples=samples,
        reference_BR=reference_BR,
        advantages_BR=math.masked_whiten(advantages_BR, mask_BR, reduce=reduce),
        kl_coefficient=0.0,
        value=ValueTargets(values_BR=values_BR, returns_BR=returns_BR, features_BRH=features_BRH),
    )


def from_groups(
    config: PPOConfig,
    samples: Samples,
    reference_BR: Tensor,
    rewards_B: Tensor,
    *,
    kl_coefficient: float,
) -> Experience:
    """GRPO's and RLOO's: each episode against the others of its prompt."""
    if config.algorithm == "rloo":
        advantages_B = groups.leave_one_out_advantages(rewards_B, config.group_size)
    else:
        advantages_B = groups.group_advantages(
            rewards_B, config.group_size, scale=config.scale_by_group
        )
    return Experience(
        samples=samples,
        reference_BR=reference_BR,
        advantages_BR=advantages_B.unsqueeze(1) * samples.mask_BR,
        kl_coefficient=kl_coefficient,
        value=None,
    )
