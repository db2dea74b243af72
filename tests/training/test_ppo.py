"""PPO as a whole, on a tiny Llama: padding, resume, early stop, and that it learns."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from solon.trainer.errors import StageFailed
from solon.trainer.ppo.config import PPOConfig
from solon.trainer.ppo.experience import Experience, ValueTargets
from solon.trainer.ppo.loop import PPO
from solon.trainer.ppo.networks import Policy, ValueNetwork, response_values
from solon.trainer.ppo.rewards import RewardFunction, WeightedReward
from solon.trainer.ppo.rollout import sample
from solon.trainer.ppo.samples import Samples
from solon.trainer.ppo.update import Learner, update

PROMPTS = [[2, 7, 9, 3], [2, 5, 3], [2, 8, 8, 12, 20, 3], [2, 6, 3], [2, 11, 4, 3]]
LIKED = 9
MakeLm = Callable[..., PreTrainedModel]


def liked_share(prompt_rows: Sequence[int], samples: Samples) -> Tensor:
    """The share of LIKED among a response's tokens."""
    T = samples.ids_BT.shape[1]
    position_BT = torch.arange(T).expand(len(samples.ids_BT), T)
    in_response_BT = (position_BT >= samples.prompt_lengths_B[:, None]) & (
        position_BT < samples.lengths_B[:, None]
    )
    liked_B = ((samples.ids_BT == LIKED) & in_response_BT).sum(dim=1)
    return liked_B / samples.response_lengths_B


def value_network(lm: PreTrainedModel, *, train_trunk: bool = True) -> ValueNetwork:
    torch.manual_seed(2)
    config = type(lm.config)(**lm.config.to_dict() | {"num_labels": 1})
    reward = AutoModelForSequenceClassification.from_config(config)
    return ValueNetwork(reward, mean=0.0, std=1.0, train_trunk=train_trunk)


def rewarded_by(function: RewardFunction) -> WeightedReward:
    return WeightedReward(functions={"model": function}, weights={"model": 1.0})


def make_ppo(
    make_lm: MakeLm,
    *,
    reward: RewardFunction = liked_share,
    sources: Mapping[str, float] | None = None,
    **changes: Any,
) -> PPO:
    settings: dict[str, Any] = {
        "reward": sources or {},
        "episodes": 640,
        "batch_size": 32,
        "minibatches": 2,
        "micro_batch_size": 32,
        "max_response_tokens": 8,
        "learning_rate": 1e-2,
        "value_learning_rate": 1e-2,
        "kl_coefficient": 0.01,
        "truncation_penalty": 0.0,
    }
    config = PPOConfig(**(settings | changes))
    value = value_network(make_lm(), train_trunk=config.value_network == "full")
    return PPO(
        config,
        policy=Policy(make_lm()),
        reference=Policy(make_lm()),
        value=value if config.has_value_network else None,
        reward=rewarded_by(reward),
        prompts=PROMPTS,
        stop_ids=[1],
        pad_id=0,
        seed=11,
        accelerator=Accelerator(cpu=True),
    )


def weights(*networks: nn.Module) -> dict[str, Tensor]:
    return {
        f"{index}.{name}": tensor.clone()
        for index, network in enumerate(networks)
        for name, tensor in network.state_dict().items()
    }


def networks(ppo: PPO) -> list[nn.Module]:
    return [ppo.policy, *([ppo.value] if ppo.value else [])]


@pytest.fixture
def experience(make_lm: MakeLm) -> Experience:
    lm = make_lm()
    samples = sample(
        lm, PROMPTS * 3, max_tokens=9, temperature=1.0, stop_ids=[1, 5], pad_id=0,
        generator=torch.Generator().manual_seed(4),
    )  # fmt: skip
    values_BR, _ = response_values(value_network(lm), samples, micro_batch_size=4)
    torch.manual_seed(5)
    noise_BR = torch.randn(2, *values_BR.shape) * samples.mask_BR
    return Experience(
        samples=samples,
        reference_BR=samples.logprobs_BR - 0.1,
        advantages_BR=noise_BR[0],
        kl_coefficient=0.5,
        value=ValueTargets(values_BR=values_BR, returns_BR=noise_BR[1], features_BRH=None),
    )


def updated(
    make_lm: MakeLm, experience: Experience, **changes: Any
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Metrics and weights after plain gradient steps, which show the gradients themselves."""
    policy, value = Policy(make_lm()), value_network(make_lm())
    settings: dict[str, Any] = {
        "batch_size": 15,
        "minibatches": 3,
        "micro_batch_size": 15,
        "group_size": 5,
    }
    config = PPOConfig(**(settings | changes))
    has_value = config.has_value_network
    learner = Learner(
        accelerator=Accelerator(cpu=True),
        policy=policy,
        value=value if has_value else None,
        policy_optimizer=torch.optim.SGD(policy.parameters(), lr=0.1),
        value_optimizer=torch.optim.SGD(value.parameters(), lr=0.1) if has_value else None,
    )
    metrics = update(learner, experience, config, torch.Generator().manual_seed(6))
    return metrics, weights(policy, value)


def assert_same(
    one: tuple[dict[str, float], dict[str, Tensor]], two: tuple[dict[str, float], dict[str, Tensor]]
) -> None:
    assert one[0] == pytest.approx(two[0], rel=1e-5, abs=1e-6)
    for name, tensor in one[1].items():
        torch.testing.assert_close(tensor, two[1][name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "rloo"])
def test_further_padding_changes_no_metric_and_no_gradient(
    make_lm: MakeLm, experience: Experience, algorithm: str
) -> None:
    samples, targets = experience.samples, experience.value
    assert targets is not None

    def wider(values: Tensor, filling: float) -> Tensor:
        return nn.functional.pad(values, (0, 7), value=filling)

    padded = Experience(
        samples=dataclasses.replace(
            samples, ids_BT=wider(samples.ids_BT, 3), logprobs_BR=wider(samples.logprobs_BR, -5.0)
        ),
        reference_BR=wider(experience.reference_BR, -1.0),
        advantages_BR=wider(experience.advantages_BR, 2.0),
        kl_coefficient=experience.kl_coefficient,
        value=ValueTargets(
            values_BR=wider(targets.values_BR, 4.0),
            returns_BR=wider(targets.returns_BR, -3.0),
            features_BRH=None,
        ),
    )
    one, other = (updated(make_lm, given, algorithm=algorithm) for given in (experience, padded))
    assert_same(one, other)


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "rloo"])
def test_micro_batches_change_no_metric_and_no_gradient(
    make_lm: MakeLm, experience: Experience, algorithm: str
) -> None:
    whole = updated(make_lm, experience, algorithm=algorithm)
    assert_same(whole, updated(make_lm, experience, algorithm=algorithm, micro_batch_size=2))
    before = weights(Policy(make_lm()), value_network(make_lm()))
    assert any(not torch.equal(before[name], tensor) for name, tensor in whole[1].items())


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "rloo"])
def test_an_episode_that_is_left_out_changes_no_metric_and_no_gradient(
    make_lm: MakeLm, experience: Experience, algorithm: str
) -> None:
    kept = torch.arange(15) % 3 != 1
    samples, targets = experience.samples, experience.value
    assert targets is not None

    def taken(holder: Any) -> Any:
        names = [field.name for field in dataclasses.fields(holder)]
        rows = {name: getattr(holder, name) for name in names}
        cut = {name: t[kept] for name, t in rows.items() if isinstance(t, Tensor)}
        return dataclasses.replace(holder, **cut)

    emptied = dataclasses.replace(
        samples, response_lengths_B=samples.response_lengths_B.where(kept, 0)
    )
    advantages_BR = experience.advantages_BR * kept[:, None]
    masked = dataclasses.replace(experience, samples=emptied, advantages_BR=advantages_BR)
    without = dataclasses.replace(taken(masked), samples=taken(samples), value=taken(targets))
    one, other = (
        updated(make_lm, given, algorithm=algorithm, minibatches=1, epochs=1)
        for given in (masked, without)
    )
    assert_same(one, other)


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "rloo"])
def test_a_batch_with_episodes_without_a_score_is_learned_from(
    make_lm: MakeLm, algorithm: str
) -> None:
    def sometimes(prompt_rows: Sequence[int], samples: Samples) -> Tensor:
        scores_B = liked_share(prompt_rows, samples)
        scores_B[::8] = float("nan")
        return scores_B

    ppo = make_ppo(
        make_lm, reward=sometimes, algorithm=algorithm, sources={"max_unscored_share": 0.125}
    )
    metrics = ppo.step(lambda: 0.0)
    assert metrics["objective/unscored_share"] == 1 / 8
    assert all(math.isfinite(value) for value in metrics.values())
    with pytest.raises(StageFailed, match=r"12% of a batch's responses have no score"):
        make_ppo(make_lm, reward=sometimes, algorithm=algorithm).step()


def test_the_first_step_sees_the_policy_that_sampled(
    make_lm: MakeLm, experience: Experience
) -> None:
    metrics, _ = updated(make_lm, experience)
    assert 0 <= metrics["mismatch_kl"] < 1e-9
    assert metrics["policy/approxkl_avg"] > 1e-6


def test_an_update_ends_before_it_goes_too_far(make_lm: MakeLm, experience: Experience) -> None:
    free, _ = updated(make_lm, experience, epochs=4)
    assert free["val/steps"] == 12
    bounded, _ = updated(make_lm, experience, epochs=4, max_update_kl=1e-5)
    # one step is made, and the next finds the policy too far away
    assert bounded["val/steps"] == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"value_network": "full"},
        {"value_network": "head"},
        {"algorithm": "grpo", "group_size": 8, "episodes": 384},
        {"algorithm": "rloo", "group_size": 8, "episodes": 384},
    ],
    ids=lambda changes: next(iter(changes.values())),
)
def test_the_policy_learns_what_is_rewarded(make_lm: MakeLm, changes: dict[str, Any]) -> None:
    ppo = make_ppo(make_lm, **changes)
    rows = [ppo.step() for _ in range(ppo.config.batches)]
    first, last = rows[0], rows[-1]
    assert first["objective/scores"] < 0.1
    assert last["objective/scores"] > 0.5
    assert last["objective/kl"] > first["objective/kl"]
    assert first["objective/kl"] == pytest.approx(0.0, abs=1e-4)
    assert last["episode"] == ppo.config.episodes
    if ppo.value is None:
        assert not any("value" in name or "variance" in name for name in last)
    else:
        assert last["val/explained_variance"] > 0.1


def test_the_kl_penalty_keeps_the_policy_close(make_lm: MakeLm) -> None:
    def last_kl(coefficient: float) -> float:
        ppo = make_ppo(make_lm, kl_coefficient=coefficient, episodes=256)
        return [ppo.step() for _ in range(8)][-1]["objective/kl"]

    assert last_kl(1.0) < 0.5 * last_kl(0.0)


def test_gradient_checkpointing_computes_layers_twice_in_updates_and_changes_nothing(
    make_lm: MakeLm,
) -> None:
    def step(*, twice: bool) -> tuple[dict[str, float], int]:
        ppo = make_ppo(make_lm)
        passes: list[int] = []
        mlp = ppo.policy.lm.model.layers[0].mlp
        mlp.register_forward_pre_hook(lambda *_: passes.append(1))
        if twice:
            ppo.policy.lm.gradient_checkpointing_enable()
        return ppo.step(lambda: 0.0), len(passes)

    (plain, fewer), (recomputed, more) = step(twice=False), step(twice=True)
    assert recomputed == plain
    # two passes of two minibatches, each forward pass made once more
    assert more == fewer + 4


def test_training_ends_before_the_batch_that_finds_the_policy_too_far_away(
    make_lm: MakeLm, tmp_path: Path
) -> None:
    ppo = make_ppo(make_lm, guards={"kl_limit": 0.05})
    rows = [ppo.step()]
    assert not ppo.is_over
    while not ppo.is_over:
        before = weights(*networks(ppo))
        rows.append(ppo.step())
    assert len(rows) < ppo.config.batches
    assert rows[-1]["objective/kl"] > 0.05 >= max(row["objective/kl"] for row in rows[:-1])
    assert "loss/policy_avg" not in rows[-1]
    assert all(torch.equal(before[name], t) for name, t in weights(*networks(ppo)).items())
    ppo.save(tmp_path / "saved")
    resumed = make_ppo(make_lm, guards={"kl_limit": 0.05})
    resumed.load(tmp_path / "saved")
    assert resumed.is_too_far


def test_what_the_guards_take_is_taken_from_the_score(make_lm: MakeLm) -> None:
    def first_two(**guards: float) -> list[dict[str, float]]:
        ppo = make_ppo(make_lm, guards={"length_tolerance": 0.0, **guards})
        return [ppo.step(), ppo.step()]

    free = first_two()
    assert [row["objective/penalties"] for row in free] == [0.0, 0.0]
    assert free[0]["objective/length_drift"] == 0.0
    usual, now = (row["objective/response_tokens"] for row in free)
    assert free[1]["objective/length_drift"] == pytest.approx(now / usual - 1)
    (paid, _) = first_two(length_penalty=2.0, repetition_penalty=1.0)
    assert paid["objective/model_scores"] == free[0]["objective/model_scores"]
    taken = paid["objective/penalties"]
    assert taken > 0
    assert paid["objective/scores"] == pytest.approx(free[0]["objective/scores"] - taken, abs=1e-5)


def test_a_frozen_trunk_stays_as_it_was(make_lm: MakeLm) -> None:
    ppo = make_ppo(make_lm, value_network="head")
    assert ppo.value is not None
    trunk, head = weights(ppo.value.trunk), weights(ppo.value.head)
    ppo.step()
    assert all(torch.equal(trunk[name], t) for name, t in weights(ppo.value.trunk).items())
    assert not any(torch.equal(head[name], t) for name, t in weights(ppo.value.head).items())


@pytest.mark.parametrize(
    "kind", [{"value_network": "full"}, {"value_network": "head"}, {"algorithm": "grpo"}]
)
def test_the_batch_after_a_resume_is_bit_identical(
    make_lm: MakeLm, tmp_path: Path, kind: dict[str, Any]
) -> None:
    changes = {"kl_target": 1.0, "kl_horizon": 100, **kind}
    one = make_ppo(make_lm, **changes)
    for _ in range(2):
        one.step()
    one.save(tmp_path / "saved")
    torch.manual_seed(99)  # what a resumed process has is not what the first one had
    two = make_ppo(make_lm, **changes)
    two.load(tmp_path / "saved")
    assert two.batches_done == 2
    found, expected = two.step(lambda: 0.0), one.step(lambda: 0.0)
    assert found == expected
    assert expected["objective/kl_coefficient"] != 0.01, "should have adapted"
    ours, theirs = weights(*networks(two)), weights(*networks(one))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_every_prompt_is_used_once_before_any_is_used_again(make_lm: MakeLm) -> None:
    seen: list[int] = []

    def constant(prompt_rows: Sequence[int], samples: Samples) -> Tensor:
        seen.extend(prompt_rows)
        return torch.zeros(len(prompt_rows))

    ppo = make_ppo(make_lm, reward=constant, batch_size=4, minibatches=1, episodes=20)
    for _ in range(5):
        ppo.step()
    passes = [seen[start : start + 5] for start in range(0, 20, 5)]
    assert all(sorted(rows) == [0, 1, 2, 3, 4] for rows in passes)
    assert len({tuple(rows) for rows in passes}) > 1


def test_the_responses_of_a_group_answer_one_prompt_and_stand_side_by_side(
    make_lm: MakeLm,
) -> None:
    seen: list[int] = []

    def constant(prompt_rows: Sequence[int], samples: Samples) -> Tensor:
        seen.extend(prompt_rows)
        return torch.zeros(len(prompt_rows))

    ppo = make_ppo(
        make_lm, reward=constant, algorithm="rloo", batch_size=12, minibatches=1, group_size=3
    )
    for _ in range(5):
        ppo.step()
    assert all(len(set(seen[start : start + 3])) == 1 for start in range(0, 60, 3))
    prompts = seen[::3]
    assert all(sorted(prompts[start : start + 5]) == [0, 1, 2, 3, 4] for start in range(0, 20, 5))


def test_a_group_that_does_not_fill_the_batch_is_refused() -> None:
    with pytest.raises(ValidationError, match="group_size: expected a divisor of batch_size 32"):
        PPOConfig(algorithm="grpo", batch_size=32, group_size=5)
    assert PPOConfig(algorithm="ppo", batch_size=30, minibatches=2).responses_per_prompt == 1


def test_a_cut_response_pays_the_penalty(make_lm: MakeLm) -> None:
    def score(penalty: float) -> dict[str, float]:
        ppo = make_ppo(make_lm, truncation_penalty=penalty, max_response_tokens=2)
        return ppo.step(lambda: 0.0)

    free, paid = score(0.0), score(2.0)
    cut = 1 - free["val/num_eos_tokens"] / 32
    assert cut > 0.5
    assert paid["objective/scores"] == pytest.approx(free["objective/scores"] - 2 * cut, abs=1e-5)


def test_no_prompts_are_refused(make_lm: MakeLm) -> None:
    with pytest.raises(ValueError, match="at least one"):
        PPO(
            PPOConfig(), policy=Policy(make_lm()), reference=Policy(make_lm()),
            value=value_network(make_lm()), reward=rewarded_by(liked_share), prompts=[],
            stop_ids=[1], pad_id=0, seed=0,
        )  # fmt: skip
