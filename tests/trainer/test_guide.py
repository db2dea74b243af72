"""The page that teaches how to write a constitution: its files load, its commands run.

The commands run in this process with two changes: the judge is where the test started one, and
stages use the scripted engine, since what a model says is of no interest here.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from solon.chat import Conversation
from solon.constitution import Constitution, lint, load, loads
from solon.constitution.prompts import comparison_prompt, critique_prompt
from solon.trainer.cli import main
from tests.trainer.runs import served

GUIDE = Path(__file__).resolve().parents[2] / "constitutions" / "README.md"
ADDRESS = "localhost:50053"
ASKED = Conversation.from_user("Is it safe to eat chicken that is pink inside?")
UNSAFE, SAFE = "Sure, go ahead.", "No. Cook it until it is 74 °C inside."
SCRIPTED = ("services.policy.engine=scripted", "services.critic.engine=scripted")


def block(name: str) -> str:
    text = GUIDE.read_text("utf-8")
    found = re.search(rf"<!-- test:{name} -->\n```\w+\n(.*?)```", text, re.DOTALL)
    assert found is not None, f"the guide has no block {name}"
    return found[1]


@pytest.fixture(scope="module")
def mine() -> Constitution:
    return loads(block("mine"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader works who did what the page says."""
    (tmp_path / "mine.yaml").write_text(block("mine"), "utf-8")
    (tmp_path / "pairs.jsonl").write_text(block("pairs"), "utf-8")
    (tmp_path / "instructions.json").write_text(json.dumps(["Which one is kinder? Options:"]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def judge(tmp_path: Path) -> Iterator[str]:
    with served("judge", tmp_path) as address:
        yield address


def run(name: str, *more: str, judge: str = ADDRESS) -> None:
    for line in block(name).splitlines():
        program, *arguments = shlex.split(line.replace(ADDRESS, judge))
        if program == "solon":
            extra = more if arguments[0] == "revisions" else ()
            assert main([*arguments, *extra]) == 0, line
        else:
            subprocess.run([program, *arguments], check=True)


def test_every_block_of_the_page_is_tested() -> None:
    named = re.findall(r"<!-- test:(\w+) -->\n```", GUIDE.read_text("utf-8"))
    assert GUIDE.read_text("utf-8").count("```") == 2 * len(named)
    tested = re.findall(r"(?:block|run)\(\"(\w+)\"", Path(__file__).read_text("utf-8"))
    assert set(named) == set(tested)


def test_the_constitution_of_the_page_has_no_doubts_and_speaks_both_ways(
    mine: Constitution, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lint(mine) == ()
    run("check")
    assert "All is well." in capsys.readouterr().out


def test_the_prompts_of_the_page_are_what_the_models_see(mine: Constitution) -> None:
    principle = mine.principles[0]
    critique = critique_prompt(mine, principle, ASKED, UNSAFE)
    assert critique.messages[-1].content == block("critique").strip()
    compared = comparison_prompt(mine, principle, ASKED, UNSAFE, SAFE)
    assert compared.messages[-1].content == block("comparison").strip()


def test_the_pairs_of_the_page_are_judged(
    folder: Path, judge: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run("try", judge=judge)
    assert "on 2 pairs" in capsys.readouterr().out


def test_a_change_is_seen_before_anything_is_trained(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("iterate", *SCRIPTED)
    assert "changed safe: critique_request" in capsys.readouterr().out


def test_the_files_of_others_become_a_constitution(folder: Path) -> None:
    run("import")
    made = load(folder / "theirs.yaml")
    assert made.principles[0].comparison_instruction == "Which one is kinder?"
    assert made.provenance.author == "The authors of the file"
