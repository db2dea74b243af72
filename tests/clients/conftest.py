"""What others have of Solon: the wheel, an environment with its base install, running services."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SOURCES = ("protos", "services", "trainer", "constitutions", "pyproject.toml", "README.md")
READY_WITHIN = 120.0


def lacking(reason: str) -> None:
    """Skip a test that needs what this machine lacks; in CI, where nothing may lack, fail it."""
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def source_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what goes into the wheel, without anything generated."""
    tree = tmp_path_factory.mktemp("tree")
    ignored = shutil.ignore_patterns("*_pb2*", "__pycache__")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=ignored)
        else:
            shutil.copy(source, tree / name)
    return tree


@pytest.fixture(scope="session")
def wheel(source_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The distribution, built from that copy."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=source_tree)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def base_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheel and its base dependencies."""
    home = tmp_path_factory.mktemp("base")
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "--python",
            python,
            "install",
            "--quiet",
            "--no-compile",
            wheel,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        lacking(f"pip cannot install the base dependencies here: {done.stderr[-500:]}")
    return python


@pytest.fixture(scope="session")
def node_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the Node client and the packages of its lock file."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            lacking(f"{program} is not installed: the Node client cannot run")
    folder = tmp_path_factory.mktemp("node")
    for name in ("package.json", "package-lock.json", "node_client.mjs"):
        shutil.copy(HERE / name, folder)
    run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=folder)
    return folder


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Starts real server processes; gives their addresses; stops them as an operator would."""
    folder = tmp_path_factory.mktemp("services")
    running: list[subprocess.Popen[bytes]] = []

    def start(role: str, *flags: str) -> str:
        ready = folder / f"{len(running)}.json"
        command = [sys.executable, "-m", f"solon.{role}.server", "--port", "0", "--threads", "1"]
        with ready.with_suffix(".log").open("wb") as log:
            process = subprocess.Popen(
                [*command, "--ready-file", str(ready), *flags], stdout=log, stderr=log
            )
        running.append(process)
        wait_for(ready, process)
        return f"127.0.0.1:{json.loads(ready.read_text('utf-8'))['port']}"

    yield start
    for process in running:
        process.terminate()
    try:
        codes = [process.wait(timeout=30) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert codes == [0] * len(running)


def wait_for(ready: Path, process: subprocess.Popen[bytes]) -> None:
    """Return once the server has written its ready file."""
    log, deadline = ready.with_suffix(".log"), time.monotonic() + READY_WITHIN
    while not ready.exists():
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.05)
            pytest.fail(f"the server ended with {process.returncode}:\n{log.read_text('utf-8')}")
        assert time.monotonic() < deadline, f"not ready in time:\n{log.read_text('utf-8')}"
