"""DPO through TRL with the judge's probabilities as targets, on a tiny Llama."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from solon.trainer.config import load_config
from solon.trainer.course import needs, roles, stages_of
from solon.trainer.stage_names import STAGES
from solon.trainer.stages.dpo import implied_logit, preference_loss, train_dpo
from solon.trainer.stages.modeling import ChatEncoder, Turn
from solon.trainer.stages.pairs import read_pairs
from solon.trainer.steps import Step
from solon.trainer.training import DpoConfig, LoraSettings

SETTINGS: dict[str, Any] = {
    "epochs": 1, "batch_size": 8, "micro_batch_size": 8, "learning_rate": 1e-2,
    "checkpoint_every": 3, "log_every": 2, "beta": 0.5,
}  # fmt: skip


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_soft_losses_and_their_gradients_are_those_worked_out_by_hand() -> None:
    margin = torch.tensor([2.0, -1.0], requires_grad=True)
    labels = torch.tensor([0.8, 0.5])
    loss = preference_loss(margin, labels, beta=0.5, loss="sigmoid")
    first = -0.8 * math.log(sigmoid(1)) - 0.2 * math.log(sigmoid(-1))
    second = -0.5 * math.log(sigmoid(-0.5)) - 0.5 * math.log(sigmoid(0.5))
    assert loss.item() == pytest.approx((first + second) / 2)
    loss.backward()
    expected = [0.5 * (sigmoid(1) - 0.8) / 2, 0.5 * (sigmoid(-0.5) - 0.5) / 2]
    torch.testing.assert_close(margin.grad, torch.tensor(expected))
    ipo = preference_loss(margin, labels, beta=0.5, loss="ipo")
    assert ipo.item() == pytest.approx(((2 - 0.6) ** 2 + (-1 - 0) ** 2) / 2)


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_a_margin_that_means_the_label_has_the_least_loss(loss: Any) -> None:
    label = torch.tensor([0.7])
    grid = torch.linspace(-4, 4, 801)
    losses = [preference_loss(m.view(1), label, beta=0.5, loss=loss).item() for m in grid]
    best = grid[losses.index(min(losses))]
    assert torch.sigmoid(implied_logit(best, beta=0.5, loss=loss)) == pytest.approx(0.7, abs=0.01)


def test_a_run_with_dpo_has_no_reward_stage_and_learns_from_the_preferences() -> None:
    config = load_config("sandbox-tiny", ["rl.algorithm=dpo"])
    assert [stage for stage in STAGES if stage not in stages_of(config)] == ["reward"]
    assert needs(config, Step("rl")) == (Step("sft"), Step("preferences"))
    assert roles(config, "rl") == frozenset()


@pytest.fixture
def dpo(
    train_on_pairs: Callable[..., Any], run_dir: Path
) -> Callable[..., tuple[dict[str, float], Any, Path]]:
    def run(name: str, config: DpoConfig, **how: Any) -> Any:
        return *train_on_pairs(train_dpo, name, config, **how), run_dir / "models" / name

    return run


def log_probability(lm: PreTrainedModel, turn: Turn) -> Tensor:
    ids, start = torch.tensor([turn.ids]), len(turn.prompt_ids)
    with torch.no_grad():
        logprobs = lm(ids).logits.log_softmax(-1)[0, start - 1 : -1]
    total: Tensor = logprobs.gather(1, ids[0, start:, None]).sum()
    return total


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"loss": "ipo", "lora": LoraSettings(rank=4), "gradient_checkpointing": True},
    ],
    ids=["full-sigmoid", "lora-ipo"],
)
def test_an_interrupted_dpo_ends_in_the_same_model_which_prefers_what_the_judge_does(
    dpo: Callable[..., Any],
    base_model: Path,
    run_dir: Path,
    tokenizer: PreTrainedTokenizerBase,
    changes: dict[str, Any],
) -> None:
    config = DpoConfig(**SETTINGS | changes)
    whole, report, expected = dpo("whole", config)
    assert whole["test_accuracy"] > 0.9
    assert report.steps[-1][2]["margin"] > report.steps[0][2]["margin"]
    with pytest.raises(Exception, match="killed at step 4"):
        dpo("killed", config, stop_at=4)
    resumed, report, found = dpo("killed", config)
    assert report.starts == [3]
    assert resumed == whole
    ours, theirs = (load_file(path / "model.safetensors") for path in (found, expected))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())

    # the published model against the SL model, without TRL
    losses = []
    lm, sl = (AutoModelForCausalLM.from_pretrained(path) for path in (found, base_model))
    test = run_dir / "export/preferences/test.parquet"
    assert pq.read_metadata(test).num_rows == whole["test_pairs"]
    for pair in read_pairs([test], ChatEncoder(tokenizer, [tokenizer.eos_token_id])):
        turns = (pair.chosen, pair.rejected)
        ratios = [log_probability(lm, turn) - log_probability(sl, turn) for turn in turns]
        if config.loss == "ipo":
            ratios = [r / len(turn.response_ids) for r, turn in zip(ratios, turns, strict=True)]
        margin = (ratios[0] - ratios[1]).view(1)
        logit = implied_logit(margin, beta=config.beta, loss=config.loss)
        label = torch.tensor([pair.probability])
        losses.append(preference_loss(logit, label, beta=1.0, loss="sigmoid").item())
    assert whole["test_loss"] == pytest.approx(sum(losses) / len(losses), rel=2e-3)
