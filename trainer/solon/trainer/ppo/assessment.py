"""What a batch of episodes is worth: scores, KL penalty, advantages, and the figures of all that.

Shapes as in ``samples``: B episodes of this process, R response tokens. Knows nothing of how
episodes are sampled, how networks learn, or what scores them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from solon.trainer.errors import StageFailed
from solon.trainer.ppo import guards, math
from solon.trainer.ppo.config import PPOConfig
from solon.trainer.ppo.episodes import Outcomes
from solon.trainer.ppo.experience import Experience, from_groups, from_values
from solon.trainer.ppo.networks import (
    Policy,
    ValueNetwork,
    WithoutAdapter,
    response_logprobs,
    response_values,
)
from solon.trainer.ppo.rewards import Scores, WeightedReward
from solon.trainer.ppo.samples import Samples


@dataclass(frozen=True, kw_only=True, slots=True)
class Assessed:
    """What is known of a batch before it is learned from."""

    experience: Experience
    metrics: dict[str, float]
    """Those named ``objective/...`` and ``val/...``."""
    outcomes: Outcomes


@dataclass(frozen=True, kw_only=True, slots=True)
class Assessor:
    """Turns episodes into experience."""

    config: PPOConfig
    reference: Policy | WithoutAdapter
    """The SL model, which the policy is kept close to."""
    reward: WeightedReward
    reduce: math.Reduce
    """Sums over all processes."""

    def __call__(
        self,
        prompt_rows: Sequence[int],
        samples: Samples,
        *,
        value: ValueNetwork | None,
        kl_coefficient: float,
        usual_tokens: float | None = None,
    ) -> Assessed:
        """What is learned from the episodes, the figures of all and of each.

        Args:
            prompt_rows: Of each episode, the place of its prompt among all prompts.
            samples: The B episodes. One without a score is left out: none of its tokens counts.
            value: The value network, if the algorithm has one.
            kl_coefficient: The present lambda, in rewards per nat.
            usual_tokens: The SL model's mean response length. None: these are its responses.

        Raises:
            StageFailed: More episodes than ``reward.max_unscored_share`` have no score.
        """
        config = self.config
        scores = self.reward(prompt_rows, samples)
        unscored = self._unscored_share(scores)
        samples = _only_scored(samples, scores.total_B)
        reference_BR = response_logprobs(
            self.reference,
            samples,
            temperature=config.temperature,
            micro_batch_size=config.micro_batch_size,
        )
        penalties, metrics = self._penalties(samples, scores, usual_tokens)
        scores_B = scores.total_B - _sum(penalties)
        kl_BR = math.kl_estimate(samples.logprobs_BR, reference_BR, config.kl_estimator)
        in_reward = 0.0 if config.has_kl_in_loss else kl_coefficient
        rewards_BR = math.token_rewards(scores_B, kl_BR, samples.mask_BR, in_reward)
        metrics |= self._objective(samples, scores, scores_B, rewards_BR, reference_BR)
        metrics["objective/unscored_share"] = unscored
        metrics |= self._mismatch(samples)
        rewards_B = rewards_BR.sum(dim=1)
        if value is None:
            in_loss = kl_coefficient if config.has_kl_in_loss else 0.0
            experience = from_groups(
                config, samples, reference_BR, rewards_B, kl_coefficient=in_loss
            )
        else:
            experience, explained = self._with_values(samples, reference_BR, rewards_BR, value)
            metrics["val/explained_variance"] = explained
        outcomes = _outcomes(experience, scores, penalties, rewards_B)
        return Assessed(experience=experience, metrics=metrics, outcomes=outcomes)

    def _with_values(
        self, samples: Samples, reference_BR: Tensor, rewards_BR: Tensor, value: ValueNetwork
    ) -> tuple[Experience, float]:
        """And the explained variance."""
        values_BR, features_BRH = response_values(
            value, samples, micro_batch_size=self.config.micro_batch_size
        )
        experience = from_values(
            self.config,
            samples,
            reference_BR,
            rewards_BR,
            values_BR,
            features_BRH,
            reduce=self.reduce,
        )
        assert experience.value is not None
        variance = math.explained_variance(
            values_BR, experience.value.returns_BR, samples.mask_BR, reduce=self.reduce
        )
        return experience, variance.item()

    def _unscored_share(self, scores: Scores) -> float:
        missing_B = scores.total_B.isnan()
        share = self._mean(missing_B.float(), torch.ones_like(missing_B))
        limit = self.config.reward.max_unscored_share
        if share > limit:
            raise StageFailed(
                f"rl: {share:.0%} of a batch's responses have no score, which is more than "
                f"rl.reward.max_unscored_share = {limit!r} allows. Look at the judge's log and at "
                "rl.reward.min_option_mass, or raise the limit and run again with --resume"
            )
        return share

    def _penalties(
        self, samples: Samples, scores: Scores, usual_tokens: float | None
    ) -> tuple[Mapping[str, Tensor], dict[str, float]]:
        """Guard -> what each episode pays, in rewards [B]; and the figures of what it pays for."""
        limits, known_B = self.config.guards, ~scores.total_B.isnan()
        lengths_B = samples.response_lengths_B.float()
        mean = self._mean(lengths_B, known_B)
        usual = mean if usual_tokens is None else usual_tokens
        repetition_B = guards.repetition_shares(samples)
        length_B = guards.length_excess(lengths_B, usual=usual, tolerance=limits.length_tolerance)
        repeated_B = guards.excess_repetition(repetition_B, tolerance=limits.repetition_tolerance)
        penalties = {
            "truncation": self.config.truncation_penalty * (~samples.ended_B),
            "length": limits.length_penalty * length_B,
            "repetition": limits.repetition_penalty * repeated_B,
        }
        return penalties, {
            "objective/length_drift": mean / usual - 1,
            "objective/repetition": self._mean(repetition_B, known_B),
            "objective/penalties": self._mean(_sum(penalties), known_B),
        }

    def _objective(
        self,
        samples: Samples,
        scores: Scores,
        scores_B: Tensor,
        rewards_BR: Tensor,
        reference_BR: Tensor,
    ) -> dict[str, float]:
        """Means over episodes with a score of what an episode sums up over its tokens."""
        rlhf_B = rewards_BR.sum(dim=1)
        means = {
            "objective/kl": (samples.logprobs_BR - reference_BR).sum(dim=1),
            "objective/entropy": -samples.logprobs_BR.sum(dim=1),
            "objective/non_score_reward": rlhf_B - scores_B,
            "objective/rlhf_reward": rlhf_B,
            "objective/scores": scores_B,
            "objective/response_tokens": samples.response_lengths_B.float(),
        }
        known_B = ~scores_B.isnan()
        metrics = {name: self._mean(values_B, known_B) for name, values_B in means.items()}
        metrics["objective/sqrt_kl"] = max(0.0, metrics["objective/kl"]) ** 0.5
        for source, found_B in scores.by_source.items():
            metrics[f"objective/{source}_scores"] = self._mean(found_B, ~found_B.isnan())
        metrics["val/num_eos_tokens"] = self.reduce(samples.ended_B.sum().float()).item()
        return metrics

    def _mismatch(self, samples: Samples) -> dict[str, float]:
        """How far what has sampled is from the policy, in nats a token; empty if it is the same."""
        if samples.behaviour_BR is None:
            return {}
        behaviour_BR, cap = samples.behaviour_BR, self.config.rollouts.importance_cap
        importance_BR = (samples.logprobs_BR - behaviour_BR).exp()
        figures = {
            "mismatch_kl": math.kl_estimate(behaviour_BR, samples.logprobs_BR, "k3"),
            "sampling/importance_avg": importance_BR.clamp(max=cap),
            "sampling/capped_share": (importance_BR > cap).float(),
        }
        return {name: self._mean(one, samples.mask_BR) for name, one in figures.items()}

    def _mean(self, values_B: Tensor, mask_B: Tensor) -> float:
        return math.masked_mean(values_B, mask_B, reduce=self.reduce).item()


def _sum(penalties: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(penalties.values())).sum(dim=0)


def _outcomes(
    experience: Experience, scores: Scores, penalties: Mapping[str, Tensor], rewards_B: Tensor
) -> Outcomes:
    samples = experience.samples
    tokens_B = samples.response_lengths_B.clamp(min=1)
    return Outcomes(
        scores=scores,
        penalties=penalties,
        logprobs_B=samples.logprobs_BR.sum(dim=1),
        reference_B=experience.reference_BR.sum(dim=1),
        rewards_B=rewards_B,
        advantages_B=(experience.advantages_BR * samples.mask_BR).sum(dim=1) / tokens_B,
    )


def _only_scored(samples: Samples, total_B: Tensor) -> Samples:
    """The same episodes; the response of one without a score has no tokens."""
    missing_B = total_B.isnan()
    return dataclasses.replace(
        samples,
        response_lengths_B=samples.response_lengths_B.masked_fill(missing_B, 0),
        logprobs_BR=samples.logprobs_BR.masked_fill(missing_B.unsqueeze(1), 0.0),
    )
