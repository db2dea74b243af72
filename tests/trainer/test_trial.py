"""A constitution checked, and tried on pairs whose better response is known."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from solon.constitution import load, resolve
from solon.trainer.cli import main
from solon.trainer.errors import PromptError
from solon.trainer.trial import Opinion, Tried, load_pairs, measures
from tests.trainer.runs import served

TRIED = """
name: tried
version: "1"
principles:
  - {id: knows, comparison_instruction: "Which response is GOOD?"}
  - {id: first, comparison_instruction: "Which response is FIRST and helpful?", weight: 0.5}
  - {id: contrary, comparison_instruction: "Which response is WORSE and explains?", weight: 0.25}
  - {id: careful, critique_request: 'What is wrong?', revision_request: Mend it.}
"""
# the chosen responses say "right": a judge that knows them, one that looks at the position only,
# and one that prefers the others
SCRIPT = """
- {match: '(?s)\\(A\\)[^\\n]*right.*GOOD', logprobs: {(A): -0.1, (B): -2.5}}
- {match: GOOD, logprobs: {(A): -2.5, (B): -0.1}}
- {match: FIRST, logprobs: {(A): -0.01, (B): -5.0}}
- {match: '(?s)\\(A\\)[^\\n]*right.*WORSE', logprobs: {(A): -2.5, (B): -0.1}}
- {match: WORSE, logprobs: {(A): -0.1, (B): -2.5}}
"""


@pytest.fixture
def constitution(tmp_path: Path) -> Path:
    path = tmp_path / "tried.yaml"
    path.write_text(TRIED, "utf-8")
    return path


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": f"Question {n}?", "chosen": f"The right answer {n}.", "rejected": f"No {n}."}
        for n in range(8)
    ]
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return path


@pytest.fixture
def judge(tmp_path: Path) -> Iterator[str]:
    """Where a judge that follows ``SCRIPT`` is."""
    script = tmp_path / "script.yaml"
    script.write_text(SCRIPT, "utf-8")
    with served("judge", tmp_path, f"--engine-option=script={script}") as address:
        yield address


def test_each_principle_is_measured_and_what_the_whole_would_be_without_it(
    constitution: Path, labelled: Path, judge: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["constitution", "test", str(constitution), judge, "--labelled", str(labelled)]
    assert main([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    knows, first, contrary = (found["principles"][k] for k in ("knows", "first", "contrary"))
    assert found["pairs"] == 8
    assert "careful" not in found["principles"]
    assert (knows["accuracy"], knows["position_bias"]) == (1.0, 0.0)
    assert (first["accuracy"], first["position_bias"]) == (0.0, 1.0)
    assert (contrary["accuracy"], contrary["position_bias"]) == (0.0, 0.0)
    assert knows["log_loss"] == pytest.approx(0.0869, abs=1e-3)
    assert knows["calibration_error"] == pytest.approx(1 - 0.9168, abs=1e-3)
    assert found["overall"]["accuracy"] == 1.0
    assert knows["without"] == 0.0
    assert contrary["without"] == 1.0
    assert found["agreement"]["knows"] == {"knows": 1.0, "first": 0.0, "contrary": 0.0}
    assert main(asked) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "tried" in shown
    assert "0.0% │ +100.0" in shown


def opinion(probability: float | None, follows: bool | None = False) -> Opinion:
    return Opinion(probability=probability, follows_position=follows)


def alone(*probabilities: float | None) -> list[Tried]:
    return [Tried(overall=opinion(p), by_principle={"it": opinion(p)}) for p in probabilities]


def test_no_verdict_is_counted_apart_and_undecided_is_not_right() -> None:
    figures = measures(alone(0.9, 0.5, None, None))["overall"]
    assert figures["accuracy"] == 0.5
    assert figures["no_verdict"] == 0.5


def test_a_judge_without_a_single_verdict_has_no_accuracy() -> None:
    figures = measures(alone(None, None))
    assert figures["overall"]["accuracy"] is None
    assert figures["overall"]["log_loss"] is None
    assert figures["overall"]["calibration_error"] is None
    assert figures["principles"]["it"]["without"] is None
    assert figures["agreement"] == {"it": {"it": None}}


def test_confidence_that_is_right_as_often_as_it_says_is_calibrated() -> None:
    assert measures(alone(*[0.75] * 3, 0.25))["overall"]["calibration_error"] == pytest.approx(0)
    assert measures(alone(*[0.25] * 4))["overall"]["calibration_error"] == pytest.approx(0.75)


def test_pairs_are_read_as_trl_writes_them(tmp_path: Path) -> None:
    said = [{"role": "assistant", "content": "Yes."}]
    row = {
        "prompt": [{"role": "user", "content": "Well?"}],
        "chosen": said,
        "rejected": [{"role": "assistant", "content": "No."}],
    }
    path = tmp_path / "pairs.parquet"
    pq.write_table(pa.Table.from_pylist([row]), path)
    [pair] = load_pairs(str(path))
    assert (pair.chosen, pair.rejected) == ("Yes.", "No.")
    assert pair.conversation.messages[-1].content == "Well?"


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "Hi", "chosen": "a"}, "the format prompts has no pairs"),
        ("text", "the format lines has no pairs"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "prompt: expected a text"),
        ({"prompt": "Hi", "chosen": " ", "rejected": "b"}, "chosen: expected a text"),
        ({"prompt": "Hi", "chosen": "a", "rejected": []}, "rejected: expected messages"),
        ({"prompt": "Hi", "chosen": "a", "rejected": "a"}, "the same text"),
    ],
)
def test_a_row_that_is_no_labelled_pair_is_named(tmp_path: Path, row: Any, problem: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(row), "utf-8")
    with pytest.raises(PromptError, match=problem) as caught:
        load_pairs(str(path))
    assert "pairs.jsonl:1" in str(caught.value)


def test_a_file_without_pairs_is_refused_before_the_judge_is_asked(
    constitution: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n", "utf-8")
    for name, problem in ((empty, "at least one pair"), (tmp_path / "none.jsonl", "no such file")):
        asked = ["constitution", "test", str(constitution), "nowhere:1", f"--labelled={name}"]
        assert main(asked) == 2
        assert problem in capsys.readouterr().err


def test_a_constitution_is_described_and_its_doubts_are_named(
    constitution: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["constitution", "check", "core", "--strict"]) == 0
    assert "All is well." in capsys.readouterr().out
    twins = constitution.read_text("utf-8").replace("FIRST and helpful", "GOOD")
    constitution.write_text(twins, "utf-8")
    assert main(["constitution", "check", str(constitution)]) == 0
    said = capsys.readouterr().out
    assert "says nearly the same as knows" in said
    assert "careful: has no comparison_instruction: no judge uses it" in " ".join(said.split())
    assert main(["constitution", "check", str(constitution), "--strict", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["digest"] == load(resolve(constitution)).digest
    assert [p["compares"] for p in found["principles"]] == [True, True, True, False]
    assert "near-duplicate" in {finding["rule"] for finding in found["findings"]}


def test_a_constitution_with_a_mistake_is_refused_with_its_line(
    constitution: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    constitution.write_text(TRIED.replace("weight: 0.5", "weight: heavy"), "utf-8")
    assert main(["constitution", "check", str(constitution)]) == 2
    assert "tried.yaml" in capsys.readouterr().err


def test_an_imported_constitution_is_written_and_its_doubts_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, mine = tmp_path / "theirs.json", tmp_path / "mine.yaml"
    theirs.write_text(json.dumps(["\nChoose the response that harms less. Options:"]), "utf-8")
    asked = ["constitution", "import", str(theirs), "--to", str(mine)]
    assert main(asked) == 0
    assert "no comparison instruction asks for helpfulness" in capsys.readouterr().out
    made = load(mine)
    assert made.name == "mine"
    assert made.principles[0].comparison_instruction == "Choose the response that harms less."
    assert main(asked) == 2
    assert "mine.yaml: cannot be written: File exists" in capsys.readouterr().err
