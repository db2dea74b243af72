"""PPO from the first batch to the last: sample, score, learn, save; and go on after a kill.

Everything random is derived from (seed, batch, process), and a checkpoint holds all that a batch
changes, so the batch after a resume is bit-identical to the one that would have followed.

Shapes as in ``rollout``. Knows nothing of reward models, conversations or the run directory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from solon.constitution import derive_seed
from solon.trainer.ppo import math
from solon.trainer.ppo.config import PPOConfig
from solon.trainer.ppo.rollout import (
    Policy,
    Samples,
    ValueNetwork,
    response_logprobs,
    response_values,
    sample,
)
from solon.trainer.ppo.update import Experience, Learner, update

Clock = Callable[[], float]


class RewardFunction(Protocol):
    """What scores whole episodes."""

    def __call__(self, prompt_rows: Sequence[int], samples: Samples) -> Tensor:
        """One score an episode, [B], before the truncation penalty.

        Args:
            prompt_rows: Of each episode, the place of its prompt among all prompts.
            samples: The B episodes.
        """


class PPO:
    """A policy that learns, and how far it is."""

    def __init__(
        self,
        config: PPOConfig,
        *,
        policy: Policy,
        reference: Policy,
        value: ValueNetwork,
        reward: RewardFunction,
        prompts: Sequence[Sequence[int]],
        stop_ids: Sequence[int],
        pad_id: int,
        seed: int,
        accelerator: Accelerator | None = None,
    ) -> None:
        """Put the networks in place.

        Args:
            config: All that can be set.
            policy: Learns; starts as the SL model.
            reference: The SL model, which the policy is kept close to.
            value: Learns along.
            reward: Scores the episodes.
            prompts: Token sequences that ask for a response.
            stop_ids: Tokens that end a response.
            pad_id: Fills sequences up; never read.
            seed: In [0, 2**64).
            accelerator: Of this process; the default uses the GPU if there is one.

        Raises:
            ValueError: There are no prompts, or ``batch_size`` does not divide among the processes.
        """
        if not prompts:
            raise ValueError("prompts: expected at least one, got none")
        self.config, self.seed = config, seed
        self.accelerator = accelerator or Accelerator()
        processes = self.accelerator.num_processes
        if config.batch_size % (processes * config.minibatches):
            raise ValueError(
                f"batch_size: expected a multiple of minibatches times processes, "
                f"{config.minibatches} x {processes}, got {config.batch_size!r}"
            )
        self._prompts, self._reward = prompts, reward
        self._stop_ids, self._pad_id = list(stop_ids), pad_id
        self._reference = reference.to(self.accelerator.device).eval().requires_grad_(False)
        # dropout would make the ratio of an unchanged policy differ from 1
        self._learner = _learner(config, policy.eval(), value.eval(), self.accelerator)
        self._progress = _Progress(kl_coefficient=config.kl_coefficient)
        self.accelerator.register_for_checkpointing(self._progress)

    @property
    def batches_done(self) -> int:
        """Batches learned from so far."""
        return self._progress.batches

    @property
    def policy(self) -> Policy:
        """The policy, as it is now."""
        unwrapped: Policy = self.accelerator.unwrap_model(self._learner.policy)
        return unwrapped

    @property
    def value(self) -> ValueNetwork:
        """The value network, as it is now."""
        unwrapped: ValueNetwork = self.accelerator.unwrap_model(self._learner.value)
        return unwrapped

    def step(self, clock: Clock = time.perf_counter) -> dict[str, float]:
        """Sample one batch, learn from it, and return the metrics (names as in TRL's PPO)."""
        torch.manual_seed(self._derived_seed("batch"))
        started = clock()
        rows = self._prompt_rows()
        samples = self._sample(rows)
        sampled = clock()
        experience, metrics = self._score(rows, samples)
        scored = clock()
        metrics |= {"lr": self._set_learning_rates(), "eps": 0.0}
        generator = torch.Generator().manual_seed(self._derived_seed("shuffle"))
        metrics |= update(self._learner, experience, self.config, generator)
        self._advance(metrics["objective/kl"])
        timing = {
            "timing/rollout": sampled - started,
            "timing/score": scored - sampled,
            "timing/update": clock() - scored,
        }
        episodes = self._progress.batches * self.config.batch_size
        metrics |= timing
        metrics["episode"] = float(episodes)
        metrics["eps"] = self.config.batch_size / max(sum(timing.values()), 1e-9)
        return metrics

    def save(self, directory: Path) -> None:
        """Write all that the next batch depends on. The directory is made."""
        self.accelerator.save_state(str(directory), safe_serialization=True)

    def load(self, directory: Path) -> None:
        """Go on from what ``save`` wrote."""
        self.accelerator.load_state(str(directory))

    def _derived_seed(self, purpose: str) -> int:
        # torch's generators take 63 bits at most
        rank = self.accelerator.process_index
        return derive_seed(self.seed, "ppo", purpose, self._progress.batches, rank) >> 1

    def _prompt_rows(self) -> list[int]:
        """This process's share of the next episodes' prompts, each pass over them in new order."""
        total, batch = len(self._prompts), self.config.batch_size
        first = self._progress.batches * batch
        orders: dict[int, list[int]] = {}
        rows: list[int] = []
        for episode in range(first, first + batch):
            passed, place = divmod(episode, total)
            if passed not in orders:
                orders[passed] = self._order(passed)
            rows.append(orders[passed][place])
        return rows[self.accelerator.process_index :: self.accelerator.num_processes]

    def _order(self, passed: int) -> list[int]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "ppo-order", passed) >> 1)
        order: list[int] = torch.randperm(len(self._prompts), generator=generator).tolist()
        return order

    def _sample(self, rows: Sequence[int]) -> Samples:
        return sample(
            self.policy.lm,
            [self._prompts[row] for row in rows],
            max_tokens=self.config.max_response_tokens,
            temperature=self.config.temperature,
            stop_ids=self._stop_ids,
            pad_id=self._pad_id,
            generator=torch.Generator().manual_seed(self._derived_seed("sample")),
        )

    def _score(self, rows: Sequence[int], samples: Samples) -> tuple[Experience, dict[str, float]]:
        config, mask_BR = self.config, samples.mask_BR
        reference_BR = response_logprobs(
            self._reference,
            samples,
            temperature=config.temperature,
            micro_batch_size=config.micro_batch_size,
        )
        values_BR, features_BRH = response_values(
            self.value, samples, micro_batch_size=config.micro_batch_size
        )
        scores_B = self._reward(rows, samples).to(values_BR)
        scores_B = scores_B - config.truncation_penalty * (~samples.ended_B)
        kl_BR = math.kl_estimate(samples.logprobs_BR, reference_BR, config.kl_estimator)
        coefficient = self._progress.kl_coefficient
        rewards_BR = math.token_rewards(scores_B, kl_BR, mask_BR, coefficient)
        experience = self._experience(samples, rewards_BR, values_BR, features_BRH)
        metrics = self._objective(samples, scores_B, rewards_BR, reference_BR)
        variance = math.explained_variance(
            values_BR, experience.returns_BR, mask_BR, reduce=self._learner.sum
        )
        metrics["val/explained_variance"] = variance.item()
        return experience, metrics

    def _experience(
        self,
        samples: Samples,
        rewards_BR: Tensor,
        values_BR: Tensor,
        features_BRH: Tensor | None,
    ) -> Experience:
        config, mask_BR, total = self.config, samples.mask_BR, self._learner.sum
        if config.whiten_rewards:
            rewards_BR = math.masked_whiten(rewards_BR, mask_BR, shift_mean=False, reduce=total)
        advantages_BR, returns_BR = math.gae(
            rewards_BR, values_BR, mask_BR, discount=config.discount, lam=config.gae_lambda
        )
        return Experience(
            samples=samples,
            values_BR=values_BR,
            features_BRH=features_BRH,
            advantages_BR=math.masked_whiten(advantages_BR, mask_BR, reduce=total),
            returns_BR=returns_BR,
        )

    def _objective(
        self, samples: Samples, scores_B: Tensor, rewards_BR: Tensor, reference_BR: Tensor
    ) -> dict[str, float]:
        """Means over episodes of what an episode sums up over its tokens."""
        rlhf_B = rewards_BR.sum(dim=1)
        means = {
            "objective/kl": (samples.logprobs_BR - reference_BR).sum(dim=1),
            "objective/entropy": -samples.logprobs_BR.sum(dim=1),
            "objective/non_score_reward": rlhf_B - scores_B,
            "objective/rlhf_reward": rlhf_B,
            "objective/scores": scores_B,
            "objective/response_tokens": samples.response_lengths_B.float(),
        }
        metrics = {name: self._learner.mean(v.mean()).item() for name, v in means.items()}
        metrics["objective/kl_coefficient"] = self._progress.kl_coefficient
        metrics["val/num_eos_tokens"] = self._learner.sum(samples.ended_B.sum().float()).item()
        return metrics

    def _set_learning_rates(self) -> float:
        config, batch = self.config, self._progress.batches
        factor = min(1.0, (batch + 1) / (config.warmup_batches + 1))
        if config.schedule == "linear":
            factor *= 1 - batch / max(config.batches, batch + 1)
        for optimizer, rate in (
            (self._learner.policy_optimizer, config.learning_rate),
            (self._learner.value_optimizer, config.value_learning_rate),
        ):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
        return config.learning_rate * factor

    def _advance(self, kl: float) -> None:
        config, progress = self.config, self._progress
        progress.batches += 1
        if config.kl_target is not None:
            progress.kl_coefficient = math.adapted_kl_coefficient(
                progress.kl_coefficient,
                kl,
                target=config.kl_target,
                horizon=config.kl_horizon,
                episodes=config.batch_size,
            )


class _Progress:
    """What changes from batch to batch besides the networks."""

    def __init__(self, *, kl_coefficient: float) -> None:
        self.batches = 0
        self.kl_coefficient = kl_coefficient

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches, "kl_coefficient": self.kl_coefficient}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batches = state["batches"]
        self.kl_coefficient = state["kl_coefficient"]


def _learner(
    config: PPOConfig, policy: Policy, value: ValueNetwork, accelerator: Accelerator
) -> Learner:
    policy_optimizer = torch.optim.AdamW(
        policy.parameters(), lr=config.learning_rate, weight_decay=0.0, eps=1e-5
    )
    value_optimizer = torch.optim.AdamW(
        [p for p in value.parameters() if p.requires_grad],
        lr=config.value_learning_rate,
        weight_decay=0.0,
        eps=1e-5,
    )
    prepared = accelerator.prepare(policy, value, policy_optimizer, value_optimizer)
    return Learner(
        accelerator=accelerator,
        policy=prepared[0],
        value=prepared[1],
        policy_optimizer=prepared[2],
        value_optimizer=prepared[3],
    )
