"""Imports run one way. Read from the source, so that lazy imports count as well."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.architecture.conftest import parsed

ROLE = {"engine", "serving", "constitution", "chat", "v1"}
# part -> parts of solon that it may import besides itself
ALLOWED = {
    "chat": set[str](),
    # a trace runs through all of them, and only here is it known what it is made with
    "tracing": set[str](),
    "v1": set[str](),
    "constitution": {"chat"},
    "engine": {"chat", "tracing"},
    "serving": {"engine", "constitution", "chat", "tracing", "v1"},
    "policy": ROLE,
    "critic": ROLE,
    "judge": ROLE,
    "client": {"chat", "tracing", "v1"},
    "trainer": {"client", "constitution", "chat", "tracing", "v1", "sandbox"},
    "sandbox": {"constitution", "chat"},
}
# part -> everything outside the standard library that it may import; the others are free
OUTSIDE = {
    "chat": set[str](),
    "tracing": {"opentelemetry"},
    "constitution": {"yaml"},
    "client": {"grpc", "grpc_status", "google"},
    "policy": {"grpc"},
    "critic": {"grpc"},
    "judge": {"grpc"},
}


@cache
def imported(path: Path) -> tuple[tuple[int, str], ...]:
    return tuple(_imported(path))


def _imported(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the import in full"
            # the names too: `from solon.sandbox import oracle` imports a module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)


def sources(root: Path, files: list[Path]) -> Iterator[tuple[str, Path]]:
    """(part, file) for every source file: ``services/solon/engine/base.py`` is of ``engine``."""
    for path in files:
        top, *rest = path.relative_to(root).parts
        if top in ("protos", "services", "trainer") and rest[0] == "solon":
            yield rest[1].removesuffix(".py"), path


def wrong_imports(root: Path, files: list[Path]) -> list[str]:
    wrong = []
    for part, path in sources(root, files):
        for line, module in imported(path):
            owner, _, rest = module.partition(".")
            target = rest.split(".")[0]
            if owner == "solon" and target not in {part, *ALLOWED[part]}:
                wrong.append(f"{path.relative_to(root)}:{line}: {part} imports {module}")
    return wrong


def test_imports_run_one_way(root: Path, python_files: list[Path]) -> None:
    assert wrong_imports(root, python_files) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("services/solon/policy/a.py", "from solon.trainer.cli import main"),
        ("services/solon/judge/a.py", "def f():\n    import solon.critic.server"),
        ("trainer/solon/trainer/a.py", "from solon import engine"),
        ("services/solon/client/a.py", "from solon.constitution import load"),
    ],
)
def test_an_import_the_wrong_way_is_found(tmp_path: Path, file: str, line: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(line, encoding="utf-8")
    assert len(wrong_imports(tmp_path, [path])) == 1


def test_light_parts_import_no_libraries_but_their_own(
    root: Path, python_files: list[Path]
) -> None:
    import sys

    for part, path in sources(root, python_files):
        if part in OUTSIDE:
            packages = {module.split(".")[0] for _, module in imported(path)}
            outside = packages - sys.stdlib_module_names - {"solon"}
            assert outside <= OUTSIDE[part], path.relative_to(root)


def test_the_pipeline_never_sees_the_oracle(root: Path, python_files: list[Path]) -> None:
    # by whichever door: the module, or what the sandbox package hands on from it
    oracle = re.compile(r"\bsandbox(\.oracle)?(\.| import .*)\b(oracle|read|better)\b")
    seeing = {
        path.name
        for part, path in sources(root, python_files)
        if part == "trainer" and oracle.search(path.read_text("utf-8"))
    }
    # the evaluation, and an ablation, which measures what runs have left
    assert seeing == {"evaluate.py", "figures.py"}
