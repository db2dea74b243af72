"""The judge's Score as the reward: over gRPC from a judge process, on the scripted engine."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from solon.chat import Conversation
from solon.constitution import load, loads
from solon.trainer.cli import main
from solon.trainer.config import RunConfig, load_run_config
from solon.trainer.errors import ServiceError, StageFailed
from solon.trainer.ppo.config import PPOConfig
from solon.trainer.schemas import EPISODES
from solon.trainer.stages.judge_scores import Judge, open_judge
from solon.trainer.stages.rewards import Sources
from solon.trainer.stages.rl import train_rl
from solon.trainer.state import RunState
from solon.trainer.store import Parts, RunDirectory

CONSTITUTION = """
name: two-scales
version: "1"
principles:
  - id: harmless
    weight: 3
    comparison_instruction: Which is less harmful?
    critique_request: What is harmful?
    revision_request: Make it harmless.
    absolute_question: {text: "Is it harmful?", answers: {"Yes": 0, "No": 1}}
  - id: kind
    comparison_instruction: Which is kinder?
    absolute_question: {text: "How kind is it?", answers: {"1": 1, "5": 5, "9": 9}}
"""
# what the judge says to the first question: "no" in the response makes it harmless; to the second
# always the same; a response with "car" it answers with something else altogether
SCRIPT = [
    {"match": r"\bcar\b", "logprobs": dict.fromkeys(("Yes", "No", "1", "5", "9"), -20.0)},
    {"match": r"(?s)\bno\b.*Is it harmful", "logprobs": {"Yes": -2.0, "No": -0.1}},
    {"match": "Is it harmful", "logprobs": {"Yes": -0.5, "No": -1.5}},
    {"match": "How kind", "logprobs": {"1": -2.0, "5": -0.5, "9": -2.0}},
]


# the second judge of a panel: sure that all is kind, and of nothing that has "bread" in it
CALM = [
    {"match": r"\bbread\b", "logprobs": dict.fromkeys(("Yes", "No", "1", "5", "9"), -20.0)},
    {"match": "Is it harmful", "logprobs": {"Yes": -20.0, "No": -0.01}},
    {"match": "How kind", "logprobs": {"1": -20.0, "5": -20.0, "9": -0.01}},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("judge")
    (found / "two-scales.yaml").write_text(CONSTITUTION)
    (found / "script.json").write_text(json.dumps(SCRIPT))
    (found / "calm.json").write_text(json.dumps(CALM))
    return found


def start_judge(folder: Path, script: str = "script.json") -> tuple[subprocess.Popen[bytes], str]:
    """A judge process and its address."""
    ready = folder / "ready.json"
    ready.unlink(missing_ok=True)
    command = [sys.executable, "-m", "solon.judge.server", "--engine", "scripted"]
    command += ["--engine-option", f"script={folder / script}", "--ready-file", str(ready)]
    with (folder / "judge.log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log)
    while not ready.exists():
        assert process.poll() is None, (folder / "judge.log").read_text()
        time.sleep(0.02)
    return process, f"127.0.0.1:{json.loads(ready.read_text())['port']}"


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    process, found = start_judge(folder)
    yield found
    process.terminate()
    process.wait(20)


@pytest.fixture
def run(run_dir: Path, folder: Path, base_model: Path) -> Path:
    """A run that is rewarded by the judge alone, as the sft stage leaves it."""
    settings = yaml.safe_load((run_dir / "config.yaml").read_text())
    asked = run_dir.parent / "asked.jsonl"
    asked.write_text("\n".join(json.dumps({"prompt": f"tell me {n} yes"}) for n in range(40)))
    settings |= {"constitution": str(folder / "two-scales.yaml"), "run_dir": str(run_dir)}
    settings["prompts"] = {"rl": [str(asked)]}
    settings["rl"] |= {
        "algorithm": "rloo",
        "reward": {"model": 0, "judge": 1, "min_option_mass": 0.01, "max_unscored_share": 0.5},
    }
    (run_dir / "config.yaml").write_text(yaml.safe_dump(settings))
    (run_dir / "constitution.yaml").write_text(CONSTITUTION)
    (run_dir / "models").mkdir()
    (run_dir / "models/sl").symlink_to(base_model)
    return run_dir


def judge_of(run: Path, *addresses: str, config: RunConfig | None = None) -> Any:
    """The only judge, or kind and calm."""
    given = config or load_run_config(run)
    constitution = load(run / "constitution.yaml")
    names = ["judge"] if len(addresses) == 1 else ["judge-kind", "judge-calm"]
    at = dict(zip(names, addresses, strict=True))
    return open_judge(given, constitution, addresses=at, log_dir=run / "logs")


def kept_in(run: Path, name: str) -> Parts:
    return RunDirectory(str(run)).parts(f"episodes-{name}", EPISODES)


def timeless(episodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what may differ between two runs of one seed."""
    for judgement in (said for one in episodes for said in one["judgements"]):
        judgement["timing"] = judgement["usage"]["cached_tokens"] = None
    return episodes


def asked(*responses: str) -> list[tuple[Conversation, str]]:
    return [(Conversation.from_user("how to bake"), response) for response in responses]


def test_each_question_counts_from_minus_one_to_one_whatever_its_scale(
    run: Path, address: str
) -> None:
    with judge_of(run, address) as judge:
        found = judge.scores(asked("no I will not", "yes mix flour", "a car", ""))
    harmless = [math.exp(-0.1), math.exp(-1.5)]
    harmful = [math.exp(-2.0), math.exp(-0.5)]
    # "kind" is in the middle of its scale: 0, at a quarter of the weight
    expected = [0.75 * (no - yes) / (no + yes) for no, yes in zip(harmless, harmful, strict=True)]
    assert found[:2] == pytest.approx(expected, abs=1e-6)
    assert found[2:] == [None, None]
    assert dict(judge.outcomes) == {"made": 2, "no_principle": 1, "empty": 1}


def test_a_judge_that_is_gone_is_no_score_but_an_error(run: Path, folder: Path) -> None:
    config = load_run_config(run)
    hasty = config.services.model_copy(update={"retry_for": 0.0})
    process, address = start_judge(folder)
    with judge_of(run, address, config=config.model_copy(update={"services": hasty})) as judge:
        process.kill()
        process.wait()
        with pytest.raises(ServiceError, match=r"services\.judge: .* go on with --resume"):
            judge.scores(asked("yes"))
    assert not judge.outcomes


def test_a_panel_scores_by_the_mean_of_those_who_can_and_by_none_below_the_quorum(
    run: Path, folder: Path, address: str
) -> None:
    def with_panel(**changes: Any) -> RunConfig:
        settings = yaml.safe_load((run / "config.yaml").read_text())
        model = settings["models"]["judge"]
        panel = {"judges": {"kind": model, "calm": model}} | changes
        changed = {"preferences": {"panel": panel}, "services": {"retry_for": 0}}
        return RunConfig.model_validate(settings | changed)

    process, calm = start_judge(folder, "calm.json")
    both = asked("no I will not", "yes mix flour", "a car", "bread", "a car and bread", "")
    with judge_of(run, address) as alone:
        kind = alone.scores(both)
    with judge_of(run, address, calm, config=with_panel()) as judge:
        strict = judge.scores(both)
        assert strict == pytest.approx([(kind[0] + 1) / 2, (kind[1] + 1) / 2, *[None] * 4])
        assert dict(judge.outcomes) == {"made": 2, "no_quorum": 3, "empty": 1}
        told = list(judge.told())
    assert told[1] == "the judge 'kind' of the panel had no score for: 2 no_principle"
    with judge_of(run, address, calm, config=with_panel(quorum=1)) as judge:
        assert judge.scores(both) == pytest.approx([*strict[:2], 1, kind[3], None, None])
        votes = judge.last[2].judgements
        assert [(vote["judge"], vote["no_verdict_reason"]) for vote in votes] == [
            ("kind", "no_principle"),
            ("calm", None),
        ]
        process.kill()
        process.wait()
        # of 48 episodes two may be left unanswered
        assert judge.scores(both[:2]) == pytest.approx(kind[:2])
        assert judge.last[0].judgements[1]["error"].startswith("Unavailable: ")
        with pytest.raises(StageFailed, match="the judge 'calm' did not score: 3 failed out of 48"):
            judge.scores(both[:1])


def test_a_stage_rewarded_by_the_judge_that_is_killed_goes_on_to_the_same_model(
    run: Path, address: str, recorder: Any
) -> None:
    config = load_run_config(run)

    def train(name: str, judge: Judge, report: Any) -> dict[str, float]:
        return train_rl(
            config.rl,
            base_model=str(run / "models/sl"),
            sources=Sources(reward_model=None, judge=judge),
            data=run / "export/rl_prompts/train.parquet",
            output=run / name,
            checkpoints=run / f"checkpoints-{name}",
            episodes=kept_in(run, name),
            seed=3,
            report=report,
        )

    with judge_of(run, address) as judge:
        whole = recorder()
        train("whole", judge, whole)
        with pytest.raises(Exception, match="killed"):
            train("broken", judge, recorder(stop_at=2))
    # as a kill between a part and its checkpoint leaves it, of a process that is no more
    kept_in(run, "broken").write("part-000002-0001", list(kept_in(run, "broken").records()))
    single = config.services.model_copy(update={"in_flight": 1})
    with judge_of(run, address, config=config.model_copy(update={"services": single})) as judge:
        train("broken", judge, recorder())
    ours, theirs = (load_file(run / n / "model.safetensors") for n in ("broken", "whole"))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    rows = [metrics for _, _, metrics in whole.steps]
    assert all(0 <= row["objective/unscored_share"] < 0.5 for row in rows)
    assert any(row["objective/unscored_share"] > 0 for row in rows), "the script should leave some"
    assert all("objective/judge_scores" in row and "loss/value_avg" not in row for row in rows)
    episodes, again = (timeless(list(kept_in(run, n).records())) for n in ("whole", "broken"))
    assert again == episodes
    assert_explained(episodes, rows, config.rl)


def assert_explained(
    episodes: list[dict[str, Any]], rows: list[dict[str, float]], config: PPOConfig
) -> None:
    """Each episode is there once, and what it says of itself is what the metrics were made of."""
    assert sorted(one["episode"] for one in episodes) == list(range(config.episodes))
    for number, row in enumerate(rows, start=1):
        batch = [one for one in episodes if one["batch"] == number]
        scored = [one for one in batch if one["score"] is not None]
        assert row["objective/unscored_share"] == 1 - len(scored) / len(batch)
        for name, key in (("kl", "kl"), ("rlhf_reward", "reward"), ("response_tokens", "tokens")):
            mean = sum(one[key] for one in scored) / len(scored)
            assert mean == pytest.approx(row[f"objective/{name}"], abs=1e-5)
    for one in episodes:
        assert one["id"] == f"{one['prompt_id']}:e{one['episode']}"
        (judgement,) = one["judgements"] or [None]
        if one["score"] is None:
            assert one["no_score_reason"] in ("no_principle", "empty")
            assert one["reward"] is one["kl"] is one["penalties"] is None
            continue
        assert one["scores"] == [{"source": "judge", "weight": 1.0, "score": one["score"]}]
        assert judgement["score"] == pytest.approx(one["score"], abs=1e-6)
        taken = sum(penalty["penalty"] for penalty in one["penalties"])
        assert taken == (0.0 if one["finish_reason"] == "stop" else config.truncation_penalty)
        paid = taken + one["kl_coefficient"] * one["kl"]
        assert one["reward"] == pytest.approx(one["score"] - paid, abs=1e-5)
        by_principle = {found["principle_id"]: found for found in judgement["principles"]}
        read = {a["answer"]: a["probability"] for a in by_principle["harmless"]["probabilities"]}
        assert by_principle["harmless"]["score"] == pytest.approx(read["No"])
        others = [
            other["reward"]
            for other in episodes
            if (other["batch"], other["prompt_id"]) == (one["batch"], one["prompt_id"])
            and other["reward"] is not None
            and other is not one
        ]
        expected = one["reward"] - sum(others) / len(others) if others else 0.0
        assert one["advantage"] == pytest.approx(expected, abs=1e-5)


def test_the_pipeline_keeps_a_panel_up_for_the_stage_and_leaves_the_reward_model_out(
    run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run / "config.yaml"
    settings = yaml.safe_load(config.read_text())
    judges = {"kind": "script.json", "calm": "calm.json"}
    panel = {
        name: {"engine": "scripted", "engine_options": {"script": str(folder / script)}}
        for name, script in judges.items()
    }
    settings["services"] = {"panel": panel}
    model = settings["models"]["judge"]
    settings["preferences"] = {"panel": {"judges": dict.fromkeys(judges, model), "quorum": 1}}
    config.write_text(yaml.safe_dump(settings))
    RunState(RunDirectory(str(run))).finish("sft", 1.0, {"weight_version": "sl-0"})
    assert main(["rl", str(run)]) == 0
    said = capsys.readouterr().err
    assert "services: judge" in said
    assert "rl: the judge scored" in said
    assert (run / "models/rl/model.safetensors").exists()
    assert not (run / "models/reward").exists()
    for one in RunDirectory(str(run)).parts("rl", EPISODES).records():
        assert [vote["judge"] for vote in one["judgements"]] in (["calm", "kind"], [])


def test_too_many_responses_without_a_score_stop_the_stage(
    run: Path, address: str, recorder: Any
) -> None:
    strict = PPOConfig.model_validate(
        load_run_config(run).rl.model_dump()
        | {"reward": {"model": 0, "judge": 1, "min_option_mass": 1.0}}
    )
    demanding = load_run_config(run).model_copy(update={"rl": strict})
    with (
        judge_of(run, address, config=demanding) as judge,
        pytest.raises(StageFailed, match=r"rl\.reward\.max_unscored_share = 0\.1"),
    ):
        train_rl(
            strict,
            base_model=str(run / "models/sl"),
            sources=Sources(reward_model=None, judge=judge),
            data=run / "export/rl_prompts/train.parquet",
            output=run / "never",
            checkpoints=run / "checkpoints",
            episodes=kept_in(run, "never"),
            seed=3,
            report=recorder(),
        )
    assert not (run / "never").exists()


def test_a_judge_without_questions_cannot_reward(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    silent = CONSTITUTION.replace("absolute_question:", "#")
    assert not loads(silent, source="silent").for_scoring
    (run.parent / "silent.yaml").write_text(silent)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config |= {"constitution": str(run.parent / "silent.yaml"), "run_dir": None}
    (run.parent / "silent-run.yaml").write_text(yaml.safe_dump(config))
    assert main(["check", str(run.parent / "silent-run.yaml")]) == 2
    assert "rl.reward.judge: expected 0" in capsys.readouterr().err
