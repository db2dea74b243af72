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
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from solon.constitution import resolve
from solon.trainer.launch.local import Progress, StageEvent, StageFailed, run_stage
from solon.trainer.steps import Step

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


def files(run: Path) -> set[Path]:
    return {path.relative_to(run) for path in (run / "models").rglob("*")}


def assert_same_models(one: Path, other: Path, stage: str) -> None:
    ours, theirs = weights(one, stage), weights(other, stage)
    assert ours.keys() == theirs.keys()
    assert files(one) == files(other)
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        torch.testing.assert_close(tensor, theirs[name], atol=1e-5, rtol=1e-4)


def assert_same(one: Path, other: Path, stage: str) -> None:
    assert_same_models(one, other, stage)
    names = {"loss", "grad_norm", "lr", "accuracy", "margin", "reward", "objective/scores"}
    names |= {"objective/kl", "loss/value_avg", "loss/policy_avg", "val/explained_variance"}
    if stage == "rl":
        assert_same_episodes(one, other)
    for before, after in zip(rows(one), rows(other), strict=True):
        assert before.keys() == after.keys()
        for name in names & before.keys():
            assert after[name] == pytest.approx(before[name], abs=1e-4), name


SHARDED = "processes: 2, sharding: full"


def assert_same_episodes(one: Path, other: Path) -> None:
    columns = ["episode", "id", "seed", "place", "response", "reward"]
    ours, theirs = (
        pq.read_table(run / Step("rl").name, columns=columns).sort_by("episode").to_pylist()
        for run in (one, other)
    )
    assert len(ours) == 48
    for before, after in zip(ours, theirs, strict=True):
        assert after.pop("reward") == pytest.approx(before.pop("reward"), abs=1e-4)
        assert after == before


Alone = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def made() -> dict[tuple[str, str], Path]:
    """Stage and settings -> what one process has made of them."""
    return {}


@pytest.fixture
def alone(run_with_models: Path, forked: Run, made: dict[tuple[str, str], Path]) -> Alone:
    def run(stage: str, settings: str) -> Path:
        if (stage, settings) not in made:
            one = with_settings(run_with_models, "one", stage, settings)
            assert forked(stage, one)["codes"] == [0]
            made[stage, settings] = one
        return made[stage, settings]

    return run


SFT = "gradient_checkpointing: true"
PPO = "kl_target: 1.0, snapshots_every: 3"
SHARDED = "processes: 2, sharding: full"


@pytest.mark.parametrize(
    ("stage", "settings", "more"),
    [
        ("sft", SFT, "processes: 2"),
        ("reward", "centering: 0.02", SHARDED),
        ("rl", PPO, "processes: 2"),
        ("rl", "algorithm: grpo, gradient_checkpointing: true", "processes: 2"),
    ],
)
def test_two_processes_learn_what_one_does(
    run_with_models: Path, forked: Run, alone: Alone, stage: str, settings: str, more: str
) -> None:
    one = alone(stage, settings)
    two = with_settings(run_with_models, "two", stage, f"{settings}, {more}")
    done = forked(stage, two)
    assert done["codes"] == [0, 0], (two / "rank1.log").read_text()
    assert done["events"][-1]["event"] == "done"
    assert_same(one, two, stage)


def test_two_processes_learn_what_one_does_of_a_service_that_samples(
    run_with_models: Path, forked: Run, policy_address: str
) -> None:
    (run_with_models / "constitution.yaml").write_text(resolve("core").read_text())
    with (run_with_models / "config.yaml").open("a") as config:
        config.write(f"services: {{policy: {{address: '{policy_address}'}}}}\n")
    served = "rollouts: {source: policy, ahead: 1}"
    one = with_settings(run_with_models, "one", "rl", served)
    assert forked("rl", one)["codes"] == [0], (one / "rank0.log").read_text()
    two = with_settings(run_with_models, "two", "rl", f"{served}, {SHARDED}")
    assert forked("rl", two)["codes"] == [0, 0], (two / "rank1.log").read_text()
    assert_same(one, two, "rl")


async def test_a_rank_that_is_killed_ends_the_stage_which_goes_on_to_the_same_weights(
    run_with_models: Path, forked: Run, alone: Alone
) -> None:
    run = with_settings(run_with_models, "killed", "rl", f"{PPO}, {SHARDED}")

    def kill_a_rank(event: StageEvent) -> None:
        if isinstance(event, Progress) and event.done == 2:
            first, second = ranks()
            second.kill()
            assert first.is_running()

    with pytest.raises(StageFailed, match=r"stage rl, rank 1 of 2 ended \(killed by SIGKILL"):
        await run_stage(Step("rl"), run, on_event=kill_a_rank, processes=2, threads=2)
    assert ranks() == []
    again = forked("rl", run)
    assert again["codes"] == [0, 0]
    assert again["events"][0]["done"] in (2, 3)
    assert_same(alone("rl", PPO), run, "rl")


def ranks() -> list[psutil.Process]:
    """Those that this process has started, in their order."""
    found = [one for one in psutil.Process().children() if "--rendezvous" in one.cmdline()]
    return sorted(found, key=lambda one: one.environ()["RANK"])


def test_a_sharded_stage_on_trl_goes_on_from_its_last_checkpoint(
    run_with_models: Path, forked: Run, alone: Alone
) -> None:
    run = with_settings(run_with_models, "killed", "sft", f"{SFT}, {SHARDED}")
    assert forked("sft", run, kill_after=6)["codes"] == [1, -9]
    again = forked("sft", run)
    # the rows are those of every second step, the checkpoints of every fifth
    assert again["events"][0]["done"] >= 6
    # of the rows the first after a checkpoint is the mean of fewer steps
    assert_same_models(alone("sft", SFT), run, "sft")


def test_as_many_processes_as_the_configuration_says_are_needed(
    run_with_models: Path, forked: Run
) -> None:
    run = with_settings(run_with_models, "four", "rl", "processes: 4")
    told = forked("rl", run)
    assert told["codes"] == [2]
    assert "rl.processes: expected 1, as many as were started" in told["events"][0]["text"]
