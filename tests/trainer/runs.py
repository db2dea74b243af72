"""What tests of runs share: services on the scripted engine, and how to read what a run left."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from solon.trainer.config import load_config
from solon.trainer.session import open_session
from solon.trainer.state import RunState
from solon.trainer.store import RunDirectory

ROLES = ("policy", "critic", "judge")
RED, HELPFUL = 40, 10
TIMINGS = ("queue", "inference", "cached_tokens")
"""What may differ between two runs of the same seed."""


def serve(role: str, folder: Path, *flags: str) -> tuple[subprocess.Popen[bytes], Path]:
    ready = folder / f"{role}.json"
    constitutions = () if role == "policy" else ("--constitution", "core")
    arguments = (
        *(sys.executable, "-m", f"solon.{role}.server", "--engine", "scripted"),
        *("--model", "scripted", "--ready-file", str(ready), *constitutions),
        *("--settle-seconds", "0", "--engine-option", "latency=0.01"),
        *flags,
    )
    with (folder / f"{role}.log").open("wb") as log:
        return subprocess.Popen(arguments, stderr=log), ready


def port_of(process: subprocess.Popen[bytes], ready: Path) -> int:
    while not ready.exists():
        assert process.poll() is None, ready.with_suffix(".log").read_text()
        time.sleep(0.02)
    return int(json.loads(ready.read_text())["port"])


@contextmanager
def served(role: str, folder: Path, *flags: str) -> Iterator[str]:
    """The address of a service that is there while the block runs."""
    process, ready = serve(role, folder, *flags)
    try:
        yield f"127.0.0.1:{port_of(process, ready)}"
    finally:
        process.terminate()
        process.wait(20)


def pretend_trained(run: Path, *stages: str) -> None:
    """Leave what the training stages would have left."""
    state = RunState(RunDirectory(str(run)))
    for stage, model in (("sft", "sl"), ("rl", "rl")):
        if stage in stages:
            folder = run / "models" / model
            folder.mkdir(parents=True)
            (folder / "config.json").write_text("{}")
            (folder / "model.safetensors").write_bytes(stage.encode())
            state.finish(stage, 1.0, {"weight_version": f"{model}-0123456789ab"})


COMMAND = "import sys; from solon.trainer.cli import main; sys.exit(main(sys.argv[1:]))"


def start(*arguments: str | Path, before: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", before + COMMAND, *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def prepared(config: Path, run: Path, *overrides: str) -> Path:
    """A run that has its SL model, so that its preferences can be made."""
    with open_session(load_config(str(config), [f"run_dir={run}", *overrides]), resume=False):
        pretend_trained(run, "sft")
    return run


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key not in TIMINGS}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def records(run: Path, folder: str, schema: pa.Schema) -> list[Any]:
    return [timeless(row) for row in RunDirectory(str(run)).parts(folder, schema).records()]
