"""RL whose responses the policy service samples: a real process, the transformers engine, gRPC."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from solon.chat import Conversation
from solon.client.sync import ControlClient
from solon.constitution import load, resolve
from solon.trainer.config import RunConfig, load_run_config
from solon.trainer.errors import ServiceError
from solon.trainer.fleet import Weights
from solon.trainer.ppo.config import PPOConfig, RolloutSettings
from solon.trainer.schemas import EPISODES
from solon.trainer.stages.policy_answers import PolicyAnswers, Question, open_policy
from solon.trainer.stages.rewards import Sources
from solon.trainer.stages.rl import train_rl
from solon.trainer.store import RunDirectory


def config_of(run: Path, **changes: Any) -> RunConfig:
    """With the policy service as the sampler; learning fast enough to show it."""
    config = load_run_config(run)
    settings = config.rl.model_dump() | {"learning_rate": 0.02, "minibatches": 1}
    settings["rollouts"] = {"source": "policy"} | changes.pop("rollouts", {})
    return config.model_copy(update={"rl": PPOConfig.model_validate(settings | changes)})


@contextmanager
def asked(run: Path, config: RunConfig, address: str) -> Iterator[PolicyAnswers]:
    constitution = load(resolve(config.constitution))
    at = {"policy": address}
    with open_policy(config, constitution, addresses=at, log_dir=run / "logs") as answers:
        yield answers


def train(run: Path, name: str, config: RunConfig, report: Any, address: str) -> None:
    with asked(run, config, address) as answers:
        train_rl(
            config.rl,
            base_model=str(run / "models/sl"),
            sources=Sources(reward_model=str(run / "models/reward")),
            data=run / "export/rl_prompts/train.parquet",
            output=run / "models" / name,
            checkpoints=run / f"checkpoints-{name}",
            episodes=RunDirectory(str(run)).parts(f"episodes-{name}", EPISODES),
            seed=3,
            report=report,
            answers=answers,
        )


def episodes(run: Path, name: str) -> list[dict[str, Any]]:
    return list(RunDirectory(str(run)).parts(f"episodes-{name}", EPISODES).records())


def responses(run: Path, name: str, batch: int) -> list[str]:
    return [one["response"] for one in episodes(run, name) if one["batch"] == batch]


def same(one: Path, other: Path) -> bool:
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (one, other))
    return all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize("changes", [{}, {"algorithm": "rloo"}])
def test_a_service_on_the_same_weights_samples_what_the_trainer_finds_as_likely(
    run_with_models: Path, recorder: Any, policy_address: str, changes: dict[str, Any]
) -> None:
    report = recorder()
    train(run_with_models, "rl", config_of(run_with_models, **changes), report, policy_address)
    assert len(report.steps) == 3
    for _, _, metrics in report.steps:
        assert 0 <= metrics["mismatch_kl"] < 1e-6
        assert metrics["sampling/importance_avg"] == pytest.approx(1, abs=1e-3)
        assert metrics["sampling/capped_share"] == 0
    assert report.steps[-1][2]["objective/kl"] > 0.1, "the weights should have changed"


class Meddler:
    """A report during which somebody else loads other weights into the service."""

    def __init__(self, report: Any, address: str, model: Path) -> None:
        self._report, self._address, self._model = report, address, model

    def start(self, done: int) -> None:
        self._report.start(done)

    def progress(self, done: int, total: int, metrics: dict[str, float]) -> None:
        with ControlClient(self._address) as control:
            control.update_weights(str(self._model), "somebody-else")
        self._report.progress(done, total, metrics)

    def message(self, text: str) -> None:
        self._report.message(text)


def test_a_stage_that_is_ahead_and_is_killed_goes_on_to_the_same_model_whatever_the_service_had(
    run_with_models: Path, recorder: Any, policy_address: str
) -> None:
    run, models = run_with_models, run_with_models / "models"
    config = config_of(run, rollouts={"ahead": 1}, lora={"rank": 4})
    whole = recorder()
    train(run, "rl", config, whole, policy_address)
    killed = Meddler(recorder(stop_at=2), policy_address, models / "sl")
    with pytest.raises(Exception, match="killed"):
        train(run, "killed", config, killed, policy_address)
    again = recorder()
    train(run, "killed", config, Meddler(again, policy_address, models / "sl"), policy_address)
    assert again.starts == [1], "a checkpoint holds what was sampled ahead"
    assert episodes(run, "killed") == episodes(run, "rl")
    assert same(models / "killed", models / "rl")
    last = again.steps[-1][2]
    assert last["mismatch_kl"] == whole.steps[-1][2]["mismatch_kl"] > 1e-6


def test_a_batch_is_sampled_by_the_weights_before_the_last_update_if_it_is_ahead(
    run_with_models: Path, recorder: Any, policy_address: str
) -> None:
    run = run_with_models

    def sampled(name: str, ahead: int, **changes: Any) -> list[list[str]]:
        config = config_of(run, rollouts={"ahead": ahead}, **changes)
        train(run, name, config, recorder(), policy_address)
        return [responses(run, name, batch) for batch in (1, 2, 3)]

    first = sampled("still", 0, learning_rate=1e-12)
    at_once, ahead = sampled("at-once", 0), sampled("ahead", 1)
    assert at_once[0] == first[0]
    assert at_once[1] != first[1]
    assert ahead[:2] == first[:2]
    assert ahead[2] != first[2]


def test_a_service_that_reads_prompts_otherwise_is_an_error_that_names_them(
    run_with_models: Path, policy_address: str
) -> None:
    run = run_with_models
    weights = Weights(version="w", path=str(run / "models/sl"))

    def answered(stops: list[int], more: int) -> int:
        with asked(run, config_of(run), policy_address) as answers:
            prompt = Conversation.from_user("tell me how")
            question = Question(conversation=prompt, prompt_tokens=5 + more, answers=40, seed=1)
            answers.begin([question], weights, stop_ids=stops)
            return len(answers.finish())

    assert answered([1], 0) == 40
    with pytest.raises(ServiceError, match=r"expected 240 prompt tokens.* read 200.*tell me how"):
        answered([1], 1)
    with pytest.raises(ServiceError, match=r"the last one of \[2\], which end a turn"):
        answered([2], 0)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"temperature": 0.7}, "temperature: expected 1 with rollouts.source policy"),
        ({"algorithm": "grpo", "group_size": 128}, "group_size: expected at most 64"),
        ({"algorithm": "dpo"}, "rollouts.source: expected in_process with algorithm dpo"),
    ],
)
def test_what_a_service_cannot_sample_is_refused(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        PPOConfig.model_validate({"rollouts": {"source": "policy"}} | settings)
    with pytest.raises(ValidationError, match="ahead: expected 0 with source in_process"):
        RolloutSettings(ahead=1)
