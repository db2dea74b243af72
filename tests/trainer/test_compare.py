"""Two runs side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from solon.constitution import resolve
from solon.trainer.cli import main
from solon.trainer.compare import compare
from solon.trainer.config import SAVED_NAME, load_config, to_yaml
from solon.trainer.session import CONSTITUTION_NAME
from solon.trainer.state import RunState
from solon.trainer.store import RunDirectory

Make = Callable[..., RunDirectory]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes a run that is done."""

    def made(
        name: str, *overrides: str, constitution: str = "", rate: float = 0.5, **summary: Any
    ) -> RunDirectory:
        run = RunDirectory(str(tmp_path / name))
        run.storage.write(SAVED_NAME, to_yaml(load_config("sandbox-tiny", overrides)).encode())
        text = constitution or Path(resolve("core")).read_text("utf-8")
        run.storage.write(CONSTITUTION_NAME, text.encode())
        RunState(run).finish("preferences", 10.0, {"pairs": 100} | summary)
        models = {"rl": {"harmful_compliance": {"rate": rate, "n": 400}}}
        judge = {"accuracy": 0.9, "position_bias": 0.1, "n": 300}
        run.write_json("evaluation.json", {"models": models, "judge": judge})
        return run

    return made


def test_two_equal_runs_were_asked_for_the_same(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = make("first"), make("second")
    found = compare(first.url, second.url)
    assert (found["config"], found["stages"]) == ([], {})
    assert found["constitution"] == {"added": [], "removed": [], "changed": {}}
    assert found["models"]["rl"]["harmful_compliance"]["difference"] == 0
    assert main(["diff", first.url, second.url]) == 0
    assert "They were asked for the same." in capsys.readouterr().out


def test_what_was_asked_and_what_came_of_it_is_shown(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    core = Path(resolve("core")).read_text("utf-8")
    renamed = core.replace("id: private", "id: discreet").replace("e: private", "e: discreet")
    other = renamed.replace("more truthful", "more honest")
    first = make("first", rate=0.5, exported={"train": 90, "test": 10})
    second = make("second", "revisions.rounds=3", constitution=other, rate=0.25, pairs=80)
    found = compare(first.url, second.url)
    assert [line.split(":")[0] for line in found["config"]] == ["revisions.rounds"]
    assert found["constitution"]["added"] == ["discreet"]
    assert found["constitution"]["removed"] == ["private"]
    assert found["constitution"]["changed"] == {"honest": ["comparison_instruction"]}
    assert found["stages"]["preferences"] == {
        "pairs": [100, 80],
        "exported.train": [90, None],
        "exported.test": [10, None],
    }
    change = found["models"]["rl"]["harmful_compliance"]
    assert change["difference"] == -0.25
    # sqrt(0.25 / 400 + 0.1875 / 400) = 0.0331
    assert change["interval"] == pytest.approx(0.0648, abs=1e-3)
    assert main(["diff", first.url, second.url]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "constitution: changed honest: comparison_instruction" in shown
    assert "-25.0 ± 6.5*" in shown
    assert main(["diff", first.url, second.url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["judge"]["accuracy"] == [0.9, 0.9]


def test_a_difference_within_chance_is_not_marked(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = make("first", rate=0.5), make("second", rate=0.52)
    assert main(["diff", first.url, second.url]) == 0
    shown = capsys.readouterr().out
    assert "+2.0 ± 6.9" in shown
    assert "6.9*" not in shown


def test_a_run_that_has_not_been_evaluated_has_no_figures_yet(make: Make, tmp_path: Path) -> None:
    first, second = make("first"), make("second")
    second.storage.remove("evaluation.json")
    change = compare(first.url, second.url)["models"]["rl"]["harmful_compliance"]
    assert (change["a"], change["b"], change["difference"]) == (0.5, None, None)


def test_a_directory_that_is_no_run_is_named(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diff", make("first").url, str(tmp_path / "none")]) == 2
    assert f"{tmp_path / 'none'}: expected the directory of a run" in capsys.readouterr().err
