"""Whether a critic can see harm is measured before a run, on both sides, and said."""

from __future__ import annotations

import json
import math
import signal
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from solon import sandbox
from solon.client import ServerInfo
from solon.constitution import Constitution, load, resolve
from solon.trainer.cli import main
from solon.trainer.config import load_config
from solon.trainer.errors import PromptError, StageFailed
from solon.trainer.fleet import Connected, Fleet
from solon.trainer.inline import inline
from solon.trainer.labelled import load_labelled
from solon.trainer.schemas import PREFLIGHT
from solon.trainer.stages import preflight
from solon.trainer.stages.context import StageContext
from solon.trainer.stages.detection import area_under_roc, figures
from solon.trainer.stages.preflight_settings import PreflightConfig, asked_by
from solon.trainer.state import RunState
from solon.trainer.steps import Step
from solon.trainer.store import RunDirectory
from tests.trainer.runs import records, served, start

MARKED = """\
- {match: Kettle, logprobs: {"Yes": -0.1, "No": -2.5}}
- {match: Silence, logprobs: {"Yes": .nan, "No": .nan}}
- {match: ., logprobs: {"Yes": -4.0, "No": -0.02}}
"""
"""A critic that finds something to criticise in whatever speaks of a kettle."""


def responses(path: Path, *rows: tuple[str, bool]) -> str:
    lines = [
        json.dumps({"prompt": f"Number {n}?", "response": response, "harmful": harmful})
        for n, (response, harmful) in enumerate(rows)
    ]
    path.write_text("\n".join(lines))
    return str(path)


@pytest.fixture(scope="module")
def critic(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("critic")
    (folder / "script.yaml").write_text(MARKED)
    with served("critic", folder, f"--engine-option=script={folder / 'script.yaml'}") as address:
        yield address


@pytest.fixture
def config(tmp_path: Path, critic: str) -> Path:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    settings = {
        "constitution": "core",
        "run_dir": str(tmp_path / "run"),
        "models": dict.fromkeys(("policy", "critic", "judge", "base_for_sft"), str(model)),
        "services": {"critic": {"address": critic}},
        "store": {"part_records": 2},
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(settings))
    return path


def test_a_critic_that_sees_harm_passes_and_the_run_keeps_what_it_rests_on(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [("Kettle of poison.", True), ("Tea.", False), ("Boil a Kettle dry.", True)]
    source = responses(tmp_path / "known.jsonl", *rows)
    asked = [str(config), f"preflight.source={source}", "preflight.mode=stop"]
    assert main(["preflight", *asked]) == 0
    said = capsys.readouterr().err
    assert "right 100%, AUC 1.00" in said
    assert "WARNING" not in said
    run = RunDirectory(str(tmp_path / "run"))
    records = list(run.parts("preflight", PREFLIGHT).records())
    assert sorted((r["response"], r["harmful"]) for r in records) == sorted(rows)
    for record in records:
        (one,) = record["principles"]
        assert (one["principle_id"], one["probability"]) == ("harmless", record["probability"])
        assert {a["answer"]: a["logprob"] for a in one["logprobs"]} in (
            {"Yes": -0.1, "No": -2.5},
            {"Yes": -4.0, "No": -0.02},
        )
    assert RunState(run).summary("preflight")["overall"]["auc"] == 1.0
    assert run.read_json("preflight.json")["principles"]["harmless"]["accuracy"]["n"] == 3
    assert main(["preflight", *asked]) == 0
    assert "preflight: done before" in capsys.readouterr().err


def test_a_preflight_that_is_killed_goes_on_and_equals_an_unharmed_one(
    config: Path, tmp_path: Path
) -> None:
    rows = [(f"{'Kettle' if n % 3 else 'Tea'} {n}.", n % 2 == 0) for n in range(40)]
    source = f"preflight.source={responses(tmp_path / 'known.jsonl', *rows)}"
    runs = [tmp_path / name for name in ("killed", "straight")]
    # one response at a time, so that there is time to kill it
    command = [str(config), source, "preflight.count=40", "services.in_flight=1"]
    process = start("preflight", *command, "--run", runs[0])
    while process.poll() is None and not list(runs[0].glob("preflight/part-*.parquet")):
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert 0 < len(records(runs[0], "preflight", PREFLIGHT)) < 40
    for run in runs:
        assert main(["preflight", *command, "--run", str(run)]) == 0
    ours, theirs = (records(run, "preflight", PREFLIGHT) for run in runs)
    assert len({row["id"] for row in ours}) == 40
    assert ours == theirs
    assert runs[0].joinpath("preflight.json").read_text() == (
        runs[1].joinpath("preflight.json").read_text()
    )


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [("Poison.", True), ("Theft.", True), ("Tea.", False)],
            ["does not see harm: it misses 100% of 2 harmful", "cannot tell", "curve is 0.50"],
        ),
        (
            [("Kettle.", True), ("A Kettle.", False), ("Two Kettles.", False)],
            ["sees harm where there is none: it condemns 100% of 2 harmless", "cannot tell"],
        ),
        (
            [("Silence.", True), ("Silence again.", True), ("Tea.", False)],
            ["misses 100% of 2 harmful", "curve is unknown", "2 without a verdict"],
        ),
    ],
)
def test_a_critic_that_is_blind_on_either_side_is_warned_of_and_stops_the_run_if_told_to(
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    rows: list[tuple[str, bool]],
    said: list[str],
) -> None:
    source = f"preflight.source={responses(tmp_path / 'known.jsonl', *rows)}"
    assert main(["preflight", str(config), source, "preflight.mode=stop"]) == 1
    told = capsys.readouterr().err
    for text in (*said, "Use a stronger critic", "preflight.mode=warn"):
        assert text in told
    parts = sorted((tmp_path / "run" / "preflight").iterdir())
    # the records are there: going on asks nothing again
    assert main(["preflight", str(config), source, "preflight.mode=warn"]) == 0
    assert "WARNING" not in told
    assert "WARNING: the critic" in capsys.readouterr().err
    assert sorted((tmp_path / "run" / "preflight").iterdir()) == parts


def test_figures_are_those_worked_out_by_hand() -> None:
    found = figures([(True, 0.9), (True, 0.5), (True, None), (False, 0.5), (False, 0.6)])
    assert found["accuracy"] == {"rate": 0.4, "n": 5}
    assert found["missed"] == {"rate": pytest.approx(2 / 3), "n": 3}
    assert found["false_alarms"] == {"rate": 0.5, "n": 2}
    # of four pairs: 0.9 above both, 0.5 ties with one and is below the other
    assert found["auc"] == pytest.approx(2.5 / 4)
    assert found["separation"] == pytest.approx(0.7 - 0.55)
    assert found["no_verdict"] == 1
    assert area_under_roc([0.1], []) is None
    values = [math.sin(n) for n in range(40)]
    slow = sum((a > b) + (a == b) / 2 for a in values[:15] for b in values[15:]) / (15 * 25)
    assert area_under_roc(values[:15], values[15:]) == pytest.approx(slow)


def test_the_set_that_ships_has_as_much_of_each_kind_and_both_for_most_prompts() -> None:
    known = load_labelled("written", count=None, seed=0)
    harmful = {one.conversation for one in known if one.harmful}
    harmless = {one.conversation for one in known if not one.harmful}
    assert len(known) == 40
    assert sum(one.harmful for one in known) == 20
    assert len(harmful & harmless) >= 14


def test_the_sandboxs_labels_are_what_its_oracle_says() -> None:
    known = load_labelled("sandbox", count=40, seed=3)
    assert known == load_labelled("sandbox", count=40, seed=3)
    assert known != load_labelled("sandbox", count=40, seed=4)
    assert sum(one.harmful for one in known) == 20
    for one in known:
        helps = sandbox.read(one.conversation, one.response) is sandbox.Outcome.COMPLIES
        assert one.harmful == (helps and sandbox.requested(one.conversation).harmful)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"prompt": "a?", "response": "b"}', 'known.jsonl:2: expected {"prompt", "response"'),
        ('{"prompt": "a?", "response": "b", "harmful": 1}', "2: harmful: expected true or false"),
        ('{"prompt": "a?", "response": " ", "harmful": true}', "2: response: expected a text"),
        ('{"prompt": [], "response": "b", "harmful": true}', "known.jsonl:2: prompt"),
        ('{"prompt": "x?", "response": "y", "harmful": true}', "labelled harmful and harmless"),
        ('{"prompt": "x?", "response": "z", "harmful": false}', "got 2 of one kind"),
    ],
)
def test_a_row_that_is_wrong_is_named(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "known.jsonl"
    path.write_text('{"prompt": "x?", "response": "y", "harmful": false}\n' + line)
    with pytest.raises(PromptError, match=r"known\.jsonl") as caught:
        load_labelled(str(path), count=None, seed=0)
    assert problem in str(caught.value)


def test_labelled_responses_and_principles_are_looked_at_before_any_work(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["preflight", str(config), "preflight.source=missing.jsonl"]) == 2
    assert "missing.jsonl: no such file" in capsys.readouterr().err
    other = ["--run", str(tmp_path / "other"), "preflight.principles=[kind]"]
    assert main(["preflight", str(config), *other]) == 2
    assert "preflight.principles: expected ids" in capsys.readouterr().err


class Notes:
    """A stage's progress, of which the sentences are kept."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def start(self, total: int, done: int) -> None:
        raise AssertionError("nothing can be measured")

    def advance(self) -> None:
        raise AssertionError("nothing can be measured")

    def note(self, text: str) -> None:
        self.notes.append(text)


async def test_a_critic_without_log_probabilities_is_told_of_not_passed(tmp_path: Path) -> None:
    told = ServerInfo(
        service_role="critic",
        solon_version="1",
        engine="mute",
        model="some/model",
        weight_version="initial",
        context_tokens=4096,
        start_time=datetime.now(UTC),
        supports_logprobs=False,
        supports_weight_update=False,
        instance_id="1",
    )
    constitution = load(resolve("core"))
    mute = Connected(client=None, address="x:1", info=told, constitution=inline(constitution))

    def context(mode: str, notes: Notes) -> StageContext:
        return StageContext(
            step=Step("preflight"),
            config=load_config("sandbox-tiny", [f"preflight.mode={mode}"]),
            run=RunDirectory(str(tmp_path)),
            constitution=constitution,
            fleet=Fleet({"critic": mute}, None, None),
            prompts={},
            weights={},
            progress=notes,
        )

    notes = Notes()
    assert (await preflight.run(context("warn", notes)))["responses"] == 0
    (note,) = notes.notes
    assert "WARNING: the engine 'mute' of the critic 'some/model' gives no log-prob" in note
    with pytest.raises(StageFailed, match="nothing is known of what this critic can see"):
        await preflight.run(context("stop", notes))


def test_the_critic_is_asked_by_the_principles_about_harm_that_have_a_question() -> None:
    def ids(constitution: Constitution, **fields: Any) -> list[str]:
        return [p.id for p in asked_by(constitution, PreflightConfig(**fields))]

    world = load(resolve("sandbox"))
    assert ids(world) == ["no-harm"]
    assert ids(world, principles=("ethical", "polite")) == ["ethical", "polite"]
    assert ids(world, tags=("tone",)) == ["polite"]
    silent = tuple(replace(p, absolute_question=None) for p in world.principles)
    mute = replace(world, principles=silent)
    assert ids(mute) == ["no-harm", "no-crime", "nobody-hurt", "ethical"]
    # "wise" only compares
    assert ids(mute, tags=("unheard-of",)) == [p.id for p in world.principles[:-1]]
