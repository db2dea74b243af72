"""RL from the first batch to the last: sample, score, learn, save; and go on after a kill.

Everything random is derived from (seed, batch), and a checkpoint holds all that a batch changes, so
the batch after a resume is bit-identical to the one that would have followed. Several processes
make, score and learn from a share of each batch; the batch is the same whatever their number.

Shapes as in ``samples``. Knows nothing of reward models, conversations or the run directory.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from solon.constitution import derive_seed
from solon.trainer.ppo import math
from solon.trainer.ppo.assessment import Assessor
from solon.trainer.ppo.config import PPOConfig
from solon.trainer.ppo.episodes import Episodes, Outcomes
from solon.trainer.ppo.exchange import whole
from solon.trainer.ppo.experience import Experience
from solon.trainer.ppo.memory import checkpoint_what_learns, give_back, recomputing
from solon.trainer.ppo.networks import (
    Policy,
    ValueNetwork,
    WithoutAdapter,
    response_logprobs,
)
from solon.trainer.ppo.order import prompt_rows
from solon.trainer.ppo.rewards import WeightedReward
from solon.trainer.ppo.rollout import sample
from solon.trainer.ppo.samples import Samples, laid_out
from solon.trainer.ppo.served import Answering, ServedBatches
from solon.trainer.ppo.update import Learner, update
from solon.trainer.sharding import gathered, is_sharded, load_parts, save_parts

Clock = Callable[[], float]


class PPO:
    """A policy that learns, and how far it is."""

    def __init__(
        self,
        config: PPOConfig,
        *,
        policy: Policy,
        reference: Policy | WithoutAdapter,
        value: ValueNetwork | None,
        reward: WeightedReward,
        prompts: Sequence[Sequence[int]],
        stop_ids: Sequence[int],
        pad_id: int,
        seed: int,
        accelerator: Accelerator | None = None,
        answering: Answering | None = None,
    ) -> None:
        """Put the networks in place.

        Args:
            config: All that can be set.
            policy: Learns; starts as the SL model.
            reference: The SL model, which the policy is kept close to.
            value: Learns along; None where the algorithm has no value network.
            reward: Scores the episodes.
            prompts: Token sequences that ask for a response.
            stop_ids: Tokens that end a response.
            pad_id: Fills sequences up; never read.
            seed: In [0, 2**64).
            accelerator: Of this process; the default uses the GPU if there is one.
            answering: Samples, where the configuration has a service do it.

        Raises:
            ValueError: There are no prompts.
        """
        if not prompts:
            raise ValueError("prompts: expected at least one, got none")
        assert (value is not None) == config.has_value_network, config.algorithm
        self.config, self.seed = config, seed
        self.accelerator = accelerator or Accelerator()
        assert self.accelerator.num_processes == config.processes, "the worker has looked"
        self._prompts = prompts
        self._stop_ids, self._pad_id = list(stop_ids), pad_id
        # dropout would make the ratio of an unchanged policy differ from 1
        value = value.eval() if value is not None else None
        self._learner = _learner(config, policy.eval(), value, self.accelerator)
        self._assess = Assessor(
            config=config,
            reference=reference.to(self.accelerator.device).eval().requires_grad_(False),
            reward=reward,
            reduce=self._learner.sum,
        )
        self._progress = _Progress(kl_coefficient=config.kl_coefficient)
        self._episodes: Episodes | None = None
        self.accelerator.register_for_checkpointing(self._progress)
        assert (answering is not None) == config.is_served, config.rollouts
        self._served = None if answering is None else ServedBatches(answering)
        if self._served is not None:
            self.accelerator.register_for_checkpointing(self._served)
        checkpoint_what_learns(self.accelerator)

    @property
    def batches_done(self) -> int:
        """Batches learned from so far."""
        return self._progress.batches

    @property
    def is_too_far(self) -> bool:
        """Whether the policy was found beyond ``guards.kl_limit``: training is over."""
        return self._progress.too_far

    @property
    def is_over(self) -> bool:
        """Whether there is no further batch."""
        return self.batches_done >= self.config.batches or self.is_too_far

    @property
    def policy(self) -> Policy:
        """The policy, as it is now."""
        unwrapped: Policy = self.accelerator.unwrap_model(self._learner.policy)
        return unwrapped

    @property
    def value(self) -> ValueNetwork | None:
        """The value network, as it is now; None if there is none."""
        if self._learner.value is None:
            return None
        unwrapped: ValueNetwork = self.accelerator.unwrap_model(self._learner.value)
        return unwrapped

    @property
    def episodes(self) -> Episodes:
        """Those of this process in the last batch."""
        assert self._episodes is not None, "no batch was sampled yet"
        return self._episodes

    def step(self, clock: Clock = time.perf_counter) -> dict[str, float]:
        """Sample one batch, learn from it, and return the metrics (names as in TRL's PPO).

        A batch that finds the policy beyond ``guards.kl_limit`` is not learned from.
        """
        torch.manual_seed(self._derived_seed("batch"))
        started = clock()
        rows = self._prompt_rows()[self._share]
        synced = self._begin(clock)
        with self.accelerator.autocast():
            samples = self._sample(rows) if self._served is None else self._taken(rows)
        if self.config.rollouts.ahead:
            synced += self._begin(clock, ahead=1)
        give_back()
        sampled = clock()
        with self.accelerator.autocast():
            assessed = self._assess(
                rows,
                samples,
                value=self.value,
                kl_coefficient=self._progress.kl_coefficient,
                usual_tokens=self._progress.usual_tokens,
            )
        metrics = assessed.metrics
        metrics["objective/kl_coefficient"] = self._progress.kl_coefficient
        self._episodes = self._noted(rows, samples, assessed.outcomes)
        scored = clock()
        metrics |= self._learn(assessed.experience, metrics["objective/kl"])
        self._advance(metrics)
        give_back()
        timing = {
            "timing/rollout": sampled - started - synced,
            "timing/weight_sync": synced,
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
        if self._served is not None:
            self._served.settle()
        self.accelerator.save_state(str(directory), safe_serialization=True)
        save_parts(directory, self._sharded())

    def load(self, directory: Path) -> None:
        """Go on from what ``save`` wrote."""
        self.accelerator.load_state(str(directory), strict=False)
        load_parts(directory, self._sharded())

    def _sharded(self) -> dict[str, tuple[nn.Module, torch.optim.Optimizer]]:
        names = ("policy", "value")
        pairs = zip(names, self._learner.optimized(), strict=False)
        return {name: pair for name, pair in pairs if is_sharded(pair[0])}

    def _derived_seed(self, purpose: str, ahead: int = 0) -> int:
        # torch's generators take 63 bits at most
        return derive_seed(self.seed, "ppo", purpose, self._progress.batches + ahead, 0) >> 1

    def _prompt_rows(self, ahead: int = 0) -> list[int]:
        """The prompts of a batch's episodes, those of one prompt side by side."""
        each = self.config.responses_per_prompt
        count = self.config.batch_size // each
        rows = prompt_rows(
            total=len(self._prompts),
            first=(self._progress.batches + ahead) * count,
            count=count,
            seed=self.seed,
        )
        return [row for row in rows for _ in range(each)]

    @property
    def _share(self) -> slice:
        """This process's episodes among those of a batch; it has all responses to a prompt."""
        size = self.config.batch_size // self.accelerator.num_processes
        first = self.accelerator.process_index * size
        return slice(first, first + size)

    def _begin(self, clock: Clock, ahead: int = 0) -> float:
        """Have the service begin a batch, if there are both; the seconds until it has."""
        batch = self._progress.batches + ahead
        if self._served is None or batch >= self.config.batches:
            return 0.0
        started = clock()
        seed = self._derived_seed("sample", ahead)
        self._served.begin(batch, self._prompt_rows(ahead), seed)
        return clock() - started

    def _taken(self, rows: Sequence[int]) -> Samples:
        """What the service has sampled, and what the policy says of it."""
        assert self._served is not None
        responses = self._served.take()[self._share]
        samples = laid_out(
            [self._prompts[row] for row in rows],
            [response.ids for response in responses],
            [response.logprobs for response in responses],
            [response.ended for response in responses],
            pad_id=self._pad_id,
            device=self.accelerator.device,
        )
        logprobs_BR = response_logprobs(
            self.policy,
            samples,
            temperature=self.config.temperature,
            micro_batch_size=self.config.micro_batch_size,
        )
        return dataclasses.replace(
            samples, logprobs_BR=logprobs_BR, behaviour_BR=samples.logprobs_BR
        )

    def _sample(self, rows: Sequence[int]) -> Samples:
        with gathered(self.policy):
            return sample(
                self.policy.lm,
                [self._prompts[row] for row in rows],
                max_tokens=self.config.max_response_tokens,
                temperature=self.config.temperature,
                stop_ids=self._stop_ids,
                pad_id=self._pad_id,
                generator=torch.Generator().manual_seed(self._derived_seed("sample")),
                first=self._share.start,
            )

    def _noted(self, rows: Sequence[int], samples: Samples, outcomes: Outcomes) -> Episodes:
        batch, place = self._progress.batches, self._share.start
        return Episodes(
            batch=batch + 1,
            first=batch * self.config.batch_size + place,
            seed=self._derived_seed("sample"),
            place=place,
            kl_coefficient=self._progress.kl_coefficient,
            prompt_rows=rows,
            samples=samples,
            outcomes=outcomes,
        )

    def _learn(self, experience: Experience, kl: float) -> dict[str, float]:
        limit = self.config.guards.kl_limit
        if limit is not None and kl > limit:
            self._progress.too_far = True
            return {}
        rate = self._set_learning_rates()
        generator = torch.Generator().manual_seed(self._derived_seed("shuffle"))
        experience = whole(experience, self.accelerator)
        with recomputing(self.policy, self.value):
            return {"lr": rate} | update(self._learner, experience, self.config, generator)

    def _set_learning_rates(self) -> float:
        config, batch = self.config, self._progress.batches
        factor = min(1.0, (batch + 1) / (config.warmup_batches + 1))
        if config.schedule == "linear":
            factor *= 1 - batch / max(config.batches, batch + 1)
        rates = (config.learning_rate, config.value_learning_rate)
        for (_, optimizer), rate in zip(self._learner.optimized(), rates, strict=False):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
        return config.learning_rate * factor

    def _advance(self, metrics: Mapping[str, float]) -> None:
        config, progress = self.config, self._progress
        progress.batches += 1
        if progress.usual_tokens is None:
            progress.usual_tokens = metrics["objective/response_tokens"]
        if config.kl_target is not None:
            progress.kl_coefficient = math.adapted_kl_coefficient(
                progress.kl_coefficient,
                metrics["objective/kl"],
                target=config.kl_target,
                horizon=config.kl_horizon,
                episodes=config.batch_size,
            )


@dataclass(kw_only=True, slots=True)
class _Progress:
    """What changes from batch to batch besides the networks."""

    kl_coefficient: float
    batches: int = 0
    usual_tokens: float | None = None
    """Mean length of the SL model's responses; None before the first batch."""
    too_far: bool = False
    """Whether the policy was found beyond the limit on the KL."""

    def state_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


def _learner(
    config: PPOConfig, policy: Policy, value: ValueNetwork | None, accelerator: Accelerator
) -> Learner:
    trained, optimizer = _prepared(policy, config.learning_rate, accelerator)
    learner = Learner(
        accelerator=accelerator,
        policy=trained,
        policy_optimizer=optimizer,
        value=None,
        value_optimizer=None,
    )
    if value is None:
        return learner
    trained, optimizer = _prepared(value, config.value_learning_rate, accelerator)
    return dataclasses.replace(learner, value=trained, value_optimizer=optimizer)


def _prepared(
    network: nn.Module, learning_rate: float, accelerator: Accelerator
) -> tuple[nn.Module, torch.optim.Optimizer]:
    optimizer = _adamw(network, learning_rate)
    if is_sharded(network):
        return network, optimizer
    prepared: tuple[nn.Module, torch.optim.Optimizer] = accelerator.prepare(network, optimizer)
    return prepared


def _adamw(network: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    trained = [p for p in network.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0, eps=1e-5)
