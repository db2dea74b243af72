"""Ablations: the file of rows, runs that share what they can, intervals, verdicts."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from solon.trainer.ablation.estimates import Estimate, effect, estimate, together, verdict
from solon.trainer.ablation.picture import svg
from solon.trainer.ablation.report import markdown
from solon.trainer.ablation.spec import load_ablation, shipped
from solon.trainer.ablation.variants import Pace, Plan, make_variants
from solon.trainer.cli import main
from solon.trainer.schemas import REVISIONS
from solon.trainer.state import RunState
from solon.trainer.store import RunDirectory
from tests.trainer.runs import records, start

ROWS = """\
base: sandbox-tiny
seeds: [3, 4]
set:
  prompts.red_team: [{source: "sandbox:harmful", count: 12}]
  prompts.helpfulness: []
  preflight.mode: skip
  prompts.evaluation.benign: []
  prompts.evaluation.sounds_dangerous: []
  store.part_records: 3
measures: [final.garbled, revision_1.harmful_compliance, seconds]
picture: {x: final.garbled, y: revision_1.harmful_compliance}
rows:
  plain:
    title: As it is
    until: revisions
    findings:
      - says: Revisions help
        source: Somebody 2022, fig. 5
        expect:
          - measure: revision_2.harmful_compliance
            is: lower
            than_measure: revision_0.harmful_compliance
        reason: A script answers here.
  last:
    title: The last revision alone
    set: {revisions.train_on: last}
    until: revisions
"""
BROKEN = """\
  broken:
    title: Answers that are cut
    set: {revisions.response.max_tokens: 1}
    until: revisions
"""


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.yaml"
    path.write_text(ROWS)
    return path


@pytest.fixture
def services(addresses: dict[str, str]) -> list[str]:
    """Overrides that name the scripted services."""
    return [f"services.{role}.address={address}" for role, address in addresses.items()]


def result_of(root: Path) -> dict[str, Any]:
    """What an ablation found, without what differs from one directory and moment to another."""
    found: dict[str, Any] = json.loads((root / "ablation.json").read_text())
    for row in found["rows"].values():
        for figures in (row["measures"], row["effects"]):
            figures.pop("seconds", None)
        for run in row["runs"].values():
            run["directory"] = Path(run["directory"]).relative_to(root)
            run["taken_from"] = {
                stage: Path(where).relative_to(root) for stage, where in run["taken_from"].items()
            }
    return found


def test_an_ablation_that_was_killed_and_resumed_equals_an_uninterrupted_one(
    rows: Path, services: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    assert main(["ablate", str(rows), *services, "--run", str(straight)]) == 0
    said = capsys.readouterr()
    assert "4 runs, of which 0 are done" in said.err
    assert "within noise" in said.out
    # slowly, so that there is time to kill it
    killed = start("ablate", rows, *services, "services.in_flight=1", "--run", broken)
    parts = broken / "runs" / "last" / "seed-3"
    while not parts.exists():
        assert killed.poll() is None, killed.communicate()[1]
        time.sleep(0.005)
    killed.kill()
    killed.communicate()
    assert main(["ablate", str(rows), *services, "--run", str(broken)]) == 2
    assert "there is an ablation in it already" in capsys.readouterr().err
    assert main(["ablate", str(rows), *services, "--run", str(broken), "--resume"]) == 0
    assert result_of(broken) == result_of(straight)
    for run in ("plain/seed-3", "plain/seed-4", "last/seed-4"):
        ours, theirs = (root / "runs" / run for root in (broken, straight))
        assert records(ours, "revisions", REVISIONS) == records(theirs, "revisions", REVISIONS)
    # nothing is left to be made: no service is asked, and the figures stand
    nobody = [f"services.{role}.address=127.0.0.1:1" for role in ("policy", "critic", "judge")]
    assert main(["ablate", str(rows), *nobody, "--run", str(broken), "--resume"]) == 0
    shared = RunState(RunDirectory(str(straight / "runs/last/seed-3"))).origin("revisions")
    assert shared is not None
    assert shared.run == str(straight / "runs/plain/seed-3")


def test_a_variant_that_fails_is_shown_and_the_others_go_on(
    rows: Path, services: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head, mark, tail = ROWS.partition("  last:\n")
    rows.write_text(head + BROKEN + mark + tail)
    root = tmp_path / "ablation"
    command = ["ablate", str(rows), *services, "--seeds", "5", "--run", str(root)]
    assert main(command) == 1
    said = capsys.readouterr()
    assert "broken, seed 5 failed: StageFailed: revisions: prompts without a usable" in said.out
    found = result_of(root)
    assert found["rows"]["broken"]["failures"]["5"]["kind"] == "StageFailed"
    assert found["rows"]["last"]["measures"]["final.garbled"]["cases"] > 0
    assert "0 of 1; seed 5: StageFailed" in (root / "ablation.md").read_text()
    # what was done is in the table whatever is asked for now; but not if it was another variant
    assert main([*command, "--only", "last", "--resume"]) == 0
    assert list(result_of(root)["rows"]) == ["plain", "last"]
    rows.write_text(rows.read_text().replace("train_on: last", "train_on: all"))
    assert main([*command, "--only", "last", "--resume"]) == 1
    assert "revisions.train_on: 'last' -> 'all'" in capsys.readouterr().out


def test_ctrl_c_says_how_to_go_on(rows: Path, services: list[str], tmp_path: Path) -> None:
    root = tmp_path / "ablation"
    process = start(
        "ablate",
        rows,
        *services,
        "services.in_flight=1",
        "--seeds",
        "3",
        "--run",
        root,
        before="import signal; signal.signal(signal.SIGINT, signal.default_int_handler);",
    )
    while not (root / "runs/plain/seed-3/revisions").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130, said
    assert f"--run {root} --seeds 3 --resume" in said
    assert "Traceback" not in said


def test_what_rows_share_is_counted_once(tmp_path: Path) -> None:
    ablation = load_ablation("sandbox")
    names = ["base", "hard-labels", "one-order", "rounds-1", "no-critique"]
    variants = make_variants(ablation, tmp_path, seeds=(0,))
    plan = Plan([one for one in variants if one.row in names])
    assert dict(plan.left()) == {
        "revisions": 2,
        "sft": 2,
        "preferences": 2,
        "reward": 3,
        "rl": 3,
        "evaluate": 6,  # base, two sl, three rl
    }
    # what the base run has is done for all others
    assert dict(plan.left(["base, seed 0"])) == {
        "revisions": 1,
        "sft": 1,
        "preferences": 1,
        "reward": 2,
        "rl": 2,
        "evaluate": 3,
    }
    assert Pace({"rl": 10.0, "reward": 1.0}).seconds({"rl": 2, "reward": 3}) == 23.0
    assert Pace({"rl": 10.0}).seconds({"rl": 2, "reward": 3}) is None


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_ablation_can_be_run_as_it_is(name: str, tmp_path: Path) -> None:
    ablation = load_ablation(name)
    variants = make_variants(ablation, tmp_path, seeds=(0,))
    left = Plan(variants).left()
    pace = Pace(ablation.config.stage_seconds)
    seconds = pace.seconds(left)
    assert seconds is not None
    assert seconds * len(ablation.config.seeds) < 100 * 60


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("seeds: [3, 4]", "seeds: [3, 3]", "seeds: expected each once, got [3, 3]"),
        ("final.garbled, ", "final.garbld, ", "rows.yaml:10: measures.0: expected MODEL.RATE"),
        (
            "until: revisions\n    findings",
            "until: rlhf\n    findings",
            "rows.plain.until: expected",
        ),
        ("title: As it is", "titel: As it is", "rows.yaml:14: rows.plain.titel: unknown key"),
        ("{revisions.train_on: last}", "{seed: 1}", "rows.last.set: seed is the ablation's own"),
        ("is: lower", "is: same", "is: 'same' needs a limit"),
        ("is: lower", "is: lower\n            limit: 1", "is: 'lower' has no use for a limit"),
        (
            "is: lower",
            "is: lower\n            than: lst",
            "rows.plain: is held against 'lst', which is no row",
        ),
        ("  last:\n", "  Last Row:\n", "Last Row: String should match pattern"),
        ("train_on: last", "train_on: lst", "rows.last.set: revisions.train_on: expected 'all'"),
        ("base: sandbox-tiny", "base: sandbx", "Did you mean 'sandbox'?"),
    ],
)
def test_a_broken_file_is_refused_with_place_key_value_and_fix(
    rows: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, expected: str
) -> None:
    assert old in ROWS
    rows.write_text(ROWS.replace(old, new, 1))
    assert main(["ablate", str(rows), "--run", str(rows.parent / "no")]) == 2
    assert expected in capsys.readouterr().err
    assert not (rows.parent / "no").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--seeds", "0,x"], "--seeds: expected 1 to 10 different whole numbers"),
        (["--seeds", "0,0"], "got '0,0'"),
        (
            ["--only", "lst"],
            "--only: expected rows of plain, last; got 'lst'. Did you mean 'last'?",
        ),
        (
            ["revisions.rouds=1"],
            "command line: revisions.rouds: unknown key; did you mean 'rounds'",
        ),
    ],
)
def test_a_wrong_option_is_refused(
    rows: Path, capsys: pytest.CaptureFixture[str], options: list[str], expected: str
) -> None:
    assert main(["ablate", str(rows), *options]) == 2
    assert expected in capsys.readouterr().err


def test_a_directory_of_other_files_is_not_touched(
    rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ablate", str(rows), "--run", str(rows.parent)]) == 2
    assert "holds files that are not an ablation's" in capsys.readouterr().err


def cases(*values: float) -> dict[str, float]:
    return {str(number): value for number, value in enumerate(values)}


def test_an_interval_is_the_largest_of_what_seeds_and_cases_show() -> None:
    found = estimate({0: cases(*[0.0] * 50, *[1.0] * 50), 1: cases(*[0.0] * 40, *[1.0] * 60)})
    assert found is not None
    assert found.mean == pytest.approx(0.55)
    assert found.cases == 200
    # t(1) = 12.7 times 0.0707 / sqrt(2)
    assert found.half == pytest.approx(0.635, abs=1e-3)
    one = estimate({0: cases(*[0.0] * 50, *[1.0] * 50)})
    # 1.96 sqrt(0.25 / 99)
    assert one is not None
    assert one.half == pytest.approx(0.0985, abs=1e-3)
    never = estimate({0: cases(*[0.0] * 300)})
    assert never is not None
    assert never.half == pytest.approx(0.01)
    whole = estimate({0: {"": 0.5}})
    assert whole is not None
    assert whole.half is None
    assert estimate({0: {}}) is None


def test_a_difference_is_taken_case_by_case_within_a_seed() -> None:
    ours = {seed: cases(*[1.0] * 30, *[0.0] * 70) for seed in (0, 1)}
    theirs = {seed: cases(*[1.0] * 20, *[0.0] * 80) for seed in (0, 1, 2)}
    paired = effect(ours, theirs)
    assert paired is not None
    assert paired.mean == pytest.approx(0.1)
    others = {seed: {f"x{name}": v for name, v in found.items()} for seed, found in theirs.items()}
    unpaired = effect(ours, others)
    assert unpaired is not None
    assert unpaired.mean == pytest.approx(0.1)
    assert unpaired.half is not None
    assert paired.half is not None
    assert unpaired.half > paired.half
    assert effect(ours, {7: cases(1.0)}) is None


def found(mean: float, half: float | None) -> Estimate:
    return Estimate(mean=mean, half=half, seeds={}, cases=1)


@pytest.mark.parametrize(
    ("relation", "mean", "half", "limit", "expected"),
    [
        ("lower", -0.2, 0.1, None, "reproduced"),
        ("lower", -0.2, 0.3, None, "within noise"),
        ("lower", 0.2, 0.1, None, "not reproduced"),
        ("lower", 0.0, 0.0, None, "within noise"),
        ("higher", 0.2, 0.1, None, "reproduced"),
        ("higher", -0.2, 0.1, None, "not reproduced"),
        ("same", 0.01, 0.02, 0.05, "reproduced"),
        ("same", 0.04, 0.02, 0.05, "within noise"),
        ("same", -0.1, 0.02, 0.05, "not reproduced"),
        ("at_most", 0.02, 0.01, 0.05, "reproduced"),
        ("at_most", 0.08, 0.01, 0.05, "not reproduced"),
        ("at_least", 0.96, 0.02, 0.95, "within noise"),
        ("higher", 0.2, None, None, "within noise"),
    ],
)
def test_the_verdict_follows_from_where_the_whole_interval_lies(
    relation: Any, mean: float, half: float | None, limit: float | None, expected: str
) -> None:
    assert verdict(relation, found(mean, half), limit) == expected


def test_a_finding_is_reproduced_if_all_that_it_says_is() -> None:
    assert verdict("lower", None) == "not measured"
    assert together(["reproduced", "reproduced"]) == "reproduced"
    assert together(["reproduced", "within noise"]) == "within noise"
    assert together(["not measured", "within noise"]) == "not measured"
    assert together(["reproduced", "not reproduced", "not measured"]) == "not reproduced"


def test_the_table_has_what_others_found_beside_what_was_measured() -> None:
    figure = {"mean": 0.125, "half": 0.01, "seeds": {0: 0.125}, "cases": 100}
    row: dict[str, Any] = {
        "title": "As | it is",
        "against": None,
        "runs": {0: {}},
        "failures": {},
        "measures": {"final.evasion": figure},
        "effects": {},
        "findings": [],
    }
    finding = {
        "says": "It falls",
        "source": "Somebody 2022, fig. 1",
        "verdict": "not reproduced",
        "reason": "It could not.",
        "expected": [
            {
                "measure": "final.evasion",
                "is": "lower",
                "than": {"row": "plain", "measure": "final.evasion"},
                "limit": None,
                "found": {**figure, "mean": 0.02},
            }
        ],
    }
    other = {**row, "against": "plain", "effects": {"final.evasion": figure}, "findings": [finding]}
    result: dict[str, Any] = {
        "ablation": "mine",
        "base": "sandbox",
        "seeds": [0],
        "first": "plain",
        "measures": ["final.evasion"],
        "picture": {"x": "final.evasion", "y": "final.evasion"},
        "rows": {"plain": row, "other": other},
    }
    page = markdown(result)
    assert "| plain | As \\| it is | 12.5 ± 1.0 % | 1 of 1 |" in page
    assert "| other | plain | +12.5 ± 1.0* |" in page
    assert (
        "final evasion lower than in plain: +2.0 ± 1.0*. It could not. | not reproduced |" in page
    )
    drawn = ElementTree.fromstring(svg(result))
    points = [node for node in drawn.iter() if node.tag.endswith("circle")]
    assert len(points) == 2
    assert any("As | it is" in (node.text or "") for node in drawn.iter())
    empty = ElementTree.fromstring(svg({**result, "rows": {}}))
    assert empty.tag.endswith("svg")
