"""The training stages as processes: what they print, what they leave, how they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


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


def test_the_stages_run_one_after_the_other_and_a_killed_one_goes_on(run_dir: Path) -> None:
    for stage, model, steps in (("sft", "sl", 12), ("reward", "reward", 12), ("rl", "rl", 3)):
        code, events, stderr = run_worker(stage, "--run", str(run_dir))
        assert code == 0, (events, stderr)
        assert {event["event"] for event in events[:-1]} == {"progress"}
        assert events[-1]["event"] == "done"
        assert events[-2]["done"] == events[-2]["total"] == steps
        assert (run_dir / "models" / model / "model.safetensors").exists()
        assert not (run_dir / "checkpoints" / stage).exists()
        assert [row["step"] for row in metrics_rows(run_dir, stage)] == [
            event["done"] for event in events[:-1]
        ]
        assert "Traceback" not in stderr
    whole = load_file(run_dir / "models/rl/model.safetensors")
    rows = metrics_rows(run_dir, "rl")

    process = start_worker("rl", "--run", str(run_dir))
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["done"] == 2:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    code, events, stderr = run_worker("rl", "--run", str(run_dir))
    assert code == 0, (events, stderr)
    # the checkpoint of batch 1 was whole; that of batch 2 may have been
    assert events[0]["done"] in (2, 3)
    resumed = load_file(run_dir / "models/rl/model.safetensors")
    assert all(torch.equal(whole[name], tensor) for name, tensor in resumed.items())
    again = metrics_rows(run_dir, "rl")
    assert [row["step"] for row in again] == [1, 2, 3]
    for before, after in zip(rows, again, strict=True):
        assert before["objective/scores"] == after["objective/scores"]


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


def test_a_model_that_cannot_be_loaded_is_the_users_error(run_dir: Path) -> None:
    config = run_dir / "config.yaml"
    missing = run_dir / "nowhere"
    text = config.read_text()
    base = text.partition("base_for_sft: ")[2].partition("}")[0]
    config.write_text(text.replace(f"base_for_sft: {base}", f"base_for_sft: {missing}"))
    code, events, stderr = run_worker("sft", "--run", str(run_dir))
    assert code == 2, stderr
    assert events[-1]["kind"] == "user"
    assert repr(str(missing)) in events[-1]["text"]


def test_a_training_that_diverges_fails_with_the_reason(run_dir: Path) -> None:
    config = run_dir / "config.yaml"
    config.write_text(
        config.read_text().replace("learning_rate: 0.003, log", "learning_rate: 1.0e+38, log", 1)
    )
    code, events, _ = run_worker("sft", "--run", str(run_dir))
    assert code == 1
    assert events[-1]["kind"] == "internal"
    assert "diverged; lower sft.learning_rate" in events[-1]["text"]
