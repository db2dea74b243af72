"""The configuration of reinforcement learning. Imports no torch; knows nothing of models.

The names and defaults follow Stiennon et al. 2020 (2009.01325) and Huang et al. 2024 (2403.17031).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from solon.trainer.settings import Settings
from solon.trainer.training import WeightSettings, require_shares

MOST_SNAPSHOTS = 32
"""Each is as large as the policy."""


MOST_ANSWERS = 64
"""To one prompt, of a service (``GenerateRequest.n``)."""


class RewardSources(Settings):
    """What a response is rewarded by: a weighted sum of scores, each on a scale of about 1."""

    model: float = Field(default=1.0, ge=0)
    """Weight of the reward model's score, >= 0; its scale is ``rl.normalise_reward``'s. 0: there is
    no reward model, and the stages ``preferences`` and ``reward`` are left out of a run."""
    judge: float = Field(default=0.0, ge=0)
    """Weight of the judge's Score, >= 0 (direct RLAIF, 2309.00267, section 2.4). Each principle's
    question is taken from its own answers' range to [-1, 1], and the principles' weighted mean is
    the score; of the judges of ``preferences.panel``, the mean of theirs. 0: nobody is asked."""
    min_option_mass: float = Field(default=0.0, ge=0, le=1)
    """Least probability that a question's answers must hold together for a score, 0 to 1."""
    max_unscored_share: float = Field(default=0.1, ge=0, lt=1)
    """An episode without a score teaches nothing; training stops when more than this part of a
    batch has none, in [0, 1)."""

    @model_validator(mode="after")
    def _something_rewards(self) -> RewardSources:
        if self.model == 0 and self.judge == 0:
            raise ValueError("model, judge: expected a weight above 0, got 0 for both")
        return self


class Guards(Settings):
    """What keeps the policy from winning by other means than better answers. All off but the watch.

    Their metrics are there all the same: ``objective/kl``, ``objective/length_drift``,
    ``objective/repetition``, ``objective/penalties``.
    """

    kl_limit: float | None = Field(default=None, gt=0)
    """Nats per response. The first batch whose mean KL from the SL model is above this is not
    learned from, and training ends: the policy of that moment is published, which is at most one
    update further away. Null: off."""
    length_penalty: float = Field(default=0.0, ge=0)
    """Rewards taken for each e-folding (a factor of 2.7) by which a response is longer or shorter
    than the SL model's mean, which the first batch measures, beyond the tolerance, >= 0."""
    length_tolerance: float = Field(default=1.0, ge=0)
    """1.0: up to twice the SL model's mean and down to half of it cost nothing, >= 0."""
    repetition_penalty: float = Field(default=0.0, ge=0)
    """Rewards taken for a response all of whose token trigrams were in it before, and a part of
    them for a part above the tolerance, >= 0."""
    repetition_tolerance: float = Field(default=0.1, ge=0, lt=1)
    """Share of repeated trigrams that costs nothing, in [0, 1): ordinary text has less than 0.1."""
    watch_batches: int = Field(default=10, ge=2)
    """Batches over which the reward and the held-out reward model's score are compared with as
    many before: when the one rises and the other falls, it is said, >= 2."""


class RolloutSettings(Settings):
    """Who samples the responses, and with which weights."""

    source: Literal["in_process", "policy"] = "in_process"
    """``in_process``: the trainer, by its own forward pass. ``policy``: the policy service, of any
    engine that gives log-probabilities and can replace its weights; it is given the new weights
    before each batch (with ``lora`` the adapter alone), which it has to be able to read from the
    run's directory. ``rl.temperature`` is 1 then, at which services give log-probabilities."""
    ahead: Literal[0, 1] = 0
    """Batches that are sampled ahead, with source ``policy``. 1: the service samples the next batch
    while the trainer learns from this one, so its weights have learned from one batch less
    (Noukhovitch et al. 2024, 2410.18252), whatever is faster."""
    importance_cap: float = Field(default=2.0, ge=1)
    """With source ``policy`` a token's part of the loss is weighed by how much likelier the trainer
    finds it than the engine that sampled it, up to this factor, >= 1: truncated importance sampling
    (Espeholt et al. 2018, 1802.01561, section 4.1; for language models Fu et al. 2025, 2505.24298).
    With ``rloo`` a whole response's part."""

    @model_validator(mode="after")
    def _only_a_service_is_ahead(self) -> RolloutSettings:
        if self.ahead and self.source == "in_process":
            raise ValueError(
                f"ahead: expected 0 with source in_process, got {self.ahead!r}: the trainer cannot "
                "sample while it learns; set source to policy, or ahead to 0"
            )
        return self


class PPOConfig(WeightSettings):
    """Policy optimisation against a reward, with a KL penalty from the SL model."""

    algorithm: Literal["ppo", "grpo", "rloo", "dpo"] = "ppo"
    """``ppo``: advantages from a value network (the paper's). ``grpo``, ``rloo``: from the other
    responses to the same prompt, without one, which saves its memory and its time. ``dpo``: learns
    the judge's labels themselves, with the settings of the section ``dpo`` and no others of this
    one; the stage ``reward`` is left out of a run."""
    group_size: int = Field(default=4, ge=2)
    """Responses to each prompt with ``grpo`` and ``rloo``, >= 2; divides ``batch_size``."""
    scale_by_group: bool = True
    """``grpo``: divide a group's advantages by their deviation, and a response's loss by its
    length (Shao et al. 2024). False: neither (Dr. GRPO, 2503.20783)."""
    reward: RewardSources = RewardSources()
    """What a response is rewarded by."""
    guards: Guards = Guards()
    """What it is not to be rewarded for."""
    rollouts: RolloutSettings = RolloutSettings()
    """Where the responses come from."""
    episodes: int = Field(default=20_000, ge=1)
    """Responses to learn from, in all, >= 1; rounded up to whole batches."""
    batch_size: int = Field(default=128, ge=1)
    """Episodes sampled with one set of weights, over all processes, >= 1."""
    minibatches: int = Field(default=4, ge=1)
    """Optimiser steps in one pass over a batch; divides ``batch_size``."""
    epochs: int = Field(default=2, ge=1)
    """Passes over each batch, >= 1."""
    micro_batch_size: int = Field(default=32, ge=1)
    """Most episodes in one forward pass of one process, >= 1: fewer are taken where that saves
    padding. Changes memory and speed only."""
    max_response_tokens: int = Field(default=256, ge=1)
    """A response that has not ended by then is cut, in tokens, >= 1."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the policy that is sampled and trained, > 0; the KL is taken at it too."""
    learning_rate: float = Field(default=3e-6, gt=0)
    """Peak step size of the policy's AdamW, > 0."""
    value_learning_rate: float = Field(default=1e-5, gt=0)
    """Peak step size of the value network's AdamW, > 0. Of ``ppo``."""
    schedule: Literal["constant", "linear"] = "linear"
    """``linear`` goes down to 0 at the last batch."""
    warmup_batches: int = Field(default=0, ge=0)
    """Batches in which the learning rates rise linearly, >= 0."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients of each network are scaled down to this L2 norm, > 0."""
    discount: float = Field(default=1.0, gt=0, le=1)
    """Gamma of GAE, in (0, 1]. Of ``ppo``."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """Lambda of GAE, in [0, 1]: 0 trusts the value network, 1 the returns. Of ``ppo``."""
    clip: float = Field(default=0.2, gt=0)
    """The probability ratio earns no more outside of [1 - clip, 1 + clip], > 0. The ratio is a
    token's, with ``rloo`` a whole response's."""
    value_clip: float = Field(default=0.2, gt=0)
    """Values earn no more further than this from the sampled ones, in rewards, > 0. Of
    ``ppo``."""
    kl_coefficient: float = Field(default=0.05, ge=0)
    """Lambda in r = r_PM - lambda KL, in rewards per nat, >= 0; the first value if adaptive. With
    ``grpo`` the KL stands in the loss instead, as a mean per token."""
    kl_target: float | None = Field(default=None, gt=0)
    """Nats per response that the coefficient steers to (Ziegler et al. 2019); null: it is fixed."""
    kl_horizon: int = Field(default=10_000, ge=1)
    """Episodes in which the adaptive coefficient changes by at most about a fifth, >= 1."""
    kl_estimator: Literal["k1", "k3"] = "k1"
    """Of the KL in the reward, per token (Schulman 2020): k1 has no bias, k3 is never negative.
    ``grpo`` has k3 in its loss, whatever this says."""
    max_update_kl: float | None = Field(default=None, gt=0)
    """An update ends early when policy and sampling policy are this far apart, in nats a token."""
    truncation_penalty: float = Field(default=1.0, ge=0)
    """Taken from the score of a response that was cut, in rewards, >= 0."""
    normalise_reward: bool = True
    """Scale scores by the mean and deviation that the reward stage measured."""
    whiten_rewards: bool = False
    """Divide each batch's token rewards by their deviation, leaving the mean. Of ``ppo``."""
    value_network: Literal["full", "head"] = "full"
    """What learns the values: ``full``, a copy of the reward model, as TRL does; or ``head``, a new
    head on the frozen reward model, which halves the cost of an update. Of ``ppo``."""
    checkpoint_every: int = Field(default=10, ge=1)
    """Batches between checkpoints, >= 1; a killed stage goes on from the last one."""
    kept_episodes: float = Field(default=1.0, ge=0, le=1)
    """Part of the episodes that are kept as records in ``rl/``, with what each scored and why, 0 to
    1. One takes about half a kilobyte. Responses to one prompt in one batch are kept or left
    together."""
    snapshots_every: int | None = Field(default=None, ge=1)
    """Batches between snapshots of the policy, whole models in ``models/rl-snapshots/``, of which
    there may be 32 at most; ``evaluate.snapshots`` measures them. Null: none."""

    @model_validator(mode="after")
    def _its_parts_fill_the_batch(self) -> PPOConfig:
        for key, size in (
            ("minibatches", self.minibatches),
            ("group_size", self.responses_per_prompt),
        ):
            require_shares(key, size, self.batch_size, self.processes)
        return self

    @model_validator(mode="after")
    def _labels_are_no_reward(self) -> PPOConfig:
        if self.algorithm == "dpo" and self.reward.judge:
            raise ValueError(
                "reward.judge: expected 0 with algorithm dpo, which learns from labels and from no "
                f"reward, got {self.reward.judge!r}"
            )
        return self

    @model_validator(mode="after")
    def _a_service_samples_what_is_learned(self) -> PPOConfig:
        if self.rollouts.source == "in_process":
            return self
        if self.algorithm == "dpo":
            raise ValueError(
                "rollouts.source: expected in_process with algorithm dpo, which samples nothing, "
                f"got {self.rollouts.source!r}"
            )
        if self.responses_per_prompt > MOST_ANSWERS:
            raise ValueError(
                f"group_size: expected at most {MOST_ANSWERS} with rollouts.source policy, of whom "
                f"no more are asked at once, got {self.group_size!r}"
            )
        if self.temperature != 1:
            raise ValueError(
                "temperature: expected 1 with rollouts.source policy, since services give "
                f"log-probabilities at temperature 1, got {self.temperature!r}"
            )
        return self

    @model_validator(mode="after")
    def _snapshots_are_few(self) -> PPOConfig:
        if self.snapshots_every and self.batches // self.snapshots_every > MOST_SNAPSHOTS:
            raise ValueError(
                f"snapshots_every: expected at least {-(-self.batches // MOST_SNAPSHOTS)}, so that "
                f"{self.batches} batches leave {MOST_SNAPSHOTS} snapshots at most, got "
                f"{self.snapshots_every!r}"
            )
        return self

    @property
    def has_reward_model(self) -> bool:
        """Whether a reward model scores the responses."""
        return self.algorithm != "dpo" and self.reward.model > 0

    @property
    def has_value_network(self) -> bool:
        """Whether a value network learns along."""
        return self.algorithm == "ppo"

    @property
    def is_served(self) -> bool:
        """Whether the policy service samples the responses."""
        return self.algorithm != "dpo" and self.rollouts.source == "policy"

    @property
    def has_kl_in_loss(self) -> bool:
        """Whether the KL penalty stands in the loss and not in the rewards."""
        return self.algorithm == "grpo"

    @property
    def responses_per_prompt(self) -> int:
        """Episodes of one batch that answer the same prompt."""
        return self.group_size if self.algorithm in ("grpo", "rloo") else 1

    @property
    def batches(self) -> int:
        """Batches in all."""
        return -(-self.episodes // self.batch_size)
