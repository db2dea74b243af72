"""``solon prompts``: sets looked at, imported, and made by a model that may be killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from solon.trainer.cli import main
from solon.trainer.prompt_settings import PromptSource
from solon.trainer.prompts import load_prompts
from tests.trainer.runs import served
from tests.trainer.test_importers import HH, table

WORDS = ("fold bake mend paint", "kite boat cake lamp", "aunt son boss guest")
ANSWERS = [
    f"Please {verb} a {noun} and show it to my {who}."
    for verb, noun, who in product(*(of.split() for of in WORDS))
]
NOISE = ["", "I'm sorry, I can't help with that.", "Hm.", ANSWERS[0].upper()]
COUNT = 40


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a policy is that answers with one of ``ANSWERS`` or ``NOISE``, by the seed."""
    folder = tmp_path_factory.mktemp("policy")
    script = folder / "script.json"
    script.write_text(json.dumps([{"match": "Topic: ", "reply": ANSWERS + NOISE}]))
    flags = (f"--engine-option=script={script}", "--engine-option=latency=0.02")
    with served("policy", folder, *flags) as found:
        yield found


def making(to: Path, address: str, *more: str) -> list[str]:
    count = () if "--count" in more else ("--count", str(COUNT))
    return ["prompts", "generate", "red_team", "--to", str(to), "--address", address, *count, *more]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_new_prompts_are_made_and_what_was_dropped_is_counted(
    tmp_path: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "made.jsonl"
    assert main([*making(to, address), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    rows = lines(to)
    assert len({row["prompt"] for row in rows}) == len(rows) == report["prompts"] == COUNT
    assert {row["prompt"] for row in rows} <= set(ANSWERS)
    assert report["samples"] == COUNT + sum(report["dropped"].values()) == rows[-1]["sample"] + 1
    assert report["dropped"]["duplicate"] > 0
    assert {"empty", "refusal", "too_short"} & report["dropped"].keys()
    assert report["categories"] == {
        topic: sum(row["category"] == topic for row in rows) for topic in report["categories"]
    }
    assert 0 < report["diversity"]["nearest"] < 0.7
    assert json.loads((tmp_path / "made.jsonl.samples/report.json").read_text()) == report
    # what was made is a source like any other, and is not made twice
    sources = [PromptSource(source=str(to))]
    assert len(load_prompts(sources, split="train", seed=0, purpose="red_team").prompts) == COUNT
    before = to.read_bytes()
    assert main(making(to, address)) == 0
    assert "dropped: " in capsys.readouterr().out
    assert to.read_bytes() == before


def test_killed_twice_it_ends_as_if_it_never_was_whatever_the_concurrency(
    tmp_path: Path, address: str
) -> None:
    straight, broken = tmp_path / "straight.jsonl", tmp_path / "broken.jsonl"
    # the last of the 64 take long to come up, so that there is time to be killed in
    many = ("--count", "58")
    assert main(making(straight, address, *many, "--in-flight", "32")) == 0
    command = [sys.executable, "-m", "solon.trainer.cli", *making(broken, address, *many)]
    for parts, how in enumerate((signal.SIGKILL, signal.SIGTERM), start=1):
        process = subprocess.Popen([*command, "--in-flight", "1"], stderr=subprocess.PIPE)
        while len(list(tmp_path.glob("broken.jsonl.samples/samples/part-*"))) < parts:
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.01)
        process.send_signal(how)
        _, said = process.communicate(timeout=20)
        assert not broken.exists()
        assert process.returncode == (-signal.SIGKILL if how == signal.SIGKILL else 143)
    assert b"all answers that were made are kept. Go on with the same command" in said
    assert main(making(broken, address, *many, "--in-flight", "7")) == 0
    assert broken.read_bytes() == straight.read_bytes()


def test_too_few_new_prompts_are_a_failure_that_can_be_gone_on_with(
    tmp_path: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "few.jsonl"
    few = making(to, address, "--count", "20", "--most-samples", "20", "--seed", "3")
    assert main(few) == 1
    said = capsys.readouterr().err
    assert "of 20 prompts after 20 samples; dropped: " in said
    assert "raise --most-samples" in said
    assert not to.exists()
    assert main([*few[:-3], "200", *few[-2:]]) == 0
    assert len(lines(to)) == 20


def test_a_file_of_something_else_and_other_settings_are_refused(
    tmp_path: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "made.jsonl"
    assert main(making(to, address, "--count", "2")) == 0
    assert main(making(to, address, "--seed", "1")) == 2
    assert "other settings (seed: 0 -> 1)" in capsys.readouterr().err
    other = table(tmp_path / "mine.jsonl", {"prompt": "x"})
    assert main(making(other, address)) == 2
    assert "is there already; choose another" in capsys.readouterr().err
    assert lines(other) == [{"prompt": "x"}]


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (
            ("--temperature", "11"),
            "--temperature: Input should be less than or equal to 10, got 11",
        ),
        (("--seed", "-1"), "--seed: expected 0 to 2**63 - 1, got -1"),
        (("--most-samples", "3"), "--most-samples: expected --count or more, got 3"),
        (("--seeds", "written:evil"), "expected one of written:red_team"),
        (("--to", "x.txt"), "--to: expected the name of a .jsonl file, got 'x.txt'"),
    ],
)
def test_a_wrong_argument_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], problem: str
) -> None:
    assert main(making(tmp_path / "x.jsonl", "nowhere:1", *more)) == 2
    assert problem in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_an_address_is_started_for_as_long_as_it_is_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "made.jsonl"
    model = ("--model", "scripted", "--engine", "scripted", "--seeds", "sandbox:benign")
    asked = ["prompts", "generate", "helpful", *model, "--count", "3", "--shots", "2"]
    assert main([*asked, "--to", str(to)]) == 0, capsys.readouterr().err
    assert len(lines(to)) == 3
    assert {row["model"] for row in lines(to)} == {"scripted"}


def test_a_file_is_imported_without_its_duplicates_and_described(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"transcript": HH + f"Apple {n}.", "tags": ["fruit"]} for n in range(3)]
    rows.append({"transcript": "\n\nHuman: Why is the sky blue?", "tags": ["sky"]})
    path, to = table(tmp_path / "attempts.jsonl.gz", *rows), tmp_path / "out.jsonl"
    assert main(["prompts", "import", str(path), "--to", str(to), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["format"] == "hh_red_team"
    assert (found["prompts"], found["duplicates"]) == (2, 2)
    assert found["turns"] == {"1": 1, "3": 1}
    assert found["categories"] == {"fruit": 1, "sky": 1}
    many, one = lines(to)
    assert [turn["role"] for turn in many["prompt"]] == ["user", "assistant", "user"]
    assert one["prompt"] == "Why is the sky blue?"
    assert (one["source"], one["row"]) == ("attempts.jsonl.gz", "line 4")
    assert main(["prompts", "check", str(to), "--where", "category=sky"]) == 0
    shown = capsys.readouterr().out
    assert "1 prompts" in shown
    assert "1 rows left out by --where" in shown
    assert main(["prompts", "import", str(path), "--to", str(to)]) == 2
    assert "expected the name of a new .jsonl file" in capsys.readouterr().err


def test_near_duplicates_are_left_out_if_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = table(
        tmp_path / "p.jsonl",
        "Tell me a story about a horse and a duck",
        "Please tell me a story about a horse and a duck",
    )
    for more, left in (([], 2), (["--near-duplicates", "0.7"], 1)):
        assert main(["prompts", "check", str(path), "--json", *more]) == 0
        assert json.loads(capsys.readouterr().out)["prompts"] == left


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["--where", "label"], "--where: expected COLUMN=VALUE, got 'label'"),
        (["--format", "csv"], "--format: Input should be 'prompts'"),
        (["--count", "0"], "--count: Input should be greater than 0, got 0"),
    ],
)
def test_a_wrong_choice_of_rows_is_refused(
    capsys: pytest.CaptureFixture[str], more: list[str], problem: str
) -> None:
    assert main(["prompts", "check", "written:helpful", *more]) == 2
    assert problem in capsys.readouterr().err
