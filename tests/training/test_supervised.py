"""SFT and reward training through TRL, on a tiny Llama."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from solon.trainer.errors import ConfigError, RunDirectoryError
from solon.trainer.ppo.rollout import sample
from solon.trainer.stages.calibration import calibration_error, reliability
from solon.trainer.stages.modeling import (
    ChatEncoder,
    batch_order,
    load_causal_lm,
    load_tokenizer,
    stop_ids,
)
from solon.trainer.stages.pairs import target
from solon.trainer.stages.reward import soft_preference_loss, train_reward
from solon.trainer.stages.sft import train_sft
from solon.trainer.training import RewardConfig, SftConfig

SFT = SftConfig(epochs=4, batch_size=8, micro_batch_size=4, learning_rate=1e-2, checkpoint_every=10)
REWARD = RewardConfig(
    epochs=4, batch_size=8, micro_batch_size=4, learning_rate=3e-3, checkpoint_every=10
)


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.fixture
def sft(
    base_model: Path, run_dir: Path, recorder: Callable[..., Any]
) -> Callable[..., tuple[dict[str, float], Any, dict[str, torch.Tensor]]]:
    """Train; the summary, what was reported, and the weights."""

    def run(name: str, config: SftConfig = SFT, **how: Any) -> Any:
        report = recorder(**how)
        metrics = train_sft(
            config,
            base_model=str(base_model),
            data=run_dir / "export/sft/train.parquet",
            output=run_dir / "models" / name,
            checkpoints=run_dir / "checkpoints" / name,
            seed=3,
            report=report,
        )
        return metrics, report, load_file(run_dir / "models" / name / "model.safetensors")

    return run


def test_the_prompt_is_masked_and_the_response_ends_the_turn(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    encoder = ChatEncoder(tokenizer, [tokenizer.eos_token_id])
    prompt = [*user("tell me"), *assistant("no"), *user("please")]
    (turn,) = encoder.turns([prompt], [assistant("I will not")])
    assert tokenizer.decode(turn.prompt_ids) == (
        "<user> tell me <assistant> no <end> <user> please <assistant>"
    )
    assert tokenizer.decode(turn.response_ids) == "I will not <end>"
    assert encoder.prompts([prompt]) == [turn.prompt_ids]


def test_what_the_template_writes_after_the_end_of_the_turn_is_not_trained_on(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    encoder = ChatEncoder(tokenizer, [tokenizer.get_vocab()["so"]])
    (turn,) = encoder.turns([user("please")], [assistant("I will so")])
    assert tokenizer.decode(turn.response_ids) == "I will so"


def test_a_template_without_an_end_of_turn_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    encoder = ChatEncoder(tokenizer, [tokenizer.pad_token_id])
    with pytest.raises(ConfigError, match=r"'<pad>'.*never stops"):
        encoder.turns([user("please")], [assistant("no")])


def test_sft_teaches_to_answer_and_to_stop(
    sft: Callable[..., Any], run_dir: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = {"prompt": [user("tell me")] * 24, "completion": [assistant("I will not")] * 24}
    pq.write_table(pa.table(rows), run_dir / "export/sft/train.parquet")
    config = SFT.model_copy(update={"epochs": 8, "log_every": 1})
    metrics, report, _ = sft("sl", config)
    assert metrics["records"] == 24
    assert report.starts == [0]
    assert report.steps[-1][2]["loss"] < 0.5 < report.steps[0][2]["loss"]
    lm = load_causal_lm(str(run_dir / "models/sl"))
    (prompt,) = ChatEncoder(tokenizer, [tokenizer.eos_token_id]).prompts([user("tell me")])
    samples = sample(
        lm, [prompt], max_tokens=20, temperature=0.0, stop_ids=[tokenizer.eos_token_id], pad_id=0,
        generator=torch.Generator(),
    )  # fmt: skip
    assert tokenizer.decode(samples.ids_BT[0, len(prompt) :]) == "I will not <end>"


def test_an_interrupted_sft_ends_in_the_same_weights(sft: Callable[..., Any]) -> None:
    whole, report, expected = sft("whole")
    assert report.steps[-1][:2] == (24, 24)
    with pytest.raises(Exception, match="killed at step 20"):
        sft("killed", stop_at=20)
    resumed, report, found = sft("killed")
    # the checkpoint of step 20 was not written yet
    assert report.starts == [10]
    assert report.steps[0][0] == 20
    assert resumed["steps"] == whole["steps"] == 24
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_records_that_are_too_long_are_left_out_and_counted(sft: Callable[..., Any]) -> None:
    config = SFT.model_copy(update={"epochs": 1, "max_length": 11})
    metrics, report, _ = sft("short", config)
    assert metrics["too_long"] > 0
    assert metrics["too_long"] + metrics["records"] == 48
    assert "exceed sft.max_length" in report.messages[0]
    with pytest.raises(RunDirectoryError, match=r"raise sft\.max_length"):
        sft("none", SFT.model_copy(update={"max_length": 3}))


def test_a_batch_holds_random_records_sorted_by_length() -> None:
    lengths = [length % 17 for length in range(100)]
    order = batch_order(lengths, epochs=2, batch_size=10, seed=1)
    assert sorted(order[:100]) == sorted(order[100:]) == list(range(100))
    assert order[:100] != order[100:]
    for start in range(0, 200, 10):
        batch = [lengths[row] for row in order[start : start + 10]]
        assert batch == sorted(batch)
    assert order == batch_order(lengths, epochs=2, batch_size=10, seed=1)
    assert order != batch_order(lengths, epochs=2, batch_size=10, seed=2)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_soft_loss_and_its_gradient_are_those_worked_out_by_hand() -> None:
    # differences 2 and -1, labels 0.8 and 0.5
    chosen = torch.tensor([1.5, 0.0], requires_grad=True)
    rejected = torch.tensor([-0.5, 1.0], requires_grad=True)
    loss = soft_preference_loss(chosen, rejected, torch.tensor([0.8, 0.5]))
    first = -0.8 * math.log(sigmoid(2)) - 0.2 * math.log(sigmoid(-2))
    second = -0.5 * math.log(sigmoid(-1)) - 0.5 * math.log(sigmoid(1))
    assert loss.item() == pytest.approx((first + second) / 2)
    loss.backward()
    # of each pair (sigmoid(d) - p) / 2, with the other sign for the rejected one
    expected = torch.tensor([(sigmoid(2) - 0.8) / 2, (sigmoid(-1) - 0.5) / 2])
    assert chosen.grad is not None
    torch.testing.assert_close(chosen.grad, expected)
    torch.testing.assert_close(rejected.grad, -expected)


def test_a_certain_label_gives_the_usual_loss_and_centering_adds_its_square() -> None:
    chosen, rejected = torch.tensor([1.0]), torch.tensor([0.5])
    hard = soft_preference_loss(chosen, rejected, torch.tensor([1.0]))
    assert hard.item() == pytest.approx(-math.log(sigmoid(0.5)))
    centred = soft_preference_loss(chosen, rejected, torch.tensor([1.0]), centering=0.1)
    assert centred.item() == pytest.approx(hard.item() + 0.1 * 1.5**2)


def test_the_calibration_error_is_the_one_worked_out_by_hand() -> None:
    # leaning 0.9 twice (one bin), right once: |1.8 - 1| ; leaning 0.6 against 0.6: 0
    assert calibration_error([0.9, 0.1, 0.6], [1.0, 1.0, 0.6]) == pytest.approx(0.8 / 3)
    assert calibration_error([0.75, 0.25], [0.75, 0.25]) == pytest.approx(0.0)
    bins = reliability([0.92, 0.08, 0.62], [1.0, 1.0, 0.6])
    assert [found["pairs"] for found in bins] == [0, 0, 1, 0, 0, 0, 0, 0, 2, 0]
    assert (bins[8]["from"], bins[8]["to"]) == (0.9, 0.95)
    assert bins[8]["predicted"] == pytest.approx(0.92)
    assert bins[8]["target"] == pytest.approx(0.5)


@pytest.fixture
def reward(train_on_pairs: Callable[..., Any]) -> Callable[..., tuple[dict[str, float], Any]]:
    def run(name: str, config: RewardConfig = REWARD, **how: Any) -> Any:
        return train_on_pairs(train_reward, name, config, **how)

    return run


def test_the_reward_model_learns_the_labels_and_leaves_its_scale(
    reward: Callable[..., Any], run_dir: Path
) -> None:
    metrics, report = reward("reward")
    assert metrics["test_accuracy"] > 0.9
    assert metrics["test_calibration_error"] < 0.25
    assert report.steps[-1][2]["accuracy"] > report.steps[0][2]["accuracy"]
    figures = json.loads((run_dir / "models/reward/figures.json").read_text())
    assert figures["metrics"] == metrics
    assert sum(found["pairs"] for found in figures["reliability"]) == metrics["test_pairs"] == 12
    saved = json.loads((run_dir / "models/reward/reward_statistics.json").read_text())
    assert saved == {"mean": metrics["mean"], "std": metrics["std"], "responses": 96}


def test_two_reward_models_may_learn_from_prompts_that_they_do_not_share(
    reward: Callable[..., Any], run_dir: Path
) -> None:
    config = REWARD.model_copy(update={"epochs": 1})
    (first, _), (second, _) = (reward(str(half), config, half=half) for half in (0, 1))
    assert first["pairs"] + second["pairs"] == 48
    assert min(first["pairs"], second["pairs"]) > 10
    data = run_dir / "export/preferences/train.parquet"
    pq.write_table(pq.read_table(data).slice(0, 1), data)
    with pytest.raises(RunDirectoryError, match=r"set reward\.test_model=false"):
        _ = [reward(f"few-{half}", config, half=half) for half in (0, 1)]


def test_hard_labels_make_the_model_surer_than_soft_ones(reward: Callable[..., Any]) -> None:
    soft, _ = reward("soft")
    hard, _ = reward("hard", REWARD.model_copy(update={"soft_labels": False}))
    assert hard["std"] > 1.1 * soft["std"]


def test_an_interrupted_reward_training_ends_in_the_same_model(
    reward: Callable[..., Any],
) -> None:
    expected, _ = reward("whole")
    with pytest.raises(Exception, match="killed at step 20"):
        reward("killed", stop_at=20)
    found, report = reward("killed")
    assert report.starts == [10]
    assert found == expected


def test_a_model_that_does_not_exist_is_refused(
    run_dir: Path, recorder: Callable[..., Any]
) -> None:
    with pytest.raises(ConfigError, match=r"cannot load '\./nowhere'"):
        train_sft(
            SFT, base_model="./nowhere", data=run_dir / "export/sft/train.parquet",
            output=run_dir / "out", checkpoints=run_dir / "ck", seed=0, report=recorder(),
        )  # fmt: skip


def test_a_model_without_a_chat_template_is_refused(
    make_lm: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    run_dir: Path,
    recorder: Callable[..., Any],
) -> None:
    path = run_dir / "plain"
    make_lm().save_pretrained(path)
    tokenizer.save_pretrained(path)
    (path / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="chat template"):
        train_sft(
            SFT, base_model=str(path), data=run_dir / "export/sft/train.parquet",
            output=run_dir / "out", checkpoints=run_dir / "ck", seed=0, report=recorder(),
        )  # fmt: skip


def test_a_base_model_without_a_chat_format_takes_another_models(
    make_lm: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    base_model: Path,
    run_dir: Path,
    recorder: Callable[..., Any],
) -> None:
    plain = run_dir / "plain"
    model = make_lm()
    assert model.generation_config is not None
    model.generation_config.eos_token_id = None
    model.save_pretrained(plain)
    tokenizer.save_pretrained(plain)
    (plain / "chat_template.jinja").unlink()
    where = {
        "data": run_dir / "export/sft/train.parquet",
        "output": run_dir / "models" / "chats",
        "checkpoints": run_dir / "checkpoints" / "chats",
    }
    few = SFT.model_copy(update={"epochs": 1})

    def train(base: Path, chats: Path) -> dict[str, float]:
        return train_sft(
            few, base_model=str(base), chat_model=str(chats), seed=3, report=recorder(), **where
        )

    assert train(plain, base_model)["records"] > 0
    made = load_tokenizer(str(where["output"]))
    assert made.chat_template == tokenizer.chat_template
    assert stop_ids(load_causal_lm(str(where["output"])), made) == [tokenizer.eos_token_id]
    other = run_dir / "other"
    shutil.copytree(plain, other)
    vocabulary = other / "tokenizer.json"
    vocabulary.write_text(vocabulary.read_text().replace('"flour"', '"flower"'))
    with pytest.raises(ConfigError, match=r"sft.chat_format: expected models with the same voc"):
        train(other, base_model)


def test_hard_labels_are_rounded_and_a_tie_is_nobodys_win() -> None:
    assert [target(p, soft=False) for p in (0.2, 0.5, 0.51)] == [0.0, 0.5, 1.0]
    assert target(0.2, soft=True) == 0.2
