"""LoRA and bfloat16 in the training stages: what learns, what is published, what a kill leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from solon.trainer.errors import ConfigError
from solon.trainer.ppo.config import PPOConfig
from solon.trainer.schemas import EPISODES
from solon.trainer.stages.adapters import attach, finished
from solon.trainer.stages.modeling import save_model
from solon.trainer.stages.reward import train_reward
from solon.trainer.stages.rewards import Sources
from solon.trainer.stages.rl import train_rl
from solon.trainer.stages.scoring import RewardStatistics
from solon.trainer.stages.sft import train_sft
from solon.trainer.store import RunDirectory
from solon.trainer.training import LoraSettings, RewardConfig, SftConfig, WeightSettings

IDS = torch.tensor([[2, 7, 9, 3, 12, 8]])
LORA = LoraSettings(rank=4, alpha=8, dropout=0.1)
SETTINGS: dict[str, Any] = {
    "epochs": 1, "batch_size": 8, "micro_batch_size": 8, "learning_rate": 1e-2,
    "checkpoint_every": 3, "log_every": 2, "gradient_checkpointing": True,
}  # fmt: skip


@pytest.fixture
def train(
    base_model: Path, run_dir: Path, recorder: Callable[..., Any]
) -> Callable[..., tuple[dict[str, float], Path]]:
    """Run the sft or the reward stage; its figures and the model's directory."""

    def run(stage: str, name: str, settings: dict[str, Any], **how: Any) -> Any:
        common = {
            "base_model": str(base_model),
            "output": run_dir / "models" / name,
            "checkpoints": run_dir / "checkpoints" / name,
            "seed": 3,
            "report": recorder(**how),
        }
        export = run_dir / "export"
        if stage == "sft":
            data = export / "sft/train.parquet"
            metrics = train_sft(SftConfig(**settings), data=data, **common)
        else:
            train, test = (export / f"preferences/{split}.parquet" for split in ("train", "test"))
            config = RewardConfig(**settings)
            metrics = train_reward(config, data=[train], test_data=[test], **common)
        return metrics, run_dir / "models" / name

    return run


def weights(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "model.safetensors")


@pytest.mark.parametrize(
    "changes", [{}, {"rank_stabilised": True, "dora": True}, {"target_modules": ("q_proj",)}]
)
def test_adapters_start_by_adding_nothing_and_merge_into_what_they_learned(
    make_lm: Callable[..., PreTrainedModel], changes: dict[str, Any]
) -> None:
    lora = LoraSettings(rank=4, **changes)
    learner = attach(make_lm(), lora, task="CAUSAL_LM", key="sft.lora")
    learning = [name for name, p in learner.named_parameters() if p.requires_grad]
    assert learning
    assert all("lora_" in name for name in learning)
    torch.testing.assert_close(learner(IDS).logits, make_lm()(IDS).logits)
    torch.manual_seed(1)
    for parameter in learner.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    expected = learner(IDS).logits
    published, adapter = finished(learner, WeightSettings(lora=lora))
    assert adapter is not None
    assert type(published) is type(make_lm())
    torch.testing.assert_close(published(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, make_lm()(IDS).logits, atol=1e-2)


@pytest.mark.parametrize(("stage", "precision"), [("sft", "float32"), ("reward", "bfloat16")])
def test_an_interrupted_stage_with_adapters_publishes_the_same_plain_model(
    train: Callable[..., Any], base_model: Path, stage: str, precision: str
) -> None:
    settings = SETTINGS | {"lora": LORA, "precision": precision}
    whole, expected = train(stage, "whole", settings)
    with pytest.raises(Exception, match="killed at step 4"):
        train(stage, "killed", settings, stop_at=4)
    resumed, found = train(stage, "killed", settings)
    assert resumed["steps"] == whole["steps"] == 6
    assert all(torch.equal(weights(found)[name], t) for name, t in weights(expected).items())

    kind = AutoModelForCausalLM if stage == "sft" else AutoModelForSequenceClassification
    published = kind.from_pretrained(found)
    assert published.dtype == getattr(torch, precision)
    torch.manual_seed(0)
    start = kind.from_pretrained(base_model, num_labels=1, dtype=published.dtype)
    assert not torch.allclose(published(IDS).logits, start(IDS).logits, atol=0.05)
    # the head of a reward model is a part of its adapter
    adapted = PeftModel.from_pretrained(start, str(found / "adapter"))
    atol = 1e-4 if precision == "float32" else 0.1
    torch.testing.assert_close(adapted(IDS).logits, published(IDS).logits, rtol=0, atol=atol)


@pytest.fixture
def reward_model(base_model: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(base_model, num_labels=1)
    statistics = RewardStatistics(mean=0.0, std=1.0, responses=2)
    path = tmp_path / "reward"
    save_model(path, model, tokenizer, {RewardStatistics.FILE: statistics.to_json()})
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "float32", "value_network": "full"},
        {"precision": "bfloat16", "value_network": "head", "gradient_checkpointing": True},
    ],
)
def test_interrupted_rl_with_adapters_publishes_the_same_model_from_a_reference_of_its_own_weights(
    base_model: Path,
    reward_model: Path,
    run_dir: Path,
    recorder: Callable[..., Any],
    changes: dict[str, Any],
) -> None:
    config = PPOConfig(
        episodes=48, batch_size=16, minibatches=2, max_response_tokens=8, checkpoint_every=1,
        learning_rate=1e-2, value_learning_rate=1e-2, lora=LORA, **changes,
    )  # fmt: skip

    def run(name: str, **how: Any) -> Any:
        report = recorder(**how)
        train_rl(
            config, base_model=str(base_model), sources=Sources(reward_model=str(reward_model)),
            data=run_dir / "export/rl_prompts/train.parquet", output=run_dir / name,
            checkpoints=run_dir / "checkpoints" / name, seed=3, report=report,
            episodes=RunDirectory(str(run_dir)).parts(f"episodes-{name}", EPISODES),
        )  # fmt: skip
        return report

    report = run("whole")
    kl = [metrics["objective/kl"] for _, _, metrics in report.steps]
    assert abs(kl[0]) < (1e-5 if config.precision == "float32" else 0.1) < abs(kl[-1])
    with pytest.raises(Exception, match="killed at step 2"):
        run("killed", stop_at=2)
    (checkpoint,) = (run_dir / "checkpoints/killed").iterdir()
    kept = [name for file in checkpoint.glob("*.safetensors") for name in load_file(file)]
    assert kept
    assert all("lora_" in name or name.startswith("head.") for name in kept)
    assert run("killed").starts == [1]
    expected, found = run_dir / "whole", run_dir / "killed"
    assert all(torch.equal(weights(found)[name], t) for name, t in weights(expected).items())
    published = AutoModelForCausalLM.from_pretrained(found)
    assert published.dtype == getattr(torch, config.precision)
    start = AutoModelForCausalLM.from_pretrained(base_model, dtype=published.dtype)
    adapted = PeftModel.from_pretrained(start, str(found / "adapter"))
    torch.testing.assert_close(adapted(IDS).logits, published(IDS).logits, rtol=0, atol=0.1)


def test_full_fine_tuning_in_bfloat16_keeps_float32_weights_while_it_learns(
    train: Callable[..., Any], base_model: Path
) -> None:
    # steps of 1e-5 are far below what a bfloat16 weight can show of each
    small = SETTINGS | {"precision": "bfloat16", "learning_rate": 1e-5}
    _, published = train("sft", "sl", small)
    before, after = weights(base_model), weights(published)
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    moved = [(after[name] != before[name].bfloat16()).float().mean().item() for name in before]
    assert max(moved) > 0.05


@pytest.mark.parametrize("target", ["nowhere", "lm_head"])
def test_target_modules_that_do_not_fit_are_refused_by_key_and_value(
    make_lm: Callable[..., PreTrainedModel], target: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^sft\.lora\.target_modules: expected.*'{target}'"):
        attach(make_lm(), LoraSettings(target_modules=(target,)), task="CAUSAL_LM", key="sft.lora")
