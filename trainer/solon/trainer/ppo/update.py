"""The gradient steps on one batch of episodes.

Shapes as in ``rollout``: B episodes of this process, R response tokens, N real ones.

Knows nothing of how episodes were sampled or scored, of schedules, or of files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from solon.trainer.ppo import math
from solon.trainer.ppo.config import PPOConfig
from solon.trainer.ppo.rollout import Samples, micro_batches


@dataclass(frozen=True, kw_only=True, slots=True)
class Experience:
    """A batch of episodes, ready to learn from; 0 on padding."""

    samples: Samples
    values_BR: Tensor
    """Before the update, in normalised rewards."""
    features_BRH: Tensor | None
    """Of the value network, if its trunk is frozen."""
    advantages_BR: Tensor
    returns_BR: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Learner:
    """The two networks that learn, as ``Accelerator.prepare`` gave them back."""

    accelerator: Accelerator
    policy: nn.Module
    """Called as ``rollout.Policy``."""
    value: nn.Module
    """Called as ``rollout.ValueNetwork``."""
    policy_optimizer: torch.optim.Optimizer
    value_optimizer: torch.optim.Optimizer

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        total: Tensor = self.accelerator.reduce(values, reduction="sum")
        return total

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes."""
        mean: Tensor = self.accelerator.reduce(values, reduction="mean")
        return mean


def update(
    learner: Learner, experience: Experience, config: PPOConfig, generator: torch.Generator
) -> dict[str, float]:
    """Take ``config.epochs`` passes of ``config.minibatches`` steps each (Schulman et al. 2017).

    Ends early, before a step, when the policy is further than ``config.max_update_kl`` from the one
    that sampled. ``generator`` (of the CPU) shuffles the episodes.

    Returns:
        The metrics of ``math.policy_loss`` and ``math.value_loss``, averaged over the steps;
        ``policy/entropy_avg``; ``mismatch_kl``: how far the log-probabilities of sampling and of
        training are apart on the same weights, in nats a token.
    """
    steps: list[math.Metrics] = []
    for rows_B in _minibatches(len(experience.samples.ids_BT), config, generator):
        metrics = _accumulate_gradients(learner, experience, rows_B, config)
        steps.append(metrics)
        if config.max_update_kl and metrics["policy/approxkl_avg"].item() > config.max_update_kl:
            learner.policy_optimizer.zero_grad()
            learner.value_optimizer.zero_grad()
            break
        _step(learner, config.max_grad_norm)
    averages = {name: torch.stack([m[name] for m in steps]).mean().item() for name in steps[0]}
    averages["mismatch_kl"] = steps[0]["policy/approxkl_avg"].item()
    averages["val/steps"] = float(len(steps))
    return averages


def _minibatches(episodes: int, config: PPOConfig, generator: torch.Generator) -> Iterator[Tensor]:
    for _ in range(config.epochs):
        order = torch.randperm(episodes, generator=generator)
        yield from order.chunk(config.minibatches)


def _accumulate_gradients(
    learner: Learner, experience: Experience, rows_B: Tensor, config: PPOConfig
) -> math.Metrics:
    samples = experience.samples
    rows_B = rows_B.to(samples.ids_BT.device)
    # gradients are averaged over processes, so each divides by its share of all tokens
    count = learner.mean(samples.response_lengths_B[rows_B].sum().float())
    groups = micro_batches(samples.lengths_B[rows_B], config.micro_batch_size)
    totals: math.Metrics = {}
    for index, group in enumerate(groups):
        last = index == len(groups) - 1
        metrics = _backward(learner, experience, rows_B[group], count, config, synchronise=last)
        for name, value in metrics.items():
            totals[name] = totals[name] + value if name in totals else value
    return {name: learner.mean(total) for name, total in totals.items()}


def _backward(
    learner: Learner,
    experience: Experience,
    rows_b: Tensor,
    count: Tensor,
    config: PPOConfig,
    *,
    synchronise: bool,
) -> math.Metrics:
    batch = experience.samples.batch(rows_b)

    def tokens(values_BR: Tensor) -> Tensor:
        return values_BR[rows_b][batch.mask_bR]

    features_BRH = experience.features_BRH

    with _gradients_of(learner, learner.policy, synchronise):
        logprobs_N, entropy_N = learner.policy(batch, config.temperature)
        loss, metrics = math.policy_loss(
            logprobs_N,
            tokens(experience.samples.logprobs_BR),
            tokens(experience.advantages_BR),
            clip=config.clip,
            count=count,
        )
        learner.accelerator.backward(loss)
    with _gradients_of(learner, learner.value, synchronise):
        loss, value_metrics = math.value_loss(
            learner.value(batch, None if features_BRH is None else tokens(features_BRH)),
            tokens(experience.values_BR),
            tokens(experience.returns_BR),
            clip=config.value_clip,
            count=count,
        )
        learner.accelerator.backward(loss)
    return metrics | value_metrics | {"policy/entropy_avg": entropy_N.sum() / count}


def _gradients_of(
    learner: Learner, network: nn.Module, synchronise: bool
) -> AbstractContextManager[object]:
    if synchronise:
        return nullcontext()
    pause: AbstractContextManager[object] = learner.accelerator.no_sync(network)
    return pause


def _step(learner: Learner, max_grad_norm: float) -> None:
    for network, optimizer in (
        (learner.policy, learner.policy_optimizer),
        (learner.value, learner.value_optimizer),
    ):
        learner.accelerator.clip_grad_norm_(network.parameters(), max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
