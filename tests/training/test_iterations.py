"""Two iterations: real training of a tiny model, real services whose engine is scripted."""

from __future__ import annotations

import io
import json
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from solon.trainer.cli import main
from solon.trainer.config import load_config
from solon.trainer.pipeline import weights_digest
from solon.trainer.schemas import EPISODES, PREFERENCES, RL_PROMPTS_EXPORT
from solon.trainer.session import open_session
from solon.trainer.stage_names import Stage
from solon.trainer.stages import worker
from solon.trainer.state import RunState
from solon.trainer.steps import Step
from solon.trainer.store import RunDirectory
from tests.trainer.runs import records, served, start

PROMPTS = 24
REPLIES = """
- match: bread
  reply: [no way, yes please, mix flour and water, I will not, that would hurt people, steal a car]
"""


@pytest.fixture
def run(tmp_path: Path, base_model: Path) -> Iterator[Path]:
    """A run of two iterations that has its SL model."""
    for name, count in (("asked", PROMPTS), ("held", 3)):
        lines = [json.dumps({"prompt": f"how to bake {name} bread {n}"}) for n in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    (tmp_path / "replies.yaml").write_text(REPLIES)
    says = {"policy": (f"--engine-option=script={tmp_path / 'replies.yaml'}",), "judge": ()}
    roles = ("policy", "critic", "judge")
    asked = [str(tmp_path / "asked.jsonl")]
    with ExitStack() as services:
        settings: dict[str, Any] = {
            "constitution": "core",
            "iterations": 2,
            "run_dir": str(tmp_path / "run"),
            "models": dict.fromkeys((*roles, "base_for_sft"), str(base_model)),
            "services": {
                role: {"address": services.enter_context(served(role, tmp_path, *flags))}
                for role, flags in says.items()
            }
            | {"in_flight": 2},
            "store": {"part_records": 2},
            "prompts": {
                "preferences": asked,
                "evaluation": {"harmful": [str(tmp_path / "held.jsonl")]},
            },
            "preferences": {"test_share": 0.25},
            "reward": {"batch_size": 8, "micro_batch_size": 8, "learning_rate": 0.003},
            "rl": {"episodes": 16, "batch_size": 16, "minibatches": 2, "max_response_tokens": 8}
            | {"learning_rate": 0.01},
        }
        path = tmp_path / "config.json"
        path.write_text(json.dumps(settings))
        with open_session(load_config(str(path)), resume=False) as session:
            folder = session.run.local / "models/sl"
            shutil.copytree(base_model, folder)
            version = f"sl-{weights_digest(folder)[:12]}"
            RunState(session.run).finish("sft", 1.0, {"weight_version": version})
        yield tmp_path / "run"


def train(run: Path, stage: Stage, iteration: int) -> dict[str, float]:
    """As the stage's process does; then the coordinator finds it made."""
    step = Step(stage, iteration)
    if stage == "rl":
        rows = records(run, "preferences", PREFERENCES)
        asked = [{name: row[name] for name in RL_PROMPTS_EXPORT.names} for row in rows]
        with RunDirectory(str(run)).exporting("rl_prompts/train", RL_PROMPTS_EXPORT) as export:
            export.extend(asked)
    figures = worker._run(step, run, worker._Events(io.StringIO()), services={})
    assert main([stage, str(run)]) == 0
    return figures


def rows_of(run: Path, folder: str) -> dict[str, int]:
    return {
        split: pq.read_metadata(run / f"export/{folder}/{split}.parquet").num_rows
        for split in ("train", "test")
    }


def test_the_rl_model_makes_the_next_pairs_and_a_kill_meanwhile_changes_nothing(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["preferences", str(run)]) == 0
    train(run, "reward", 1)
    train(run, "rl", 1)
    broken = run.with_name("broken")
    shutil.copytree(run, broken)
    assert main(["preferences", str(run)]) == 0

    process = start("preferences", broken)
    while process.poll() is None and not list(broken.glob("preferences-2/part-*.parquet")):
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert 0 < len(records(broken, "preferences-2", PREFERENCES)) < PROMPTS
    assert main(["preferences", str(broken)]) == 0

    made = records(run, "preferences-2", PREFERENCES)
    assert records(broken, "preferences-2", PREFERENCES) == made
    by = f"rl-{weights_digest(run / 'models/rl')[:12]}"
    assert {row["policy"]["weight_version"] for row in made} == {by}
    assert weights_digest(run / "models/rl") != weights_digest(run / "models/sl")

    first, second = rows_of(run, "preferences"), rows_of(run, "preferences-2")
    for one in (run, broken):
        figures = train(one, "reward", 2)
        assert figures["pairs"] == first["train"] + second["train"]
        assert figures["test_pairs"] == first["test"] + second["test"]
        train(one, "rl", 2)
    for model in ("reward-2", "rl-2"):
        ours, theirs = (
            load_file(one / f"models/{model}/model.safetensors") for one in (run, broken)
        )
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    # sampled by the SL model, from which RL starts again, with draws of their own
    episodes = [records(run, name, EPISODES) for name in ("rl", "rl-2")]
    assert episodes[1] == records(broken, "rl-2", EPISODES)
    assert all(abs(one["kl"]) < 1e-4 for of in episodes for one in of)
    assert not {one["seed"] for one in episodes[0]} & {one["seed"] for one in episodes[1]}

    assert main(["evaluate", str(run)]) == 0
    measured = json.loads((run / "evaluation.json").read_text())["models"]
    assert list(measured) == ["base", "sl", "rl", "rl-2"]
    (pair, *_) = pq.read_table(run / "export/preferences-2/train.parquet").to_pylist()
    capsys.readouterr()
    for name, key, folder in (
        (pair["id"], "preferences-2", "preferences-2/train"),
        (episodes[1][0]["id"], "episodes-2", None),
    ):
        assert name.endswith(":i2")
        assert main(["explain", str(run), name, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found[key]
        assert folder is None or name in [row["id"] for row in found["exports"][folder]]
        assert found["versions"]["rl"] == by
    assert [one["id"] for one in found["episodes-2"]] == [name]
