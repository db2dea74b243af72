"""The contract: lint, compatibility with what others have compiled, and stubs that compile.

``protos/baseline.binpb`` is the contract as it was last released. It lies in the tree so that the
gate needs neither a main branch nor history: shallow clones, forks and archives are guarded alike.
It may only grow: when messages, fields or methods were added, refresh it (see REFRESH).
"""

from __future__ import annotations

import compileall
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

REFRESH = "buf build protos --exclude-source-info -o protos/baseline.binpb"


def buf(*args: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    scripts = sysconfig.get_path("scripts")
    found = shutil.which("buf", path=scripts) or shutil.which("buf")
    assert found, "buf is not installed: pip install buf-bin"

    return subprocess.run([found, *args], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture
def protos(root: Path, tmp_path: Path) -> Path:
    """A copy of the protos, without anything generated."""
    copy = tmp_path / "protos"
    shutil.copytree(root / "protos", copy, ignore=shutil.ignore_patterns("*_pb2*", "__pycache__"))
    return copy


def test_the_protos_follow_the_style_and_everything_has_a_comment(protos: Path) -> None:
    done = buf("lint", cwd=protos)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_that_others_have_compiled_is_broken(protos: Path) -> None:
    done = buf("breaking", "--against", "baseline.binpb", cwd=protos)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_baseline_holds_all_of_the_contract(protos: Path) -> None:
    # otherwise what was added since could be taken away again unnoticed
    done = buf("breaking", "baseline.binpb", "--against", ".", cwd=protos)
    assert done.returncode == 0, f"not in the baseline yet: run `{REFRESH}`\n{done.stdout}"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("rpc Score(ScoreRequest)", "rpc Grade(ScoreRequest)"),
        ("double logprob_a = 2;", "float logprob_a = 2;"),
        ("int32 index = 1;", "int32 index = 9;"),
    ],
)
def test_a_broken_contract_is_noticed(protos: Path, old: str, new: str) -> None:
    judge = protos / "solon" / "v1" / "judge.proto"
    text = judge.read_text("utf-8")
    assert old in text
    judge.write_text(text.replace(old, new), encoding="utf-8")
    assert buf("breaking", "--against", "baseline.binpb", cwd=protos).returncode == 100


def test_the_stubs_are_generated_compile_and_are_typed(protos: Path) -> None:
    subprocess.run([sys.executable, protos / "hatch_build.py"], check=True)
    v1 = protos / "solon" / "v1"
    sources = sorted(v1.glob("*.proto"))
    assert len(sources) == 6
    for source in sources:
        suffixes = ["_pb2.py", "_pb2.pyi"]
        if "\nservice " in source.read_text("utf-8"):
            suffixes += ["_pb2_grpc.py", "_pb2_grpc.pyi"]
        for suffix in suffixes:
            assert (v1 / f"{source.stem}{suffix}").is_file()
    assert compileall.compile_dir(v1, quiet=1)


def test_the_protos_import_only_what_every_language_has(protos: Path) -> None:
    for source in (protos / "solon" / "v1").glob("*.proto"):
        for line in source.read_text("utf-8").splitlines():
            if line.startswith("import "):
                target = line.split('"')[1]
                assert target.startswith(("solon/v1/", "google/protobuf/")), f"{source}: {line}"
