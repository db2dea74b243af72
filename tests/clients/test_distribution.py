"""The wheel: it holds what it must and nothing else, and its base install is the client."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

ROOTS = ("protos", "services", "trainer")


@pytest.fixture(scope="module")
def contents(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return [name for name in archive.namelist() if ".dist-info/" not in name]


def test_the_wheel_holds_every_source_file_and_nothing_else(
    contents: list[str], source_tree: Path
) -> None:
    expected = {
        str(path.relative_to(source_tree / root))
        for root in ROOTS
        for path in (source_tree / root / "solon").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    for folder, packaged in (
        ("constitutions", "solon/constitution/library"),
        ("trainer/configs", "solon/trainer/configs"),
    ):
        whole = source_tree / folder
        expected |= {
            f"{packaged}/{path.relative_to(whole)}" for path in whole.rglob("*") if path.is_file()
        }
    assert sorted(contents) == sorted(expected)


@pytest.mark.parametrize(
    "name",
    [
        "solon/py.typed",
        "solon/client/py.typed",
        "solon/v1/judge_pb2.py",
        "solon/v1/judge_pb2.pyi",
        "solon/v1/judge_pb2_grpc.py",
        "solon/v1/judge_pb2_grpc.pyi",
        "solon/v1/judge.proto",
        "solon/constitution/library/core.yaml",
        "solon/constitution/library/harmlessness.yaml",
        "solon/constitution/library/sandbox.yaml",
        "solon/trainer/configs/sandbox.yaml",
        "solon/trainer/written/red_team.jsonl",
        "solon/trainer/written/helpful.jsonl",
        "solon/trainer/written/sounds_harmful.jsonl",
    ],
)
def test_the_wheel_holds(name: str, contents: list[str]) -> None:
    assert name in contents


def test_the_wheel_holds_the_sandbox_model_and_stays_small(
    contents: list[str], wheel: Path
) -> None:
    weights = [name for name in contents if name.endswith(".safetensors")]
    assert weights
    assert all(name.startswith("solon/sandbox/") for name in weights)
    assert wheel.stat().st_size < 15e6


def test_the_base_requirements_are_the_clients(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = HeaderParser().parsestr(archive.read(name).decode())
    base = [r for r in metadata.get_all("Requires-Dist", []) if "extra ==" not in r]
    assert {r.split(">")[0] for r in base} == {
        "googleapis-common-protos",
        "grpcio",
        "grpcio-status",
        "opentelemetry-api",
        "protobuf",
    }


def test_a_base_install_imports_the_client_and_little_else(base_python: Path) -> None:
    code = (
        "import importlib.metadata as m, solon.client, solon.client.sync\n"
        "print(*sorted(d.name.lower() for d in m.distributions()))"
    )
    done = subprocess.run(
        [base_python, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) <= {
        "googleapis-common-protos",
        "grpcio",
        "grpcio-status",
        "opentelemetry-api",
        "protobuf",
        "solon",
        "typing_extensions",
    }


def test_a_type_checker_sees_the_types_of_the_installed_client(
    base_python: Path, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from solon.chat import Conversation\n"
        "from solon.client.sync import JudgeClient\n"
        "reveal_type(Conversation.from_user('Hi'))\n"
        "reveal_type(JudgeClient('a').compare(Conversation.from_user('Hi'), 'a', 'b', "
        "constitution='core').probability_a)\n",
        encoding="utf-8",
    )
    mypy = [sys.executable, "-m", "mypy", "--strict", f"--cache-dir={tmp_path}"]
    done = subprocess.run(
        [*mypy, "--python-executable", base_python, program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert 'Revealed type is "solon.chat.Conversation"' in done.stdout
    assert 'Revealed type is "float | None"' in done.stdout


def test_shipped_constitutions_are_found_in_the_wheel(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "from solon.constitution import load, resolve as r; print(r('core'), load(r('core')).name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    found = tmp_path / "solon" / "constitution" / "library" / "core.yaml"
    assert done.stdout.split() == [str(found), "core"], done.stderr
