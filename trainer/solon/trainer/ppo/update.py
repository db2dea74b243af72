"""The gradient steps on one batch of episodes.

Shapes as in ``samples``: B episodes of all processes, each of which learns from its share of every
minibatch; R response tokens, N real ones.

Knows nothing of how episodes were sampled or scored, of schedules, or of files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from solon.trainer.ppo import groups, math
from solon.trainer.ppo.config import PPOConfig
from solon.trainer.ppo.experience import Experience, ValueTargets
from solon.trainer.ppo.samples import Samples, TokenBatch, micro_batches_of_all
from solon.trainer.sharding import is_sharded


@dataclass(frozen=True, kw_only=True, slots=True)
class Learner:
    """The networks that learn, as ``Accelerator.prepare`` gave them back."""

    accelerator: Accelerator
    policy: nn.Module
    """Called as ``networks.Policy``."""
    value: nn.Module | None
    """Called as ``networks.ValueNetwork``. None: there is no value network."""
    policy_optimizer: torch.optim.Optimizer
    value_optimizer: torch.optim.Optimizer | None

    def optimized(self) -> Iterator[tuple[nn.Module, torch.optim.Optimizer]]:
        """Each network with its optimiser."""
        yield self.policy, self.policy_optimizer
        if self.value is not None and self.value_optimizer is not None:
            yield self.value, self.value_optimizer

    def share(self, rows_B: Tensor) -> Tensor:
        """Those that are this process's to learn from: as many as every other's."""
        return rows_B[self.accelerator.process_index :: self.accelerator.num_processes]

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
    that sampled. ``experience`` is the whole batch's; ``generator`` (of the CPU, the same for every
    process) shuffles it.

    Returns:
        The metrics of the losses in ``math`` and ``groups``, averaged over the steps;
        ``policy/entropy_avg``; ``mismatch_kl``: how far the log-probabilities of sampling and of
        training are apart, in nats a token; not here where a service has sampled.
    """
    steps: list[math.Metrics] = []
    for rows_B in _minibatches(len(experience.samples.ids_BT), config, generator):
        metrics = _accumulate_gradients(learner, experience, learner.share(rows_B), config)
        steps.append(metrics)
        if config.max_update_kl and metrics["policy/approxkl_avg"].item() > config.max_update_kl:
            for _, optimizer in learner.optimized():
                optimizer.zero_grad()
            break
        _step(learner, config.max_grad_norm)
    averages = {name: torch.stack([m[name] for m in steps]).mean().item() for name in steps[0]}
    if experience.samples.behaviour_BR is None:
        averages["mismatch_kl"] = steps[0]["policy/approxkl_avg"].item()
    averages["val/steps"] = float(len(steps))
    return averages


def _minibatches(episodes: int, config: PPOConfig, generator: torch.Generator) -> Iterator[Tensor]:
    for _ in range(config.epochs):
        order = torch.randperm(episodes, generator=generator)
        yield from order.chunk(config.minibatches)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Counts:
    """What the losses of a minibatch are averaged over, all processes together, each's share."""

    tokens: Tensor
    episodes: Tensor


def _accumulate_gradients(
    learner: Learner, experience: Experience, rows_B: Tensor, config: PPOConfig
) -> math.Metrics:
    samples = experience.samples
    rows_B = rows_B.to(samples.ids_BT.device)
    lengths_b = samples.response_lengths_B[rows_B]
    # gradients are averaged over processes, so each divides by its share of the whole
    counts = _Counts(
        tokens=learner.mean(lengths_b.sum().float()).clamp(min=1.0),
        episodes=learner.mean((lengths_b > 0).sum().float()).clamp(min=1.0),
    )
    batches = micro_batches_of_all(samples.lengths_B[rows_B], config.micro_batch_size)
    totals: math.Metrics = {}
    for index, rows_b in enumerate(batches):
        last = index == len(batches) - 1
        metrics = _backward(learner, experience, rows_B[rows_b], counts, config, synchronise=last)
        for name, value in metrics.items():
            totals[name] = totals[name] + value if name in totals else value
    return {name: learner.mean(total) for name, total in totals.items()}


def _backward(
    learner: Learner,
    experience: Experience,
    rows_b: Tensor,
    counts: _Counts,
    config: PPOConfig,
    *,
    synchronise: bool,
) -> math.Metrics:
    batch = experience.samples.batch(rows_b)
    with _gradients_of(learner, learner.policy, synchronise):
        logprobs_N, entropy_N = learner.policy(batch, config.temperature)
        loss, metrics = _policy_loss(logprobs_N, batch, experience, rows_b, counts, config)
        learner.accelerator.backward(loss)
    metrics["policy/entropy_avg"] = entropy_N.sum() / counts.tokens
    if learner.value is None or experience.value is None:
        return metrics
    with _gradients_of(learner, learner.value, synchronise):
        loss, value_metrics = _value_loss(
            learner.value, batch, experience.value, rows_b, counts, config
        )
        learner.accelerator.backward(loss)
    return metrics | value_metrics


def _policy_loss(
    logprobs_N: Tensor,
    batch: TokenBatch,
    experience: Experience,
    rows_b: Tensor,
    counts: _Counts,
    config: PPOConfig,
) -> tuple[Tensor, math.Metrics]:
    samples = experience.samples
    old_N = _tokens(samples.logprobs_BR, rows_b, batch)
    advantages_bR = experience.advantages_BR[rows_b]
    likelier_bR = _likelier(samples, rows_b, batch)
    cap = config.rollouts.importance_cap
    if config.algorithm == "rloo":
        importance_b = None
        if likelier_bR is not None:
            importance_b = likelier_bR.sum(dim=1).exp().clamp(max=cap)
        return groups.rloo_loss(
            logprobs_N,
            old_N,
            advantages_bR[:, 0],
            batch.mask_bR,
            clip=config.clip,
            tokens=counts.tokens,
            episodes=counts.episodes,
            importance_b=importance_b,
        )
    importance_N = None
    if likelier_bR is not None:
        importance_N = likelier_bR[batch.mask_bR].exp().clamp(max=cap)
    if config.algorithm == "grpo":
        greatest = torch.full_like(samples.response_lengths_B, config.max_response_tokens)
        lengths_B = samples.response_lengths_B if config.scale_by_group else greatest
        return groups.grpo_loss(
            logprobs_N,
            old_N,
            _tokens(experience.reference_BR, rows_b, batch),
            advantages_bR[batch.mask_bR],
            1 / lengths_B[rows_b][batch.row_N],
            clip=config.clip,
            kl_coefficient=experience.kl_coefficient,
            tokens=counts.tokens,
            episodes=counts.episodes,
            importance_N=importance_N,
        )
    return math.policy_loss(
        logprobs_N,
        old_N,
        advantages_bR[batch.mask_bR],
        clip=config.clip,
        count=counts.tokens,
        importance_N=importance_N,
    )


def _likelier(samples: Samples, rows_b: Tensor, batch: TokenBatch) -> Tensor | None:
    """[b, R]: by how many nats a token is likelier than where it was sampled; 0 on padding.

    None if the policy that learns has sampled.
    """
    if samples.behaviour_BR is None:
        return None
    difference_bR = samples.logprobs_BR[rows_b] - samples.behaviour_BR[rows_b]
    return torch.where(batch.mask_bR, difference_bR, 0)


def _value_loss(
    network: nn.Module,
    batch: TokenBatch,
    targets: ValueTargets,
    rows_b: Tensor,
    counts: _Counts,
    config: PPOConfig,
) -> tuple[Tensor, math.Metrics]:
    features_BRH = targets.features_BRH
    features_NH = None if features_BRH is None else _tokens(features_BRH, rows_b, batch)
    return math.value_loss(
        network(batch, features_NH),
        _tokens(targets.values_BR, rows_b, batch),
        _tokens(targets.returns_BR, rows_b, batch),
        clip=config.value_clip,
        count=counts.tokens,
    )


def _tokens(values_BR: Tensor, rows_b: Tensor, batch: TokenBatch) -> Tensor:
    return values_BR[rows_b][batch.mask_bR]


def _gradients_of(
    learner: Learner, network: nn.Module, synchronise: bool
) -> AbstractContextManager[object]:
    # what is sharded has nowhere to keep the gradients of all weights until the last pass
    if synchronise or is_sharded(network):
        return nullcontext()
    pause: AbstractContextManager[object] = learner.accelerator.no_sync(network)
    return pause


def _step(learner: Learner, max_grad_norm: float) -> None:
    for network, optimizer in learner.optimized():
        learner.accelerator.clip_grad_norm_(network.parameters(), max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
