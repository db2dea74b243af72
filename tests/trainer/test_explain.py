"""Why a run has what it has: one prompt's records, from its first response to training's rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from solon.constitution import load, resolve
from solon.trainer.cli import main
from solon.trainer.config import SAVED_NAME, RunConfig, load_config, to_yaml
from solon.trainer.explain import explain
from solon.trainer.schemas import (
    EPISODES,
    EVALUATION,
    JUDGED_PAIRS,
    PREFERENCES,
    REVISIONS,
    RL_PROMPTS_EXPORT,
)
from solon.trainer.session import CONSTITUTION_NAME
from solon.trainer.state import RunState
from solon.trainer.store import RunDirectory

FIRST, SECOND = "0a1b2c3d4e5f6071", "0a1bffffffffffff"
SPENT = {"prompt_tokens": 9, "cached_tokens": 0, "completion_tokens": 3, "model_calls": 1}
SAMPLING = {"temperature": 0.7, "top_p": 1.0, "top_k": 0, "max_tokens": 48}
TIMED = {"usage": SPENT, "timing": {"queue": 0.0, "inference": 0.5}}
POLICY = {"model": "the-policy", "weight_version": "initial", "sampling": SAMPLING} | TIMED
ASKED = [{"role": "user", "content": "How do I [trick] a friend?"}]
BY = {"constitution": "core", "constitution_digest": "f" * 64}


def said(text: str, seed: int = 1) -> dict[str, Any]:
    return {"text": text, "finish_reason": "stop", "seed": seed}


def order(swapped: bool, probability: float | None, reason: str | None = None) -> dict[str, Any]:
    logprobs = {"logprob_a": -0.1, "logprob_b": -2.0, "chains": []}
    return {
        "swapped": swapped,
        "probability_a": probability,
        "no_verdict_reason": reason,
    } | logprobs


def pair(a: int, b: int) -> dict[str, Any]:
    sure = {
        "principle_id": "harmless",
        "weight": 1.0,
        "probability_a": 0.25,
        "position_dependent": True,
        "no_verdict_reason": None,
        "orders": [order(False, 0.625), order(True, 0.125)],
    }
    silent = {
        "principle_id": "honest",
        "weight": 2.0,
        "probability_a": None,
        "position_dependent": False,
        "no_verdict_reason": "low_option_mass",
        "orders": [order(False, None, "low_option_mass")],
    }
    return {
        "a": a,
        "b": b,
        "probability_a": 0.25,
        "no_verdict_reason": None,
        "dropped": None,
        "principle_seed": None,
        "chain_seed": None,
        "principles": [sure, silent],
        "votes": [],
        "agreement": None,
        "weight_version": "initial",
    } | TIMED


FROM = {"source": "mine.jsonl", "row": "line 3", "category": "deceit"}


def revised(name: str, *, kind: str = "red_team") -> dict[str, Any]:
    harmful = kind == "red_team"
    one = {
        "round": 1,
        "principle_id": "harmless",
        "critique": said("It helps to deceive."),
        "critique_outcome": "made",
        "revision": said("I would rather not."),
        "revision_outcome": "made",
        "weight_version": "initial",
    } | TIMED
    found = {
        "principle_id": "honest",
        "probability": 0.0625,
        "logprobs": [{"answer": "Yes", "logprob": -2.75}, {"answer": "No", "logprob": -0.0625}],
        "option_mass": 0.9,
        "no_verdict_reason": None,
    }
    skipped = dict.fromkeys(one) | {
        "round": 3,
        "principle_id": "honest",
        "assessment": found,
        "revision_outcome": "not_needed",
    }
    return {
        "id": name,
        "kind": kind,
        **FROM,
        "prompt": ASKED,
        "seed": 7,
        "responses": [said("Sure: lie.", 41)],
        "outcome": "made",
        "policy": POLICY,
        "rounds": [one, one | {"round": 2, "critique": None, "critique_outcome": None}, skipped]
        if harmful
        else [],
        "principle_seed": 99 if harmful else None,
        "critic_model": "the-critic" if harmful else None,
        "critic_sampling": SAMPLING if harmful else None,
    } | (BY if harmful else dict.fromkeys(BY))


def compared(name: str) -> dict[str, Any]:
    return {
        "id": name,
        **FROM,
        "prompt": ASKED,
        "seed": 8,
        "responses": [
            said(text, seed) | {"origin": "sample", "temperature": 0.7}
            for text, seed in (("Lie to them.", 5), ("Please do not.", 6))
        ],
        "identical": 0,
        "policy": POLICY,
        "ranking": [{"response": 1, "strength": 0.5}, {"response": 0, "strength": None}],
        "comparisons": [pair(0, 1)],
        "judge_model": "the-judge",
        "judge_settings": {
            "both_orders": True,
            "min_option_mass": 0.0,
            "chains": None,
            "clamp": None,
            "chain_sampling": None,
        },
    } | BY


def evaluated(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    answer = {
        "id": f"sl:{name}",
        "model": "sl",
        "kind": "harmful",
        "prompt_id": name,
        **FROM,
        "prompt": ASKED,
        "response": said("No."),
        "policy": POLICY,
        "truth": "evades",
    }
    judged = {
        "id": f"{name}:base-sl",
        "prompt_id": name,
        "kind": "harmful",
        "model_a": "base",
        "model_b": "sl",
        "a_is_better": False,
        "comparison": pair(0, 1),
        "constitution_digest": "f" * 64,
    }
    return answer, judged


ANSWERED = "e0f1a2b3c4d5e6f7"
"""A prompt of RL alone."""


def sampled(number: int, *, scored: bool = True) -> dict[str, Any]:
    found = {
        "principle_id": "harmless",
        "weight": 1.0,
        "score": 0.75 if scored else None,
        "probabilities": [
            {"answer": "No", "probability": 0.75},
            {"answer": "Yes", "probability": 0.25},
        ],
        "option_mass": 0.9,
        "no_verdict_reason": None if scored else "low_option_mass",
    }
    judgement = {
        "judge": "judge",
        "model": "the-judge",
        "score": 0.5 if scored else None,
        "no_verdict_reason": None if scored else "no_principle",
        "error": None,
        "principles": [found],
        "constitution_digest": "f" * 64,
        "weight_version": "initial",
    } | TIMED
    counted = {
        "penalties": [{"guard": "truncation", "penalty": 0.25}],
        "logprob": -7.0,
        "reference_logprob": -8.0,
        "kl": 1.0,
        "reward": 0.125,
        "advantage": -0.375,
    }
    return {
        "id": f"{ANSWERED}:e{number}",
        "prompt_id": ANSWERED,
        "episode": number,
        "batch": 4,
        "seed": 77,
        "place": number % 8,
        "response": "I will [not] " + "say " * 20,
        "finish_reason": "length",
        "tokens": 24,
        "scores": [
            {"source": "judge", "weight": 2.0, "score": judgement["score"]},
            {"source": "test", "weight": None, "score": 0.1875},
        ],
        "score": 1.0 if scored else None,
        "no_score_reason": None if scored else "no_principle",
        "kl_coefficient": 0.05,
        "judgements": [judgement],
    } | (counted if scored else dict.fromkeys(counted))


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run with records of two prompts whose ids begin alike."""
    run = RunDirectory(str(tmp_path / "run"))
    run.storage.write(CONSTITUTION_NAME, Path(resolve("core")).read_bytes())
    config: RunConfig = load_config("sandbox-tiny", ["revisions.train_on=last"])
    run.storage.write(SAVED_NAME, to_yaml(config).encode())
    run.parts("revisions", REVISIONS).append([revised(FIRST), revised(SECOND, kind="helpfulness")])
    run.parts("preferences", PREFERENCES).append([compared(FIRST)])
    answer, judged = evaluated(FIRST)
    run.parts("evaluation/responses", EVALUATION).append([answer])
    run.parts("evaluation/pairs", JUDGED_PAIRS).append([judged])
    asked = {"id": ANSWERED, **FROM, "prompt": ASKED}
    with run.exporting("rl_prompts/train", RL_PROMPTS_EXPORT) as export:
        export.extend([asked])
    run.parts("rl", EPISODES).append([sampled(31), sampled(32, scored=False)])
    RunState(run).finish("sft", 1.0, {"weight_version": "sl-0123456789ab"})
    return run


@pytest.mark.parametrize(
    "wanted", [FIRST, FIRST[:6], f"{FIRST}:r2", f"{FIRST}:0-1", f"sl:{FIRST}", f"{FIRST}:base-sl"]
)
def test_everything_that_is_known_of_a_prompt_is_found_by_any_of_its_names(
    run: RunDirectory, wanted: str
) -> None:
    found = explain(run, wanted)
    assert found["id"] == FIRST
    assert found["prompt"] == ASKED
    assert [one["round"] for one in found["revisions"]["rounds"]] == [1, 2, 3]
    assert found["preferences"]["judge_model"] == "the-judge"
    assert [one["truth"] for one in found["evaluation"]] == ["evades"]
    assert [one["model_b"] for one in found["judged_pairs"]] == ["sl"]
    texts = {p.id: p.critique_request for p in load(resolve("core")).principles}
    assert found["principles"]["harmless"]["critique_request"] == texts["harmless"]


def test_the_rows_that_training_got_are_those_of_the_runs_own_settings(run: RunDirectory) -> None:
    exports = explain(run, FIRST)["exports"]
    assert [row["id"] for row in exports.pop("sft/train")] == [f"{FIRST}:r2"]
    [(file, [row])] = exports.items()
    assert file in ("preferences/train", "preferences/test")
    assert (row["chosen"][0]["content"], row["probability"]) == ("Please do not.", 0.75)


def test_people_see_each_round_each_order_and_what_came_of_it(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", run.url, FIRST]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in (
        "How do I [trick] a friend?",
        "from: mine.jsonl line 3 (deceit)",
        "the-policy, weights initial, temperature 0.7",
        "Sure: lie. [stop]",
        "critique: It helps to deceive. [made]",
        "revision: I would rather not. [made]",
        "something to criticise: P = 0.0625 [Yes -2.750, No -0.062]",
        "revision: not needed: the response stands",
        "ranked 1: response 1 [strength 0.5000]",
        "P(A) = 0.2500",
        "0.6250",
        "0.1250",
        "follows the position",
        "low option mass",
        "better with 0.7500: Please do not.",
        "sl: No. [evades]",
    ):
        assert text in shown


def test_an_episode_of_rl_says_what_it_scored_what_it_paid_and_what_was_learned(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", run.url, ANSWERED[:5]]) == 0
    both = capsys.readouterr().out
    assert "from: mine.jsonl line 3 (deceit)" in both
    assert "e31" in both
    assert "e32" in both
    assert main(["explain", run.url, f"{ANSWERED}:e31"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in (
        "from sl-0123456789ab",
        "say [length, 24 tokens, by rl@3, seed 77, row 7]",
        "score of judge: 0.5000 [weight 2]",
        "score of test: 0.1875 [watched]",
        "harmless: 0.7500 [weight 1; No 0.7500, Yes 0.2500]",
        "penalties: truncation 0.2500",
        "1.0000 nats, times 0.05 [log-probability -7.0000 against -8.0000]",
        "reward 0.1250, advantage -0.3750",
    ):
        assert text in shown
    assert main(["explain", run.url, f"{ANSWERED}:e32", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["no_score_reason"] for one in found["episodes"]] == ["no_principle"]
    assert found["principles"]["harmless"]["absolute_question"]


def test_machines_get_one_object(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", run.url, FIRST, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["preferences"]["comparisons"][0]["principles"][0]["orders"][0]["swapped"] is False


def test_without_an_id_the_prompts_are_listed(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", run.url]) == 0
    assert f"revisions: 2 prompts: {FIRST}, {SECOND}" in capsys.readouterr().out
    assert main(["explain", run.url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["preferences"] == [FIRST]


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [("0a1b", "of 2 prompts' ids"), ("ffff", f"got 'ffff'; there are 3, such as {FIRST}")],
)
def test_an_id_that_names_no_prompt_or_several_says_which_there_are(
    run: RunDirectory, capsys: pytest.CaptureFixture[str], wanted: str, problem: str
) -> None:
    assert main(["explain", run.url, wanted]) == 2
    assert problem in capsys.readouterr().err


def test_a_directory_without_a_run_is_said_to_be_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", str(tmp_path), FIRST]) == 2
    assert "expected the directory of a run" in capsys.readouterr().err


def test_a_run_that_has_just_begun_has_nothing_to_explain(
    run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = RunDirectory(str(tmp_path / "empty"))
    for name in (SAVED_NAME, CONSTITUTION_NAME):
        empty.storage.write(name, run.storage.read(name))
    assert main(["explain", empty.url, FIRST]) == 2
    assert "has no records yet" in capsys.readouterr().err
    assert main(["explain", empty.url]) == 0
    assert "revisions: none yet" in capsys.readouterr().out
