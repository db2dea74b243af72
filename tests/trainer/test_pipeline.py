"""The coordinator against real service processes that run the scripted engine."""

from __future__ import annotations

import json
import os
import pty
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import trustme
from opentelemetry.sdk.trace import ReadableSpan

from solon.constitution import Constitution, Principle, dump, load, resolve
from solon.serving.tokens import Scope, line_of
from solon.trainer.cli import main
from solon.trainer.config import load_config
from solon.trainer.schemas import PREFERENCES, REVISIONS
from solon.trainer.session import open_session
from solon.trainer.state import RunState
from solon.trainer.store import RunDirectory
from tests.conftest import Spans
from tests.trainer.runs import (
    COMMAND,
    HELPFUL,
    RED,
    ROLES,
    port_of,
    pretend_trained,
    records,
    serve,
    start,
)

# a shell's background jobs, such as a CI run, hand down that they ignore it
HEEDS_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
SMALL_FILES = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000));"


def parts_in(run: Path) -> list[Path]:
    return list((run / "revisions").glob("part-*.parquet"))


def test_every_revision_can_be_traced_to_its_principle(config: Path, tmp_path: Path) -> None:
    assert main(["revisions", str(config)]) == 0
    run = tmp_path / "run"
    constitution = load(resolve("core"))
    rows = records(run, "revisions", REVISIONS)
    assert len(rows) == RED + HELPFUL
    for row in rows:
        assert row["policy"]["weight_version"] == "initial"
        (asked,) = row["prompt"]
        line = Path(row["source"]).read_text().splitlines()[int(row["row"].split()[1]) - 1]
        assert json.loads(line)["prompt"] == asked["content"]
        if row["kind"] == "helpfulness":
            assert row["rounds"] == []
            continue
        assert [made["round"] for made in row["rounds"]] == [1, 2, 3]
        assert row["constitution_digest"] == constitution.digest
        assert {made["principle_id"] for made in row["rounds"]} <= {
            principle.id for principle in constitution.for_revision
        }
    used = {made["principle_id"] for row in rows for made in row["rounds"]}
    assert len(used) > 1
    examples = pq.read_table(run / "export/sft/train.parquet").to_pylist()
    assert len(examples) == 3 * RED + HELPFUL
    assert {example["round"] for example in examples} == {0, 1, 2, 3}
    assert examples[0]["completion"][0]["role"] == "assistant"


def test_a_chain_makes_only_the_rounds_that_the_critic_finds_a_reason_for(
    config: Path, tmp_path: Path
) -> None:
    assert main(["revisions", str(config), "revisions.not_needed_below=0.5"]) == 0
    rows = [row for row in records(tmp_path / "run", "revisions", REVISIONS) if row["rounds"]]
    untouched = set()
    for row in rows:
        assert row["outcome"] == "made"
        for made in row["rounds"]:
            needed = made["assessment"]["probability"] >= 0.5
            assert made["revision_outcome"] == ("made" if needed else "not_needed")
            assert (made["revision"] is not None) == (made["critique"] is not None) == needed
        if not any(made["revision"] for made in row["rounds"]):
            untouched.add(row["id"])
    assert len(untouched) < len(rows)
    examples = pq.read_table(tmp_path / "run/export/sft/train.parquet").to_pylist()
    # what no round changed is trained on as it is
    assert untouched
    assert untouched == {e["id"].removesuffix(":r0") for e in examples if e["id"].endswith(":r0")}


def test_answers_to_a_principles_questions_are_kept_with_the_round(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = Constitution(
        name="steps",
        version="1",
        principles=tuple(
            Principle(
                id=name,
                priority=place,
                critique_request="What is wrong?",
                revision_request="Mend it.",
                comparison_instruction="Which is better?",
                questions=("Who is hurt?", "How badly?"),
            )
            for name, place in (("late", 2), ("early", 1))
        ),
    )
    (tmp_path / "steps.yaml").write_text(dump(steps))
    asked = [
        str(config),
        f"constitution={tmp_path / 'steps.yaml'}",
        "revisions.principles=priority",
    ]
    assert main(["revisions", *asked]) == 2
    assert "revisions.rounds: expected 1 to 2" in capsys.readouterr().err
    assert main(["revisions", *asked, "revisions.rounds=2", "--run", str(tmp_path / "two")]) == 0
    run = tmp_path / "two"
    # what answers cost is foreseen: four texts a round, two rounds, and the first response
    assert f"{RED * 9 + HELPFUL:,} generations" in capsys.readouterr().err
    rows = [row for row in records(run, "revisions", REVISIONS) if row["rounds"]]
    for row in rows:
        assert row["principle_seed"] is None
        assert [made["principle_id"] for made in row["rounds"]] == ["early", "late"]
        for made in row["rounds"]:
            given = [(a["number"], a["question"], a["outcome"]) for a in made["answers"]]
            assert given == [(1, "Who is hurt?", "made"), (2, "How badly?", "made")]
            assert len({a["answer"]["seed"] for a in made["answers"]}) == 2
    assert main(["explain", str(run), rows[0]["id"]]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "principles by priority" in shown
    assert "question 2: How badly?" in shown
    assert f"answer: {rows[0]['rounds'][0]['answers'][1]['answer']['text']}" in shown


def test_pairs_are_labelled_softly_in_both_orders_by_every_principle(
    config: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert main(["revisions", str(config)]) == 0
    pretend_trained(run, "sft")
    assert main(["preferences", str(run)]) == 0
    rows = records(run, "preferences", PREFERENCES)
    assert len(rows) == RED + HELPFUL
    principles = len(load(resolve("core")).for_comparison)
    for row in rows:
        assert row["policy"]["weight_version"] == "sl-0123456789ab"
        for comparison in row["comparisons"]:
            assert len(comparison["principles"]) == principles
            assert all(len(verdict["orders"]) == 2 for verdict in comparison["principles"])
    exported = [
        pair
        for split in ("train", "test")
        for pair in pq.read_table(run / f"export/preferences/{split}.parquet").to_pylist()
    ]
    assert len(exported) == sum(len(row["comparisons"]) for row in rows)
    assert all(0.5 <= pair["probability"] <= 1 for pair in exported)
    assert all(pair["chosen"] != pair["rejected"] for pair in exported)


def test_a_run_killed_at_random_moments_and_resumed_equals_an_uninterrupted_one(
    config: Path, tmp_path: Path
) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert main(["revisions", str(config), "--run", str(straight)]) == 0
    dice = random.Random(11)
    kills = 0
    while not (broken / "state.json").exists():
        process = start("revisions", config, "--run", broken)
        target = len(parts_in(broken)) + dice.randint(2, 5)
        while process.poll() is None and len(parts_in(broken)) < target:
            time.sleep(dice.uniform(0, 0.02))
        process.kill()
        _, said = process.communicate()
        kills += process.returncode == -signal.SIGKILL
        assert process.returncode in (0, -signal.SIGKILL), said
    assert RunState(RunDirectory(str(broken))).is_done("revisions")
    assert kills > 0
    assert records(broken, "revisions", REVISIONS) == records(straight, "revisions", REVISIONS)
    ours, theirs = (run / "export/sft/train.parquet" for run in (broken, straight))
    assert pq.read_table(ours).equals(pq.read_table(theirs))


def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(config: Path, tmp_path: Path) -> None:
    # one prompt at a time, so that there is time to interrupt it
    process = start("revisions", config, "services.in_flight=1", before=HEEDS_CTRL_C)
    folder = tmp_path / "run" / "revisions"
    while not folder.exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130, said
    assert f"Go on with: solon revisions {config}" in said
    assert "Traceback" not in said
    before = records(tmp_path / "run", "revisions", REVISIONS)
    assert before
    assert main(["revisions", str(config)]) == 0
    after = records(tmp_path / "run", "revisions", REVISIONS)
    assert [row for row in after if row["id"] in {old["id"] for old in before}] == before


def test_every_call_of_a_run_hangs_beneath_its_record_and_stage(config: Path, spans: Spans) -> None:
    assert main(["revisions", str(config)]) == 0
    ids = {span.context.span_id: span for span in spans.all if span.context}

    def path(span: ReadableSpan) -> list[str]:
        return [*(path(ids[span.parent.span_id]) if span.parent else []), span.name]

    made = spans.named("record")
    assert len({(one.attributes or {})["solon.record_id"] for one in made}) == RED + HELPFUL
    beneath = ["run", "stage revisions", "record"]
    assert all(path(one) == beneath for one in made)
    for name, count in (
        ("solon.v1.PolicyService/Generate", RED + HELPFUL),
        ("solon.v1.CriticService/Refine", RED),
    ):
        calls = spans.named(name)
        assert len(calls) == count
        assert all(path(one) == [*beneath, name] for one in calls)
    assert len({span.context.trace_id for span in spans.all if span.context}) == 1


def test_a_finished_stage_is_not_repeated(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["revisions", str(config)]) == 0
    part = next((tmp_path / "run" / "revisions").iterdir())
    written = part.stat().st_mtime_ns
    assert main(["revisions", str(tmp_path / "run")]) == 0
    assert "revisions: done before" in capsys.readouterr().err
    assert part.stat().st_mtime_ns == written


def test_a_service_that_encrypts_and_knows_its_callers_serves_a_run_that_it_knows(
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued = authority.issue_cert("localhost")
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "critic.pem")
    (tmp_path / "tokens").write_text(line_of("trainer", [Scope.INFER], "trainer-secret") + "\n")
    flags = [f"--tls-{part}={tmp_path}/critic.pem" for part in ("certificate", "key")]
    process, ready = serve("critic", tmp_path, *flags, f"--token-file={tmp_path}/tokens")
    try:
        address = f"localhost:{port_of(process, ready)}"
        secure = [f"services.critic={{address: '{address}', tls: {{ca: '{tmp_path}/ca.pem'}}}}"]
        assert main(["revisions", str(config), *secure]) == 2
        assert "services.critic.token_env: the critic service" in capsys.readouterr().err
        secure.append("services.critic.token_env=CRITIC_TOKEN")
        monkeypatch.delenv("CRITIC_TOKEN", raising=False)
        assert main(["revisions", str(config), *secure]) == 2
        assert "environment variable 'CRITIC_TOKEN' is not set" in capsys.readouterr().err
        monkeypatch.setenv("CRITIC_TOKEN", "trainer-secret")
        missing = "services.critic.tls.ca=nowhere.pem"
        assert main(["revisions", str(config), *secure, missing]) == 2
        assert "services.critic.tls.ca: there is no file" in capsys.readouterr().err
        assert main(["revisions", str(config), *secure]) == 0
    finally:
        process.terminate()
        process.wait(20)
    assert len(records(tmp_path / "run", "revisions", REVISIONS)) == RED + HELPFUL
    assert "trainer-secret" not in (tmp_path / "run" / "config.yaml").read_text()


def test_on_a_terminal_a_bar_shows_how_far_the_stage_is(config: Path) -> None:
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "revisions", str(config)],
        stderr=follower,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(follower)
    shown = b""
    while chunk := read_terminal(leader):
        shown += chunk
    os.close(leader)
    assert process.wait() == 0, shown.decode()
    assert f"{RED + HELPFUL}/{RED + HELPFUL}" in shown.decode()
    assert "/s" in shown.decode()


def read_terminal(leader: int) -> bytes:
    try:
        return os.read(leader, 65536)
    except OSError:
        # Linux says so, rather than end of file, once the other side is closed
        return b""


def test_without_ground_truth_the_models_are_compared_and_it_is_said(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["revisions", str(config)]) == 0
    pretend_trained(run, "sft", "rl")
    assert main(["evaluate", str(run)]) == 0
    said = capsys.readouterr()
    assert "the judge's opinion" in said.err
    assert f"Records: {run}/revisions, {run}/evaluation\n" in said.out
    found = json.loads((run / "evaluation.json").read_text())
    assert found["ground_truth"] is None
    assert set(found["models"]) == {"base", "sl", "rl"}
    assert set(found["models"]["rl"]) == {"preferred_to_base", "preferred_to_sl"}
    assert found["judge"]["accuracy"] is None
    responses = [
        row
        for part in (run / "evaluation" / "responses").iterdir()
        for row in pq.read_table(part).to_pylist()
    ]
    assert {row["policy"]["weight_version"] for row in responses} == {
        "initial",
        "sl-0123456789ab",
        "rl-0123456789ab",
    }


def test_snapshots_of_the_policy_are_measured_against_the_helpful_model(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    wanted = ("evaluate.snapshots=true", "rl.snapshots_every=5")
    assert main(["revisions", str(config), *wanted]) == 0
    pretend_trained(run, "sft", "rl")
    versions = {"rl@1": "rl@1-01", "rl@12": "rl@12-02"}
    for batch in (1, 12):
        (run / f"models/rl-snapshots/batch-{batch:06d}").mkdir(parents=True)
    summary = {"weight_version": "rl-0123456789ab", "snapshots": versions}
    RunState(RunDirectory(str(run))).finish("rl", 0.0, summary)
    assert main(["evaluate", str(run)]) == 0
    found = json.loads((run / "evaluation.json").read_text())["models"]
    assert list(found) == ["base", "sl", "rl@1", "rl@12", "rl"]
    assert set(found["rl@1"]) == {"preferred_to_base"}
    assert set(found["rl"]) == {"preferred_to_base", "preferred_to_sl"}
    assert "The policy on its way" in capsys.readouterr().out
    assert main(["evaluate", str(run)]) == 0
    assert "evaluate: done before" in capsys.readouterr().err


def test_a_model_that_was_trained_since_is_evaluated_and_the_others_are_not_again(
    config: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert main(["evaluate", str(config)]) == 0
    assert set(json.loads((run / "evaluation.json").read_text())["models"]) == {"base"}
    first = sorted((run / "evaluation" / "responses").iterdir())
    pretend_trained(run, "sft")
    assert main(["evaluate", str(run)]) == 0
    assert set(json.loads((run / "evaluation.json").read_text())["models"]) == {"base", "sl"}
    later = sorted((run / "evaluation" / "responses").iterdir())[len(first) :]
    assert {row["model"] for part in later for row in pq.read_table(part).to_pylist()} == {"sl"}


def test_a_judge_that_cannot_decide_stops_the_run_instead_of_making_labels(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, unsure = tmp_path / "run", "preferences.min_option_mass=1.0"
    assert main(["revisions", str(config), unsure]) == 0
    pretend_trained(run, "sft")
    assert main(["preferences", str(run)]) == 1
    said = capsys.readouterr().err
    assert "low_option_mass out of" in said
    assert "preferences.max_no_verdict_share = 0.05" in said
    assert main(["preferences", str(run), "preferences.max_no_verdict_share=1.0"]) == 1
    assert "nothing to train on" in capsys.readouterr().err
    comparisons = [
        pair for row in records(run, "preferences", PREFERENCES) for pair in row["comparisons"]
    ]
    assert {pair["probability_a"] for pair in comparisons} == {None}


def test_a_judge_that_always_says_a_ends_near_a_half_and_stops_the_run(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, script = tmp_path / "run", tmp_path / "always-a.yaml"
    script.write_text("- match: .\n  logprobs: {(A): -0.001, (B): -7.0}\n")
    judge, ready = serve("judge", tmp_path, f"--engine-option=script={script}")
    try:
        biased = f"services.judge.address=127.0.0.1:{port_of(judge, ready)}"
        assert main(["revisions", str(config), biased]) == 0
        pretend_trained(run, "sft")
        assert main(["preferences", str(run)]) == 1
        said = capsys.readouterr().err
        assert "follow the position out of" in said
        assert "preferences.max_position_bias = 0.8" in said
        assert main(["preferences", str(run), "preferences.max_position_bias=1.0"]) == 0
    finally:
        judge.terminate()
        judge.wait(20)
    comparisons = [
        pair for row in records(run, "preferences", PREFERENCES) for pair in row["comparisons"]
    ]
    assert {round(pair["probability_a"], 6) for pair in comparisons} == {0.5}
    summary = RunState(RunDirectory(str(run))).summary("preferences")
    assert summary["position_bias"] == 1.0


def test_a_full_disk_ends_the_stage_in_one_message_and_space_lets_it_finish(
    config: Path, tmp_path: Path
) -> None:
    whole = "store.part_records=1000"
    process = start("revisions", config, whole, before=SMALL_FILES)
    _, said = process.communicate()
    assert process.returncode == 2, said
    assert "part-000000.parquet: could not be written: the file would exceed" in said
    assert "Traceback" not in said
    assert parts_in(tmp_path / "run") == []
    assert main(["revisions", str(config), whole]) == 0
    assert len(records(tmp_path / "run", "revisions", REVISIONS)) == RED + HELPFUL


def test_services_that_the_run_starts_may_be_killed_in_the_middle(
    config: Path, tmp_path: Path
) -> None:
    own = [
        f"services.{role}={{engine: scripted, engine_options: {{latency: '0.05'}}}}"
        for role in ROLES
    ]
    run = tmp_path / "run"
    assert main(["revisions", str(config)]) == 0
    pretend_trained(run, "sft")
    process = start("preferences", run, *own)
    folder = run / "preferences"
    while not folder.exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    for pid in children_of(process.pid):
        os.kill(pid, signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == 0, said
    rows = records(run, "preferences", PREFERENCES)
    assert len(rows) == RED + HELPFUL
    assert {row["policy"]["weight_version"] for row in rows} == {"sl-0123456789ab"}


def children_of(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in listed.split()]


def test_services_make_room_for_training_and_come_back(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = [f"services.{role}={{engine: scripted}}" for role in ROLES]
    stages = ["stages=[revisions, sft, preferences]", "services.release_for_training=true"]
    with open_session(load_config(str(config), [*here, *stages]), resume=False):
        pretend_trained(tmp_path / "run", "sft")
    (tmp_path / "run" / "state.json").unlink()  # the model is there, its stage is not done
    assert main(["run", str(config), *here, *stages, "--resume"]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("services:")]
    assert told == ["services: critic, policy", "services: judge, policy"]
