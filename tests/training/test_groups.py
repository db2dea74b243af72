"""The formulas of GRPO and RLOO, against numbers worked out by hand and against TRL's own.

Losses and gradients are those of TRL 1.16.0's ``GRPOTrainer._compute_loss`` (``loss_type`` grpo and
dr_grpo) and ``RLOOTrainer._compute_loss``, run once on the tensors below.
"""

from __future__ import annotations

import math as number

import pytest
import torch
from torch import Tensor, tensor

from solon.trainer.ppo import groups

NAN = float("nan")
# four responses of 3, 2, 1 and 3 tokens
MASK_BR = tensor([[True, True, True], [True, True, False], [True, False, False], [True] * 3])
LENGTHS_N = tensor([3.0, 3, 3, 2, 2, 1, 3, 3, 3])
NEW_N = tensor([-1.0, -0.5, -2.0, -0.7, -1.5, -0.2, -1.1, -0.9, -0.4])
OLD_N = tensor([-1.2, -0.5, -1.4, -1.0, -1.2, -0.9, -1.0, -1.0, -0.5])
REFERENCE_N = tensor([-1.1, -0.8, -1.9, -0.7, -1.0, -1.4, -1.3, -0.6, -0.5])
ADVANTAGES_B = tensor([1.5, -0.5, 0.25, -1.25])
ADVANTAGES_N = ADVANTAGES_B.repeat_interleave(tensor([3, 2, 1, 3]))
COUNTS = {"tokens": tensor(9.0), "episodes": tensor(4.0)}


def close(found: Tensor, expected: object) -> None:
    torch.testing.assert_close(found, tensor(expected), atol=1e-6, rtol=1e-5)


def test_a_reward_is_measured_against_the_prompts_other_ones() -> None:
    # 3 against (1 + 2) / 2, 1 against (3 + 2) / 2, 2 against (3 + 1) / 2; alike: 0
    found = groups.leave_one_out_advantages(tensor([3.0, 1.0, 2.0, 5.0, 5.0, 5.0]), 3)
    close(found, [1.5, -1.5, 0.0, 0.0, 0.0, 0.0])


def test_group_advantages_are_standard_scores_of_the_group() -> None:
    rewards = tensor([3.0, 1.0, 2.0, 5.0, 5.0, 5.0])
    scaled = groups.group_advantages(rewards, 3, scale=True)
    # the deviation of 3, 1, 2 with Bessel's correction is 1
    close(scaled, [1 / 1.0001, -1 / 1.0001, 0.0, 0.0, 0.0, 0.0])
    close(groups.group_advantages(rewards, 3, scale=False), [1.0, -1.0, 0.0, 0.0, 0.0, 0.0])


def test_an_episode_without_a_reward_moves_no_baseline_and_gets_no_advantage() -> None:
    # the second group has one reward, the third none: there is nothing to compare
    rewards = tensor([3.0, NAN, 2.0, NAN, 7.0, NAN, NAN, NAN, NAN])
    close(groups.leave_one_out_advantages(rewards, 3), [1.0, 0.0, -1.0] + [0.0] * 6)
    close(groups.group_advantages(rewards, 3, scale=False), [0.5, 0.0, -0.5] + [0.0] * 6)
    scale = number.sqrt(0.5) + 1e-4
    expected = [0.5 / scale, 0.0, -0.5 / scale] + [0.0] * 6
    close(groups.group_advantages(rewards, 3, scale=True), expected)


@pytest.mark.parametrize(
    ("weights_N", "loss", "gradient"),
    [
        (
            1 / LENGTHS_N,
            0.08653552830219269,
            [0.0023790654, -0.1185204536, -0.0712307245, 0.0843661800, -0.0243270472,
             0.0524104349, 0.0987856239, 0.1063755155, 0.1175010502],
        ),
        (
            torch.full_like(LENGTHS_N, 1 / 4),
            0.04862105846405029,
            [0.0017842986, -0.0888903439, -0.0534230433, 0.0421830900, -0.0121635236,
             0.0131026087, 0.0740892217, 0.0797816366, 0.0881257802],
        ),
    ],
    ids=["grpo", "dr_grpo"],
)  # fmt: skip
def test_the_grpo_loss_and_its_gradient_are_trls(
    weights_N: Tensor, loss: float, gradient: list[float]
) -> None:
    new_N = NEW_N.clone().requires_grad_()
    found, metrics = groups.grpo_loss(
        new_N, OLD_N, REFERENCE_N, ADVANTAGES_N, weights_N, clip=0.2, kl_coefficient=0.3, **COUNTS
    )
    close(found.detach(), loss)
    found.backward()
    assert new_N.grad is not None
    close(new_N.grad, gradient)
    close(metrics["loss/policy_avg"], loss)
    assert 0 < metrics["loss/kl_avg"] < loss
    close(metrics["val/ratio"], (NEW_N - OLD_N).exp().mean().item())


def test_the_rloo_loss_and_its_gradient_are_trls() -> None:
    new_N = NEW_N.clone().requires_grad_()
    found, metrics = groups.rloo_loss(new_N, OLD_N, ADVANTAGES_B, MASK_BR, clip=0.2, **COUNTS)
    close(found.detach(), 0.14399589598178864)
    found.backward()
    assert new_N.grad is not None
    close(new_N.grad, [-0.251369983] * 3 + [0.125] * 2 + [0.0] + [0.3453658819] * 3)
    # the third response alone has a ratio outside of the clip that would earn more
    close(metrics["policy/clipfrac_avg"], 0.25)


def test_the_first_rloo_step_is_reinforce() -> None:
    new_N = OLD_N.clone().requires_grad_()
    groups.rloo_loss(new_N, OLD_N, ADVANTAGES_B, MASK_BR, clip=0.2, **COUNTS)[0].backward()
    assert new_N.grad is not None
    torch.testing.assert_close(new_N.grad, -ADVANTAGES_N / 4)


def test_losses_of_micro_batches_add_up_to_the_batch() -> None:
    def grpo(part: slice) -> Tensor:
        return groups.grpo_loss(
            NEW_N[part], OLD_N[part], REFERENCE_N[part], ADVANTAGES_N[part], 1 / LENGTHS_N[part],
            clip=0.2, kl_coefficient=0.3, **COUNTS,
        )[0]  # fmt: skip

    def rloo(part: slice, rows: slice) -> Tensor:
        return groups.rloo_loss(
            NEW_N[part], OLD_N[part], ADVANTAGES_B[rows], MASK_BR[rows], clip=0.2, **COUNTS
        )[0]

    torch.testing.assert_close(grpo(slice(9)), grpo(slice(5)) + grpo(slice(5, 9)))
    whole, parts = (
        rloo(slice(9), slice(4)),
        (rloo(slice(5), slice(2)), rloo(slice(5, 9), slice(2, 4))),
    )
    torch.testing.assert_close(whole, parts[0] + parts[1])
