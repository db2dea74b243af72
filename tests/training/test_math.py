"""PPO's formulas against numbers worked out by hand."""

from __future__ import annotations

import math as number

import pytest
import torch
from torch import Tensor, tensor

from solon.trainer.ppo import math


def close(found: Tensor, expected: object) -> None:
    torch.testing.assert_close(found, tensor(expected), atol=1e-6, rtol=1e-5)


def test_advantages_are_those_worked_out_by_hand() -> None:
    # gamma 0.9, lambda 0.5, so each advantage carries 0.45 of the next
    # row 1: deltas 1 + 0.9 * 1 - 0.5 = 1.4, 0 + 0.9 * 2 - 1 = 0.8, 2 + 0 - 2 = 0
    # row 2, of two tokens: deltas 0 + 0.9 * 0.5 - 0 = 0.45, 1 + 0 - 0.5 = 0.5
    mask = tensor([[True, True, True], [True, True, False]])
    rewards = tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]])
    values = tensor([[0.5, 1.0, 2.0], [0.0, 0.5, 0.0]])
    advantages, returns = math.gae(rewards, values, mask, discount=0.9, lam=0.5)
    close(advantages, [[1.76, 0.8, 0.0], [0.675, 0.5, 0.0]])
    close(returns, [[2.26, 1.8, 2.0], [0.675, 1.0, 0.0]])


def test_what_stands_in_padding_changes_no_advantage() -> None:
    mask = tensor([[True, True, False]])
    clean = math.gae(
        tensor([[0.0, 1.0, 0.0]]), tensor([[0.2, 0.5, 0.0]]), mask, discount=1.0, lam=0.95
    )
    dirty = math.gae(
        tensor([[0.0, 1.0, 7.0]]), tensor([[0.2, 0.5, float("nan")]]), mask, discount=1.0, lam=0.95
    )
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a, b)


def test_lambda_one_gives_returns_minus_values_and_lambda_zero_one_step_errors() -> None:
    mask = torch.ones(1, 3, dtype=torch.bool)
    rewards, values = tensor([[1.0, 2.0, 3.0]]), tensor([[0.5, 0.25, 1.0]])
    advantages, returns = math.gae(rewards, values, mask, discount=1.0, lam=1.0)
    close(returns, [[6.0, 5.0, 3.0]])
    close(advantages, [[5.5, 4.75, 2.0]])
    advantages, _ = math.gae(rewards, values, mask, discount=1.0, lam=0.0)
    close(advantages, [[0.75, 2.75, 2.0]])


def test_the_policy_loss_is_the_one_worked_out_by_hand() -> None:
    # ratios 1.5, 0.5, 1; advantages 2, -1, 4; clip 0.2
    # -min(3, 2.4), -min(-0.5, -0.8), -4: -2.4 + 0.8 - 4 = -5.6, over three tokens
    old = tensor([-1.0, -1.0, -1.0])
    new = (old + tensor([1.5, 0.5, 1.0]).log()).requires_grad_()
    loss, metrics = math.policy_loss(
        new, old, tensor([2.0, -1.0, 4.0]), clip=0.2, count=tensor(3.0)
    )
    close(loss.detach(), -5.6 / 3)
    close(metrics["policy/clipfrac_avg"], 2 / 3)
    close(metrics["val/ratio"], 1.0)
    # ratio - 1 - log ratio: 0.5 - ln 1.5, -0.5 + ln 2, 0
    close(metrics["policy/approxkl_avg"], (number.log(2) - number.log(1.5)) / 3)
    loss.backward()
    assert new.grad is not None
    # what is clipped has no gradient; the rest has -advantage * ratio / 3
    close(new.grad, [0.0, 0.0, -4 / 3])


def test_a_ratio_outside_the_clip_still_counts_where_that_makes_the_loss_worse() -> None:
    old = tensor([0.0, 0.0])
    new = tensor([1.5, 0.5]).log()
    # advantage -2 at ratio 1.5: 3 is worse than 2.4; advantage 1 at ratio 0.5: -0.5 than -0.8
    loss, metrics = math.policy_loss(new, old, tensor([-2.0, 1.0]), clip=0.2, count=tensor(2.0))
    close(loss, (3.0 - 0.5) / 2)
    close(metrics["policy/clipfrac_avg"], 0.0)


def test_the_value_loss_is_the_one_worked_out_by_hand() -> None:
    # clipped values 0.5 + 0.2 and 1 + 0.2; errors 1 and 2.25, clipped 1.69 and 0.09
    loss, metrics = math.value_loss(
        tensor([1.0, 3.0]), tensor([0.5, 1.0]), tensor([2.0, 1.5]), clip=0.2, count=tensor(2.0)
    )
    close(loss, 0.5 * (1.69 + 2.25) / 2)
    close(metrics["val/clipfrac_avg"], 0.5)


def test_losses_of_micro_batches_add_up_to_the_batch() -> None:
    torch.manual_seed(0)
    new, old, other = torch.randn(3, 10)
    count = tensor(10.0)
    for function in (math.policy_loss, math.value_loss):
        whole, metrics = function(new, old, other, clip=0.2, count=count)
        parts = [
            function(new[part], old[part], other[part], clip=0.2, count=count)
            for part in (slice(0, 3), slice(3, 10))
        ]
        torch.testing.assert_close(whole, parts[0][0] + parts[1][0])
        for name, value in metrics.items():
            torch.testing.assert_close(value, parts[0][1][name] + parts[1][1][name])


def test_kl_estimates_of_one_token() -> None:
    p, q = tensor([0.5]).log(), tensor([0.25]).log()
    close(math.kl_estimate(p, q, "k1"), [number.log(2)])
    close(math.kl_estimate(p, q, "k3"), [0.5 - 1 + number.log(2)])


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_mean_of_a_kl_estimate_is_the_kl(estimator: str) -> None:
    p, q = tensor([0.5, 0.3, 0.2]), tensor([0.25, 0.25, 0.5])
    estimates = math.kl_estimate(p.log(), q.log(), estimator)  # type: ignore[arg-type]
    close((p * estimates).sum(), (p * (p / q).log()).sum().item())


def test_the_k3_estimate_is_never_negative() -> None:
    torch.manual_seed(0)
    assert (math.kl_estimate(torch.randn(1000), torch.randn(1000), "k3") >= 0).all()


def test_the_score_is_paid_at_the_last_token_and_the_kl_at_each() -> None:
    mask = tensor([[True, True, False], [True, True, True]])
    kl = tensor([[0.1, 0.2, 9.0], [0.0, 0.4, 0.6]])
    rewards = math.token_rewards(tensor([2.0, -1.0]), kl, mask, 0.5)
    close(rewards, [[-0.05, 1.9, 0.0], [0.0, -0.2, -1.3]])


def test_means_and_whitening_see_real_tokens_only() -> None:
    mask = tensor([[True, True, False], [True, False, False]])
    values = tensor([[1.0, 2.0, 50.0], [6.0, float("inf"), -9.0]])
    close(math.masked_mean(values, mask), 3.0)
    # deviations -2, -1, 3: variance 14 / 3
    deviation = number.sqrt(14 / 3)
    whitened = math.masked_whiten(values, mask)
    close(whitened, [[-2 / deviation, -1 / deviation, 0.0], [3 / deviation, 0.0, 0.0]])
    kept = math.masked_whiten(values, mask, shift_mean=False)
    close(kept[0, 0], 3 - 2 / deviation)
    assert kept[1, 1] == 0


def test_whitening_over_two_processes_is_that_of_all_tokens() -> None:
    torch.manual_seed(1)
    values, mask = torch.randn(6, 4), torch.rand(6, 4) > 0.3
    whole = math.masked_whiten(values, mask)
    # the other process's sums, in the order in which they are asked for
    mean = math.masked_mean(values, mask)
    other = iter(
        [
            torch.where(mask, values, 0)[3:].sum(),
            mask[3:].sum(),
            torch.where(mask, (values - mean) ** 2, 0)[3:].sum(),
            mask[3:].sum(),
        ]
    )
    half = math.masked_whiten(values[:3], mask[:3], reduce=lambda total: total + next(other))
    torch.testing.assert_close(half, whole[:3])


def test_explained_variance_is_one_for_perfect_values_and_zero_for_a_constant() -> None:
    mask = tensor([[True, True, True, False]])
    returns = tensor([[1.0, 2.0, 4.0, 100.0]])
    close(math.explained_variance(returns, returns, mask), 1.0)
    close(math.explained_variance(torch.ones(1, 4), returns, mask), 0.0)


def test_the_adaptive_coefficient_follows_the_kl_within_bounds() -> None:
    def adapted(kl: float) -> float:
        return math.adapted_kl_coefficient(0.1, kl, target=6.0, horizon=1000, episodes=100)

    assert adapted(6.0) == pytest.approx(0.1)
    assert adapted(6.6) == pytest.approx(0.1 * (1 + 0.1 * 0.1))
    assert adapted(600.0) == pytest.approx(0.1 * (1 + 0.2 * 0.1))
    assert adapted(0.0) == pytest.approx(0.1 * (1 - 0.2 * 0.1))
