"""What the tests of whole runs share: a checkout, and the run that the README's tour leaves."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tour:
    """The README's commands, run one after the other."""

    run: Path
    """The run directory that they left."""
    stdout: str
    seconds: float


@pytest.fixture(scope="session")
def block() -> Callable[[str], str]:
    """Name -> the fenced block of the README below ``<!-- test:NAME -->``."""
    text = (ROOT / "README.md").read_text("utf-8")

    def named(name: str) -> str:
        found = re.search(rf"<!-- test:{name} -->\n```\w+\n(.*?)```", text, re.DOTALL)
        assert found is not None, f"README.md has no block {name}"
        return found[1]

    return named


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a checkout after the README's first command."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "trainer").symlink_to(ROOT / "trainer")
    return folder


@pytest.fixture(scope="session")
def tour(checkout: Path, block: Callable[[str], str]) -> Tour:
    """The small run, a command a stage."""
    began = time.monotonic()
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block("commands")],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seconds = time.monotonic() - began
    return Tour(run=checkout / "runs" / "tiny", stdout=done.stdout, seconds=seconds)
