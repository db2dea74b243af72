"""The training stages as processes: what they print, what they leave, how they end."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from solon.trainer.errors import RunDirectoryError
from solon.trainer.schemas import EPISODES
from solon.trainer.stages import worker
from solon.trainer.steps import Step
from solon.trainer.store import RunDirectory


class KilledError(Exception):
    """Stands for a kill."""


def start_worker(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "solon.trainer.stages.worker", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def run_worker(*arguments: str) -> tuple[int, list[dict[str, Any]], str]:
    """Exit code, events and stderr of a stage."""
    process = start_worker(*arguments)
    stdout, stderr = process.communicate()
    return process.returncode, [json.loads(line) for line in stdout.splitlines()], stderr


def metrics_rows(run: Path, stage: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["stage"] == stage]


def test_a_killed_stage_goes_on_and_ends_in_the_same_weights(run_with_models: Path) -> None:
    run = run_with_models
    code, events, stderr = run_worker("rl", "--run", str(run))
    assert code == 0, (events, stderr)
    made = [event for event in events if event["event"] == "progress"]
    assert [(event["done"], event["total"]) for event in made] == [(1, 3), (2, 3), (3, 3)]
    told = [event["text"] for event in events if event["event"] == "message"]
    assert told[0].split() == ["rl:", "sqrt(KL)", "reward", "held-out"]
    assert len(told) == 1 + 3
    assert events[-1]["event"] == "done"
    assert "Traceback" not in stderr
    assert not (run / "checkpoints/rl").exists()
    whole, rows = load_file(run / "models/rl/model.safetensors"), metrics_rows(run, "rl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    episodes = list(RunDirectory(str(run)).parts("rl", EPISODES).records())
    assert len(episodes) == 48

    process = start_worker("rl", "--run", str(run))
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["done"] == 2:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    code, events, stderr = run_worker("rl", "--run", str(run))
    assert code == 0, (events, stderr)
    # the checkpoint of batch 1 was whole; that of batch 2 may have been
    assert events[0]["done"] in (2, 3)
    resumed = load_file(run / "models/rl/model.safetensors")
    assert all(torch.equal(whole[name], tensor) for name, tensor in resumed.items())
    again = metrics_rows(run, "rl")
    assert [row["step"] for row in again] == [1, 2, 3]
    for before, after in zip(rows, again, strict=True):
        assert before["objective/scores"] == after["objective/scores"]
    assert list(RunDirectory(str(run)).parts("rl", EPISODES).records()) == episodes


def test_a_stage_on_trl_speaks_json_alone_and_leaves_its_model(run_dir: Path) -> None:
    code, events, stderr = run_worker("sft", "--run", str(run_dir))
    assert code == 0, (events, stderr)
    assert {event["event"] for event in events[:-1]} == {"progress"}
    assert events[-1]["event"] == "done"
    assert events[-2]["done"] == events[-2]["total"] == 12
    assert (run_dir / "models/sl/model.safetensors").exists()
    assert [row["step"] for row in metrics_rows(run_dir, "sft")] == [2, 4, 6, 8, 10, 12]
    assert "Traceback" not in stderr


class Events(io.StringIO):
    """What a stage says, until it says a word."""

    def __init__(self, until: str | None = None) -> None:
        super().__init__()
        self.until = until

    def write(self, line: str) -> int:
        if self.until is not None and self.until in line:
            raise KilledError(self.until)
        return super().write(line)


def test_dpo_needs_no_reward_model_and_leaves_what_rl_leaves(
    run_dir: Path, base_model: Path
) -> None:
    shutil.copytree(base_model, run_dir / "models/sl")
    saved = run_dir / "config.yaml"
    dpo = "dpo: {batch_size: 16, micro_batch_size: 8, log_every: 1}\n"
    saved.write_text(saved.read_text().replace("rl: {", "rl: {algorithm: dpo, ") + dpo)
    events = Events()
    figures = worker._run(Step("rl"), run_dir, worker._Events(events), services={})
    assert figures["test_pairs"] == 12
    assert (run_dir / "models/rl/model.safetensors").exists()
    rows = metrics_rows(run_dir, "rl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[0]["loss"] < 0.7
    # a second iteration goes on from there, with pairs of its own
    shutil.copytree(run_dir / "export/preferences", run_dir / "export/preferences-2")
    shutil.rmtree(run_dir / "models/sl")
    worker._run(Step("rl", 2), run_dir, worker._Events(events), services={})
    first, second = (
        load_file(run_dir / f"models/{name}/model.safetensors") for name in ("rl", "rl-2")
    )
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert [row["step"] for row in metrics_rows(run_dir, "rl-2")] == [1, 2, 3]
    shutil.copytree(base_model, run_dir / "models/sl")
    (run_dir / "export/preferences/train.parquet").unlink()
    with pytest.raises(RunDirectoryError, match="what the preferences stage makes"):
        worker._run(Step("rl"), run_dir, worker._Events(events), services={})


def test_a_reward_stage_that_ended_early_keeps_the_test_model_that_it_had_finished(
    run_dir: Path, base_model: Path
) -> None:
    shutil.copytree(base_model, run_dir / "models/sl")
    saved = run_dir / "config.yaml"
    saved.write_text(
        saved.read_text().replace("reward: {epochs: 2", "reward: {epochs: 1, test_model: true")
    )

    def reward(events: Events) -> dict[str, float]:
        return worker._run(Step("reward"), run_dir, worker._Events(events), services={})

    with pytest.raises(KilledError):
        reward(Events(until='"stage": "reward"'))
    assert not (run_dir / "models/reward").exists()
    resumed = Events()
    figures = reward(resumed)
    assert "reward_test" not in resumed.getvalue()
    assert figures["pairs"] + figures["test_model/pairs"] == 48
    assert {figures["test_pairs"], figures["test_model/test_pairs"]} == {12}
    first, second = (
        load_file(run_dir / f"models/{name}/model.safetensors")
        for name in ("reward", "reward_test")
    )
    assert not torch.equal(first["score.weight"], second["score.weight"])
    for name in ("reward_test", "reward"):
        steps = [row["step"] for row in metrics_rows(run_dir, name)]
        assert steps == sorted(set(steps))


def test_what_an_earlier_stage_did_not_make_is_the_users_error(run_dir: Path) -> None:
    code, events, stderr = run_worker("reward", "--run", str(run_dir))
    assert code == 2
    (event,) = events
    assert (event["event"], event["kind"]) == ("error", "user")
    assert "models/sl" in event["text"]
    assert "sft stage" in event["text"]
    assert "Traceback" not in stderr


def test_a_directory_that_is_no_run_is_the_users_error(tmp_path: Path) -> None:
    code, events, _ = run_worker("rl", "--run", str(tmp_path))
    assert code == 2
    assert events[0]["kind"] == "user"
    assert "config.yaml" in events[0]["text"]


def test_a_training_that_diverges_fails_with_the_reason(run_with_models: Path) -> None:
    config = run_with_models / "config.yaml"
    config.write_text(
        config.read_text().replace("learning_rate: 0.001, value", "learning_rate: 1.0e+30, value")
    )
    code, events, _ = run_worker("rl", "--run", str(run_with_models))
    assert code == 1
    assert events[-1]["kind"] == "internal"
    assert "diverged; lower rl.learning_rate" in events[-1]["text"]
