"""The RL stage on a reward model: snapshots, the held-out reward model, the limit on the KL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from solon.trainer.config import load_run_config
from solon.trainer.ppo.config import PPOConfig
from solon.trainer.schemas import EPISODES
from solon.trainer.snapshots import snapshot_folder
from solon.trainer.stages.rewards import Sources
from solon.trainer.stages.rl import train_rl
from solon.trainer.store import RunDirectory


def train(run: Path, name: str, report: Any, **changes: Any) -> dict[str, float]:
    settings = load_run_config(run).rl.model_dump() | {"snapshots_every": 1} | changes
    reward = str(run / "models/reward")
    return train_rl(
        PPOConfig.model_validate(settings),
        base_model=str(run / "models/sl"),
        # the same model twice: what is watched is then what is learned from
        sources=Sources(reward_model=reward, test_model=reward),
        data=run / "export/rl_prompts/train.parquet",
        output=run / "models" / name,
        checkpoints=run / f"checkpoints-{name}",
        episodes=RunDirectory(str(run)).parts(f"episodes-{name}", EPISODES),
        seed=3,
        report=report,
    )


def kept(run: Path, name: str) -> list[dict[str, Any]]:
    return list(RunDirectory(str(run)).parts(f"episodes-{name}", EPISODES).records())


def same(one: Path, other: Path) -> bool:
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (one, other))
    return all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_snapshots_hold_the_policy_as_it_was_and_change_nothing(
    run_with_models: Path, recorder: Any, lora: dict[str, int] | None
) -> None:
    models, report = run_with_models / "models", recorder()
    train(run_with_models, "rl", report, lora=lora)
    snapshots = [snapshot_folder(models / "rl", batch) for batch in (1, 2, 3)]
    assert snapshots[0] == models / "rl-snapshots" / "batch-000001"
    assert same(snapshots[2], models / "rl")
    assert not same(snapshots[0], snapshots[1])
    train(
        run_with_models, "without", recorder(), lora=lora, snapshots_every=None, kept_episodes=0.5
    )
    assert same(models / "without", models / "rl")
    episodes, some = kept(run_with_models, "rl"), kept(run_with_models, "without")
    assert len(episodes) == 48
    assert 0 < len(some) < 48
    assert all(one in episodes for one in some), "a part of them should be as they were"
    with pytest.raises(Exception, match="killed"):
        train(run_with_models, "killed", recorder(stop_at=2), lora=lora)
    train(run_with_models, "killed", recorder(), lora=lora)
    assert kept(run_with_models, "killed") == episodes
    for batch, folder in enumerate(snapshots, start=1):
        assert same(snapshot_folder(models / "killed", batch), folder)
    for _, _, metrics in report.steps:
        assert metrics["objective/test_scores"] == metrics["objective/model_scores"]


def test_a_policy_that_goes_too_far_is_published_as_it_was_then(
    run_with_models: Path, recorder: Any
) -> None:
    report = recorder()
    metrics = train(run_with_models, "rl", report, guards={"kl_limit": 1e-3}, learning_rate=0.01)
    assert metrics["objective/kl"] > 1e-3
    assert len(report.steps) == 2
    assert any("training ends at batch 2 of 3" in text for text in report.messages)
    assert {one["batch"] for one in kept(run_with_models, "rl")} == {1, 2}
    models = run_with_models / "models"
    assert same(models / "rl", snapshot_folder(models / "rl", 1))
