"""The stage that makes preference pairs, against services that run the scripted engine."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from solon.constitution import load, resolve
from solon.trainer.cli import main
from solon.trainer.schemas import PREFERENCES, REVISIONS
from solon.trainer.state import RunState
from solon.trainer.store import RunDirectory
from tests.trainer.runs import (
    HELPFUL,
    RED,
    port_of,
    prepared,
    pretend_trained,
    records,
    serve,
    start,
)

THOUGHTFUL = "preferences.chain_of_thought={chains: 2, sampling: {max_tokens: 40}}"
# one that decides by what it thought, and one whose thoughts lead nowhere
REASONS = r"""
- {match: 'assistant: The first', logprobs: {(A): -0.01, (B): -4.6}}
- {match: 'assistant: The second', logprobs: {(A): -3.0, (B): -0.05}}
- {match: Reason step by step, reply: [The first is kinder., The second is calmer.]}
"""
GARBAGE = r"""
- {match: 'assistant: qzx', logprobs: {(A): -5.0, (B): -9.0}}
- {match: Reason step by step, reply: [qzx qzx vvv, qzx blorp]}
"""
# prefers the response whose hash begins with a letter, in either order
SIDES = r"""
- {match: '(?s)\(A\) Reply [a-f].*\(B\) Reply [0-9]', logprobs: {(A): -0.1, (B): -2.4}}
- {match: '(?s)\(A\) Reply [0-9].*\(B\) Reply [a-f]', logprobs: {(A): -2.4, (B): -0.1}}
"""
Judge = Callable[[str], str]


@pytest.fixture
def judge(tmp_path: Path) -> Iterator[Judge]:
    """Starts a judge that follows a script; returns the override that has a run use it."""
    started: list[subprocess.Popen[bytes]] = []

    def start_one(text: str) -> str:
        script = tmp_path / f"script-{len(started)}.yaml"
        script.write_text(text)
        folder = tmp_path / f"judge-{len(started)}"
        folder.mkdir()
        process, ready = serve("judge", folder, f"--engine-option=script={script}")
        started.append(process)
        return f"services.judge.address=127.0.0.1:{port_of(process, ready)}"

    yield start_one
    for process in started:
        process.terminate()
    for process in started:
        process.wait(20)


def few(config: Path) -> str:
    """As many prompts as it takes to see something."""
    return f"prompts.preferences=['{config.parent}/helpful.jsonl']"


def comparisons(run: Path) -> list[dict[str, Any]]:
    return [pair for row in records(run, "preferences", PREFERENCES) for pair in row["comparisons"]]


def summary_of(run: Path) -> dict[str, Any]:
    return dict(RunState(RunDirectory(str(run))).summary("preferences"))


def test_every_chain_of_thought_is_kept_with_what_it_led_to(
    config: Path, tmp_path: Path, judge: Judge, capsys: pytest.CaptureFixture[str]
) -> None:
    warm = "preferences.temperatures=[0.5, 1.5]"
    run = prepared(config, tmp_path / "run", few(config), judge(REASONS), THOUGHTFUL, warm)
    assert main(["preferences", str(run)]) == 0
    rows = records(run, "preferences", PREFERENCES)
    for row in rows:
        assert [made["temperature"] for made in row["responses"]] == [0.5, 1.5, 0.5]
        assert len({made["text"] for made in row["responses"]}) == 3
        assert row["judge_settings"]["chains"] == 2
        assert (row["judge_settings"]["clamp"], row["judge_settings"]["min_option_mass"]) == (
            0.4,
            0.1,
        )
    orders = [
        order
        for pair in comparisons(run)
        for verdict in pair["principles"]
        for order in verdict["orders"]
    ]
    assert all(0.4 <= order["probability_a"] <= 0.6 for order in orders)
    for order in orders:
        assert [chain["text"] for chain in order["chains"]] != []
        for chain in order["chains"]:
            first = chain["text"] == "The first is kinder."
            shown_first = 0.99 if first else 0.05
            expected = 1 - shown_first if order["swapped"] else shown_first
            assert chain["probability_a"] == pytest.approx(expected, abs=0.01)
    capsys.readouterr()
    assert main(["explain", str(run), rows[0]["id"]]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "swapped, chain 1: The " in shown
    assert "temperature 1.5" in shown


def test_garbage_for_thoughts_gives_non_verdicts_and_never_labels(
    config: Path, tmp_path: Path, judge: Judge, capsys: pytest.CaptureFixture[str]
) -> None:
    run = prepared(config, tmp_path / "run", few(config), judge(GARBAGE), THOUGHTFUL)
    assert main(["preferences", str(run)]) == 1
    said = capsys.readouterr().err
    assert "low_option_mass out of" in said
    assert "preferences.max_no_verdict_share = 0.05" in said
    cut = "preferences.chain_of_thought.sampling.max_tokens=1"
    other = prepared(config, tmp_path / "other", few(config), judge(REASONS), THOUGHTFUL, cut)
    assert main(["preferences", str(other)]) == 1
    assert "unreadable_answer out of" in capsys.readouterr().err
    for one in (run, other):
        made = comparisons(one)
        assert made
        assert {pair["probability_a"] for pair in made} == {None}
        assert not (one / "export" / "preferences").exists()
        chains = made[0]["principles"][0]["orders"][0]["chains"]
        assert {chain["probability_a"] for chain in chains} == {None}
        assert all(chain["no_verdict_reason"] for chain in chains)


def test_what_filters_leave_out_is_counted_explained_and_not_exported(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strict = ["preferences.filters={min_margin: 0.2, consistent_orders: true}"]
    run = prepared(config, tmp_path / "run", *strict, "preferences.max_dropped_share=1.0")
    assert main(["preferences", str(run)]) == 0
    said = capsys.readouterr().err
    made = comparisons(run)
    summary = summary_of(run)
    assert summary["dropped"].keys() == {"near_tie", "follows_position"}
    assert sum(summary["dropped"].values()) == len([p for p in made if p["dropped"]])
    assert f"{summary['dropped']['near_tie']} near_tie" in said
    exported = [
        row
        for split in ("train", "test")
        for row in pq.read_table(run / f"export/preferences/{split}.parquet").to_pylist()
    ]
    assert sum(summary["labels"].values()) == len(exported)
    assert len(exported) == len([p for p in made if not p["dropped"]])
    row = next(
        row
        for row in records(run, "preferences", PREFERENCES)
        if any(pair["dropped"] == "near_tie" for pair in row["comparisons"])
    )
    assert main(["explain", str(run), row["id"]]) == 0
    assert "not trained on: near tie" in " ".join(capsys.readouterr().out.split())


def test_a_stage_whose_filters_leave_out_too_much_fails_and_says_which(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # the scripted policy's responses to one prompt differ in one word
    run = prepared(config, tmp_path / "run", few(config), "preferences.filters.max_similarity=0.5")
    assert main(["preferences", str(run)]) == 1
    said = capsys.readouterr().err
    assert "pairs that the filters leave out: " in said
    assert "similar out of" in said
    assert "preferences.max_dropped_share = 0.5" in said
    # what texts alone decide costs no judgement
    assert {pair["weight_version"] for pair in comparisons(run)} == {None}


def test_the_best_and_the_worst_of_a_ranking_are_compared(
    config: Path, tmp_path: Path, judge: Judge
) -> None:
    ends = ["preferences.selection=best_worst", "preferences.pairs=1", "preferences.responses=4"]
    run = prepared(config, tmp_path / "run", few(config), judge(SIDES), *ends)
    assert main(["preferences", str(run)]) == 0
    for row in records(run, "preferences", PREFERENCES):
        order = [one["response"] for one in row["ranking"]]
        assert sorted(order) == [0, 1, 2, 3]
        strengths = [one["strength"] for one in row["ranking"]]
        assert strengths == sorted(strengths, reverse=True)
        [pair] = row["comparisons"]
        assert {pair["a"], pair["b"]} == {order[0], order[-1]}


def test_revisions_are_pairs_too_and_need_neither_an_sl_model_nor_a_generation(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["revisions", str(config), "preferences.source=revisions"]) == 0
    assert main(["preferences", str(run)]) == 0
    assert "services: judge\n" in capsys.readouterr().err
    rows = records(run, "preferences", PREFERENCES)
    assert len(rows) == RED
    revised = {row["id"]: row for row in records(run, "revisions", REVISIONS)}
    for row in rows:
        first, last = row["responses"]
        assert (first["origin"], last["origin"]) == ("initial", "revision 3")
        assert first["text"] == revised[row["id"]]["responses"][0]["text"]
        assert last["text"] == revised[row["id"]]["rounds"][-1]["revision"]["text"]
        assert row["policy"] is None
        assert [(pair["a"], pair["b"]) for pair in row["comparisons"]] == [(0, 1)]
    assert main(["explain", str(run), rows[0]["id"]]) == 0
    assert "revision 3, temperature 1" in " ".join(capsys.readouterr().out.split())


def test_pairs_of_both_sources_need_both_and_a_prompt_of_both_has_one_record(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["revisions", str(config), "preferences.source=both"]) == 0
    assert main(["preferences", str(run)]) == 2
    assert "preferences needs the stage sft" in capsys.readouterr().err
    pretend_trained(run, "sft")
    assert main(["preferences", str(run)]) == 0
    rows = records(run, "preferences", PREFERENCES)
    assert len(rows) == RED + HELPFUL
    origins = [[made["origin"] for made in row["responses"]] for row in rows]
    assert origins.count(["sample"] * 3 + ["initial", "revision 3"]) == RED
    assert origins.count(["sample"] * 3) == HELPFUL
    assert summary_of(run)["pairs"] == 2 * (RED + HELPFUL) + RED


def test_given_comparisons_are_mixed_in_at_their_share_and_each_prompt_by_its_own_principles(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = tmp_path / "known.jsonl"
    pairs = [{"prompt": f"Help {n}?", "chosen": "Gladly.", "rejected": "No."} for n in range(40)]
    known.write_text("\n".join(map(json.dumps, pairs)))
    digest = hashlib.sha256(known.read_bytes()).hexdigest()
    judged = f"{{source: '{config.parent}/helpful.jsonl', judged_by: [honesty]}}"
    mixed = [f"prompts.preferences=[{judged}]", f"prompts.comparisons=['{known}']"]
    mixed += ["preferences.given={share: 0.4, probability: 0.9}", "preferences.pairs=3"]
    runs = [prepared(config, tmp_path / name, *mixed) for name in ("run", "again")]
    for run in runs:
        assert main(["preferences", str(run)]) == 0, capsys.readouterr().err
    ids = {v["principle_id"] for pair in comparisons(runs[0]) for v in pair["principles"]}
    tagged = [one.id for one in load(resolve("core")).for_comparison if "honesty" in one.tags]
    assert ids == set(tagged)
    exports = [
        {
            split: pq.read_table(run / f"export/preferences/{split}.parquet").to_pylist()
            for split in ("train", "test")
        }
        for run in runs
    ]
    assert exports[0] == exports[1]
    for rows in exports[0].values():
        given = [row for row in rows if row["source"] == str(known)]
        assert len(given) == round(0.4 * len(rows))
        assert {row["probability"] for row in given} == {0.9}
        assert {row["chosen"][0]["content"] for row in given} <= {"Gladly."}
        assert {row["source_digest"] for row in given} <= {digest}
        assert {row["source_digest"] for row in rows if row not in given} <= {None}
    row = next(row for row in exports[0]["train"] if ":given-" in row["id"])
    line = int(row["row"].removeprefix("line "))
    assert row["prompt"][0]["content"] == pairs[line - 1]["prompt"]
    capsys.readouterr()
    assert main(["explain", str(runs[0]), row["id"]]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"from: {known} line {line} [SHA-256 {digest[:12]}]" in shown
    assert f"export/preferences/train {row['id']}: better with 0.9000: Gladly." in shown
    assert "than: No." in shown
    train, test = exports[0].values()
    prompts = [{row["prompt"][0]["content"] for row in rows} for rows in (train, test)]
    assert prompts[0].isdisjoint(prompts[1])
    known.write_text(json.dumps({"prompt": "Alone?"}))
    assert main(["revisions", str(config), "--run", str(tmp_path / "bad"), *mixed]) == 2
    assert "a better and a worse response" in capsys.readouterr().err


PANEL = "preferences.panel={judges: {kind: %s, torn: %s, lame: %s}}"


def test_a_panel_votes_and_a_judge_that_fails_is_counted_and_has_no_vote(
    config: Path, tmp_path: Path, judge: Judge, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(config.parent / "model")
    addresses = [judge(SIDES), judge(SIDES)]
    panel = [few(config), PANEL % (model, model, model)]
    for name, override in zip(("kind", "torn"), addresses, strict=True):
        panel.append(override.replace("services.judge", f"services.panel.{name}"))
    # the run starts this one itself
    lame = "{engine: scripted, engine_options: {fail_every: '1', fail_with: failed}}"
    panel.append(f"services.panel.lame={lame}")
    strict = prepared(config, tmp_path / "strict", *panel)
    assert main(["preferences", str(strict)]) == 1
    said = capsys.readouterr().err
    assert "the judge 'lame' did not answer: " in said
    assert "failed out of" in said
    assert "preferences.panel.max_failed_share = 0.05" in said
    assert {pair["no_verdict_reason"] for pair in comparisons(strict)} == {"no_quorum"}
    patient = ["preferences.panel.quorum=2", "preferences.panel.max_failed_share=1.0"]
    run = prepared(config, tmp_path / "run", *panel, *patient, "preferences.panel.mode=majority")
    assert main(["preferences", str(run)]) == 0, capsys.readouterr().err
    made = comparisons(run)
    for pair in made:
        kind, torn, lame_vote = pair["votes"]
        assert kind["probability_a"] == pytest.approx(torn["probability_a"])
        assert pair["probability_a"] in (0.0, 1.0)
        assert pair["agreement"] == 1.0
        assert lame_vote["error"].startswith("EngineFailed: ")
        assert lame_vote["probability_a"] is None
    found = summary_of(run)["panel"]
    assert found["judges"]["lame"] == {"failed": len(made)}
    assert found["judges"]["kind"] == {"made": len(made)}
    assert found["kappas"]["kind torn"] == 1.0
    assert found["kappas"]["kind lame"] is None
    name = records(run, "preferences", PREFERENCES)[0]["id"]
    capsys.readouterr()
    assert main(["explain", str(run), name]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "torn (scripted)" in shown
    assert "failed: EngineFailed" in shown
    assert "panel: response" in shown


def test_in_a_second_iteration_what_rl_left_answers_the_same_prompts_anew(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = prepared(config, tmp_path / "two", few(config), "iterations=2")
    assert main(["preferences", str(run)]) == 0
    assert "preferences-2: waits for rl" in capsys.readouterr().err
    pretend_trained(run, "rl")
    assert main(["preferences", str(run)]) == 0
    assert "preferences: done before" in capsys.readouterr().err
    first, second = (records(run, name, PREFERENCES) for name in ("preferences", "preferences-2"))
    assert [row["id"] for row in first] == [row["id"] for row in second]
    assert {row["policy"]["weight_version"] for row in first} == {"sl-0123456789ab"}
    assert {row["policy"]["weight_version"] for row in second} == {"rl-0123456789ab"}
    assert not {row["seed"] for row in first} & {row["seed"] for row in second}
    (pair, *_) = pq.read_table(run / "export/preferences-2/train.parquet").to_pylist()
    assert pair["id"].endswith(":i2")
    assert main(["explain", str(run), pair["id"]]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "weights rl-0123456789ab" in shown
    assert f"export/preferences-2/train {pair['id']}" in shown


def test_the_data_is_the_same_whatever_the_replicas_the_concurrency_and_the_interruptions(
    config: Path, tmp_path: Path, judge: Judge
) -> None:
    drawn = ["preferences.principles=1", "preferences.selection=most_different", THOUGHTFUL]
    drawn += [f"prompts.preferences=['{config.parent}/red.jsonl']", "preferences.pairs=1"]
    model = str(config.parent / "model")
    drawn.append(f"preferences.panel={{judges: {{sure: {model}, mild: {model}}}}}")
    scripts = (REASONS, REASONS, REASONS.replace("-4.6", "-0.9"))
    sure, again, mild = (judge(script).rpartition("=")[2] for script in scripts)
    drawn.append(f"services.panel.mild.address={mild}")
    one = [f"services.panel.sure.address={sure}", "services.in_flight=1"]
    straight = prepared(config, tmp_path / "straight", *one, *drawn)
    assert main(["preferences", str(straight)]) == 0
    many = [f"services.panel.sure.address=ipv4:{sure},{again}", "services.in_flight=4"]
    broken = prepared(config, tmp_path / "broken", *drawn, *many)
    process = start("preferences", broken)
    while process.poll() is None and not list(broken.glob("preferences/part-*.parquet")):
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert 0 < len(records(broken, "preferences", PREFERENCES)) < RED
    assert main(["preferences", str(broken)]) == 0
    ours, theirs = (records(run, "preferences", PREFERENCES) for run in (broken, straight))
    assert ours == theirs
    votes = [pair["votes"] for row in ours for pair in row["comparisons"]]
    assert all([vote["judge"] for vote in of_pair] == ["sure", "mild"] for of_pair in votes)
    assert summary_of(broken) == summary_of(straight)
