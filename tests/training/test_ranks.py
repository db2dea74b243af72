"""A stage in several processes learns what it learns in one, and survives the loss of one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from solon.trainer.launch.local import Progress, StageEvent, StageFailed, run_stage

MODELS = {"sft": "sl", "reward": "reward", "rl": "rl"}
Answer = dict[str, Any]
Run = Callable[..., Answer]


@pytest.fixture(scope="module")
def forked() -> Iterator[Run]:
    """Runs a stage in so many processes: the ranks' exit codes, the first one's events."""
    script = Path(__file__).with_name("forked.py")
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == "ready"

        def run(stage: str, run: Path, *, kill_after: int | None = None) -> Answer:
            assert process.stdin is not None
            assert process.stdout is not None
            processes = 2 if "processes: 2" in (run / "config.yaml").read_text() else 1
            asked = {"stage": stage, "run": str(run), "processes": processes}
            process.stdin.write(json.dumps(asked | {"kill_after": kill_after}) + "\n")
            process.stdin.flush()
            found: Answer = json.loads(process.stdout.readline())
            return found

        yield run
        process.stdin.close()


def with_settings(run: Path, name: str, stage: str, more: str) -> Path:
    """A copy of a run directory with further settings of a stage, ready to train it."""
    copied = run.with_name(name)
    shutil.copytree(run, copied)
    if stage == "sft":
        shutil.rmtree(copied / "models/sl")
    if stage != "rl":
        shutil.rmtree(copied / "models/reward")
    saved = copied / "config.yaml"
    saved.write_text(saved.read_text().replace(f"{stage}: {{", f"{stage}: {{{more}, "))
    return copied


def weights(run: Path, stage: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = load_file(run / f"models/{MODELS[stage]}/model.safetensors")
    return found


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same(one: Path, other: Path, stage: str) -> None:
    ours, theirs = weights(one, stage), weights(other, stage)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        torch.testing.assert_close(tensor, theirs[name], atol=1e-5, rtol=1e-4)
    names = {"loss", "grad_norm", "lr", "accuracy", "margin", "reward", "objective/scores"}
    names |= {"objective/kl", "loss/value_avg", "loss/policy_avg", "val/explained_variance"}
    for before, after in zip(rows(one), rows(other), strict=True):
        assert before.keys() == after.keys()
        for name in names & before.keys():
            assert after[name] == pytest.approx(before[name], abs=1e-4), name


@pytest.mark.parametrize(
    ("stage", "settings"),
    [
        ("sft", "gradient_checkpointing: true"),
        ("reward", "centering: 0.02"),
        ("rl", "kl_target: 1.0"),
        ("rl", "algorithm: grpo, gradient_checkpointing: true"),
    ],
)
def test_two_processes_learn_what_one_does(
    run_with_models: Path, forked: Run, stage: str, settings: str
) -> None:
    one = with_settings(run_with_models, "one", stage, settings)
    assert forked(stage, one)["codes"] == [0]
    two = with_settings(run_with_models, "two", stage, f"{settings}, processes: 2")
    done = forked(stage, two)
    assert done["codes"] == [0, 0], (two / "rank1.log").read_text()
    assert done["events"][-1]["event"] == "done"
    assert_same(one, two, stage)


async def test_a_rank_that_is_killed_ends_the_stage_which_goes_on_to_the_same_weights(
    run_with_models: Path, forked: Run
) -> None:
    whole = with_settings(run_with_models, "whole", "rl", "processes: 2")
    assert forked("rl", whole)["codes"] == [0, 0]
    run = with_settings(run_with_models, "killed", "rl", "processes: 2")

    def kill_a_rank(event: StageEvent) -> None:
        if isinstance(event, Progress) and event.done == 2:
            ranks = [one for one in psutil.Process().children() if "--rendezvous" in one.cmdline()]
            assert len(ranks) == 2
            ranks[1].kill()

    with pytest.raises(StageFailed, match=r"stage rl, rank 1 of 2 ended \(killed by SIGKILL"):
        await run_stage("rl", run, on_event=kill_a_rank, processes=2, threads=2)
    assert not [one for one in psutil.Process().children() if "--rendezvous" in one.cmdline()]
    again = forked("rl", run)
    assert again["codes"] == [0, 0]
    assert again["events"][0]["done"] in (2, 3)
    assert_same(whole, run, "rl")
    assert [row["step"] for row in rows(run)] == [1, 2, 3]


def test_as_many_processes_as_the_configuration_says_are_needed(
    run_with_models: Path, forked: Run
) -> None:
    run = with_settings(run_with_models, "four", "rl", "processes: 4")
    told = forked("rl", run)
    assert told["codes"] == [2]
    assert "rl.processes: expected 1, as many as were started" in told["events"][0]["text"]
