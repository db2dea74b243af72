"""The tree itself: short files, short functions, nothing that holds on one machine only."""

from __future__ import annotations

import ast
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.conftest import parsed

MOST_LINES = 500
MOST_FUNCTION_LINES = 80
# in pieces, so that this file does not find itself
MACHINE_PATH = re.compile(
    r"(?<![\w.$}~*-])/(?:" + "|".join(("root", "Users", "home", "work")) + "/)"
)
REGISTRY = re.compile(
    "|".join(("pypi" + r"\.org", "python" + "hosted", "npm" + r"js\.(?:org|com)"))
)


def texts(files: list[Path]) -> Iterator[tuple[Path, str]]:
    for path in files:
        content = path.read_bytes()
        if b"\0" not in content:
            yield path, content.decode("utf-8")


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and length in lines of every function, decorators left out."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{path.name}:{node.name}", (node.end_lineno or node.lineno) - node.lineno + 1


def found(pattern: re.Pattern[str], files: list[Path], root: Path) -> list[str]:
    return [
        f"{path.relative_to(root)}:{number}: {line.strip()}"
        for path, text in texts(files)
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


def test_no_file_names_a_path_of_one_machine(root: Path, files: list[Path]) -> None:
    assert found(MACHINE_PATH, files, root) == []


def test_no_file_names_a_package_registry(root: Path, files: list[Path]) -> None:
    # which registry to use is the installing machine's business
    assert found(REGISTRY, files, root) == []


@pytest.mark.parametrize(
    ("pattern", "text"),
    [(MACHINE_PATH, "open('/ho" + "me/a/b')"), (REGISTRY, "https://py" + "pi.org/simple")],
)
def test_the_patterns_find_what_they_are_for(pattern: re.Pattern[str], text: str) -> None:
    assert pattern.search(text)


def test_no_file_is_longer_than_500_lines(root: Path, python_files: list[Path]) -> None:
    lengths = {path: len(path.read_text("utf-8").splitlines()) for path in python_files}
    assert {str(p.relative_to(root)): n for p, n in lengths.items() if n > MOST_LINES} == {}


def test_no_function_is_longer_than_80_lines_and_few_than_35(
    root: Path, python_files: list[Path]
) -> None:
    sources = [path for path in python_files if path.relative_to(root).parts[0] != "tests"]
    every = [entry for path in python_files for entry in functions(path)]
    assert [(name, n) for name, n in every if n > MOST_FUNCTION_LINES] == []
    lengths = [n for path in sources for _, n in functions(path)]
    assert statistics.quantiles(lengths, n=10)[-1] <= 35
