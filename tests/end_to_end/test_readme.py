"""The README's commands and programs, word for word; CI runs the first two. And their run, killed.

All that looks at the tour's run is in this one file: a file's tests share a process, and the run.
"""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from solon.client.sync import CriticClient, JudgeClient
from solon.trainer.ablation.figures import measure
from solon.trainer.schemas import PREFERENCES, REVISIONS
from solon.trainer.store import RunDirectory
from tests.end_to_end.faults import Trial, Victim, differences

PORTS = (50052, 50053)


def test_the_commands_of_the_tour(tour: Any) -> None:
    assert "harmful compliance" in tour.stdout
    assert "Judge, on" in tour.stdout
    assert (tour.run / "evaluation.json").exists()
    assert "preferences: " in tour.stdout


def test_why_the_tours_run_has_what_it_has(tour: Any) -> None:
    solon = (sys.executable, "-m", "solon.trainer.cli", "explain", str(tour.run))
    (known,) = printed(*solon, "--json", cwd=tour.run)
    explained = [
        json.loads(printed(*solon, name, "--json", cwd=tour.run)[0])
        for name in json.loads(known)["preferences"][:3]
    ]
    pairs = [pair for one in explained for pair in one["preferences"]["comparisons"]]
    used = {verdict["principle_id"] for pair in pairs for verdict in pair["principles"]}
    assert used
    assert used <= {name for one in explained for name in one["principles"]}
    shown = printed(*solon, explained[0]["id"], cwd=tour.run)
    assert any(explained[0]["preferences"]["responses"][0]["text"] in line for line in shown)


def test_the_estimate_of_the_tours_run_is_near_what_it_asked(tour: Any) -> None:
    solon = (sys.executable, "-m", "solon.trainer.cli", "run", str(tour.run), "--resume")
    (line,) = printed(*solon, "--dry-run", "--json", cwd=tour.run)
    estimated = {(one["stage"], one["role"]): one for one in json.loads(line)["calls"]}
    run = RunDirectory(str(tour.run))
    revisions = list(run.parts("revisions", REVISIONS).records())
    preferences = list(run.parts("preferences", PREFERENCES).records())
    used = {
        ("revisions", "policy"): [row["policy"]["usage"] for row in revisions],
        ("revisions", "critic"): [made["usage"] for row in revisions for made in row["rounds"]],
        ("preferences", "policy"): [row["policy"]["usage"] for row in preferences],
        ("preferences", "judge"): [c["usage"] for r in preferences for c in r["comparisons"]],
    }
    for key, usages in used.items():
        calls, prompt, completion = (
            sum(usage[name] for usage in usages)
            for name in ("model_calls", "prompt_tokens", "completion_tokens")
        )
        # equal answers are not compared, and other calls may be spared, but none comes on top
        assert 0.5 * estimated[key]["calls"] <= calls <= estimated[key]["calls"]
        ratio = estimated[key]["prompt_tokens"] / estimated[key]["calls"] / (prompt / calls)
        assert 0.6 <= ratio <= 1.8, (key, ratio)
        assert completion <= estimated[key]["most_completion_tokens"]


def test_an_ablation_measures_a_run_as_its_evaluation_does(tour: Any) -> None:
    figures = measure(RunDirectory(str(tour.run)), last="rl")
    evaluation = json.loads((tour.run / "evaluation.json").read_text())
    for model, rates in evaluation["models"].items():
        for name, rate in rates.items():
            cases = figures[f"{model}.{name}"].values()
            assert len(cases) == rate["n"]
            assert sum(cases) == pytest.approx(rate["rate"] * rate["n"])
    assert figures["final.evasion"] == figures["rl.evasion"]
    # the critic of the sandbox knows its work
    revised = [sum(figures[f"revision_{n}.harmful_compliance"].values()) for n in (0, 2)]
    assert revised[0] > revised[1]
    assert set(figures["labels.position_bias"].values()) <= {0.0, 1.0}
    assert figures["seconds"][""] > 0


def test_a_run_whose_coordinator_and_services_are_killed_at_random_moments_equals_an_unharmed_one(
    tour: Any, tmp_path: Path
) -> None:
    # parts of 8 records: there are several of every stage's, however fast the machine is
    parts = ("store.part_records=8",)
    trial = Trial(config="sandbox-tiny", folder=tmp_path / "killed", overrides=parts)
    # an attempt that a dead service stops ends with an error, which none may; `faults.py`, by
    # hand, kills as often as one likes
    killed = trial.harm(get_args(Victim), every=8, within=tour.seconds / 20, dice=random.Random(5))
    for victim in get_args(Victim):
        assert sum(victim in line for line in killed) >= 2, killed
    assert differences(trial.folder, tour.run) == [], killed


def test_a_configuration_of_ones_own_is_checked_before_anything_starts(
    checkout: Path, block: Callable[[str], str]
) -> None:
    (checkout / "my.yaml").write_text(block("own-config"), "utf-8")
    said = "\n".join(printed("bash", "-euo", "pipefail", "-c", block("own"), cwd=checkout))
    assert "nothing was started." in said
    assert "red_team" in said
    assert "rl.reward.judge: 0.0" in said
    assert "54 runs" in said


@pytest.fixture(scope="module")
def services(checkout: Path, block: Callable[[str], str]) -> Iterator[None]:
    """The critic and the judge, started as the README says."""
    for port in PORTS:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                pytest.skip(f"port {port}, which the README names, is in use on this machine")
    lines = block("services").splitlines()
    # exec, so that the signal at the end reaches the service itself
    running = [
        subprocess.Popen(["bash", "-c", f"exec {line}"], cwd=checkout, stderr=subprocess.DEVNULL)
        for line in lines
    ]
    critic_port, judge_port = PORTS
    with CriticClient(f"localhost:{critic_port}") as critic:
        critic.wait_until_serving(120)
    with JudgeClient(f"localhost:{judge_port}") as judge:
        judge.wait_until_serving(120)
    yield
    for process in running:
        process.send_signal(signal.SIGTERM)
    assert [process.wait(60) for process in running] == [0] * len(lines)


def printed(*command: str, cwd: Path) -> list[str]:
    """The lines that a command prints; it has to succeed."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_program_that_asks_critic_and_judge(
    services: None, checkout: Path, block: Callable[[str], str]
) -> None:
    *rounds, verdict = printed(sys.executable, "-c", block("client"), cwd=checkout)
    assert len(rounds) == 2
    probability, reason = verdict.split()
    assert float(probability) > 0.5
    assert reason == "None"


def test_the_guard_of_a_chat_endpoint_lets_help_out_and_harm_not(
    services: None, checkout: Path, block: Callable[[str], str]
) -> None:
    harmless, harmful = printed(sys.executable, "-c", block("guard"), cwd=checkout)
    assert harmless.startswith("To kill the process")
    assert harmful == "I won't help with that."


def test_a_constitution_is_checked_and_tried(
    services: None, tour: Any, checkout: Path, block: Callable[[str], str]
) -> None:
    shown = printed("bash", "-euo", "pipefail", "-c", block("trial"), cwd=checkout)
    assert any("no judge uses it" in line for line in shown)
    assert any("Agreement" in line for line in shown)


def test_the_commands_that_ask_running_services(
    services: None, checkout: Path, block: Callable[[str], str]
) -> None:
    shown = printed("bash", "-euo", "pipefail", "-c", block("calls"), cwd=checkout)
    assert sum(line.endswith("SERVING") for line in shown) == len(PORTS)
    assert any(line.startswith("Round 1, by ") for line in shown)
    assert "B is better" in shown[-1]
