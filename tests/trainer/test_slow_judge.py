"""A judge that cannot do all that is asked at once in a call's time makes a run slow, no more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from solon.trainer.cli import main
from solon.trainer.schemas import PREFERENCES
from tests.trainer.runs import RED, prepared, records, served

CROWD = [
    "services.in_flight=256",
    "preferences.chain_of_thought={chains: 10, sampling: {max_tokens: 40}}",
    "preferences.pairs=1",
    "preferences.max_no_verdict_share=1.0",
]


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The override that has a run use a judge which makes 400 chains a second, if it can."""
    folder = tmp_path_factory.mktemp("slow")
    with served("judge", folder, "--engine-option=concurrency=4") as address:
        yield f"services.judge.address={address}"


def labels(run: Path) -> list[Any]:
    return [row["comparisons"] for row in records(run, "preferences", PREFERENCES)]


def test_every_pair_is_labelled_as_by_a_judge_that_has_time(
    config: Path, tmp_path: Path, slow: str, capsys: pytest.CaptureFixture[str]
) -> None:
    crowd = [*CROWD, "preferences.principles=1"]
    crowd += [f"prompts.preferences=['{config.parent}/red.jsonl']"]
    at_ease = prepared(config, tmp_path / "at-ease", *crowd)
    assert main(["preferences", str(at_ease)]) == 0
    assert "were repeated" not in capsys.readouterr().err
    # 40 comparisons of 20 chains take 2 seconds together, and one of them far less than it has
    hurried = prepared(config, tmp_path / "hurried", *crowd, slow, "services.call_timeout=1.2")
    assert main(["preferences", str(hurried)]) == 0, capsys.readouterr().err
    assert "calls that were refused or failed were repeated" in capsys.readouterr().err
    assert len(labels(hurried)) == RED
    assert labels(hurried) == labels(at_ease)


def test_a_judge_too_slow_for_a_single_comparison_ends_the_run_with_what_to_do(
    config: Path, tmp_path: Path, slow: str, capsys: pytest.CaptureFixture[str]
) -> None:
    few = f"prompts.preferences=['{config.parent}/helpful.jsonl']"
    # by 5 principles, 100 chains take a quarter of a second
    run = prepared(config, tmp_path / "run", *CROWD, few, slow, "services.call_timeout=0.15")
    assert main(["preferences", str(run)]) == 2
    assert "raise services.call_timeout" in " ".join(capsys.readouterr().err.split())
