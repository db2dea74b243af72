"""The tree as the architecture tests see it: what is in the repository, and nothing generated."""

from __future__ import annotations

import ast
import gc
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOP = ("protos", "services", "trainer", "deploy", "constitutions", "tests")


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def files() -> list[Path]:
    """Tracked files and those that git would track; in an archive, whatever is not generated."""
    if not (ROOT / ".git").exists():
        return [p for top in TOP for p in sorted((ROOT / top).rglob("*")) if _is_source(p)]
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    found = [ROOT / name for name in listed.split("\0") if name]
    return [path for path in found if path.is_file()]


@pytest.fixture(scope="session")
def python_files(files: list[Path]) -> list[Path]:
    return [path for path in files if path.suffix == ".py"]


def _is_source(path: Path) -> bool:
    generated = "_pb2" in path.name or "__pycache__" in path.parts or "node_modules" in path.parts
    return path.is_file() and not generated


def parsed(path: Path) -> ast.Module:
    """The file's syntax tree.

    Without the collector: in CPython before 3.11.8 a finalizer that runs in the middle of parsing
    may end in "SystemError: AST constructor recursion depth mismatch" (python/cpython#106905).
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(path.read_text("utf-8"), str(path))
    finally:
        if enabled:
            gc.enable()
