"""Whether the coordinator keeps its replicas busy: `solon` against replicas of 200 ms, 1 to 64.

    python -m tests.benchmarks.coordinator [--sizes 1 2 4 ...] [--json FILE] [--profile FOLDER]

By hand. Real processes: a coordinator (the command ``solon``), and scripted replicas that each use
their model once at a time for 200 ms; see ``scripted_replicas``. ``revisions`` has N critics, whose
chains have four rounds, and N policies;
``preferences`` has N judges and a policy that is not limited. The floor is the time in which
those uses of the models can be made at all; ours is the stage's, exports and all.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from solon.trainer.config import load_config
from solon.trainer.session import open_session
from solon.trainer.state import RunState
from solon.trainer.store import RunDirectory
from tests.benchmarks.rows import Row, write
from tests.benchmarks.scripted_replicas import replicas

LATENCY = 0.2
ROUNDS = 4
TEXTS = 2 * ROUNDS
"""Uses of the critic a chain: a critique and a revision a round."""
COMMAND = "import sys; from solon.trainer.cli import main; sys.exit(main(sys.argv[1:]))"


@dataclass(frozen=True, kw_only=True)
class Busy(Row):
    """How busy replicas were kept; there is no peer."""

    processor: float
    """Seconds of processor that the coordinator used, its start and end included."""
    prompts: int


def measure(stage: str, size: int, args: argparse.Namespace) -> Busy:
    """One stage at one number of replicas."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        count, floor, services = plan(stage, size, args.seconds)
        targets = {
            role: stack.enter_context(
                replicas(role, many, latency=LATENCY, concurrency=concurrency)
            )
            for role, (many, concurrency) in services.items()
        }
        config = write_config(folder, count, targets)
        run = RunDirectory(str(folder / "run"))
        if stage == "preferences":
            prepare(config, run)
        used = coordinate(stage, config, args.profile and args.profile / f"{stage}-{size}.txt")
        state = RunState(run)
        assert state.is_done(stage), "the coordinator failed"
        seconds = state.seconds(stage)
    return Busy(
        name=f"{stage}, {size} replicas",
        ours=seconds,
        peer=None,
        floor=floor,
        ratio=floor / seconds,
        unit="s",
        processor=used,
        prompts=count,
    )


def plan(stage: str, size: int, seconds: float) -> tuple[int, float, dict[str, tuple[int, int]]]:
    """How many prompts, the least seconds that they take, and replicas: how many, and of what use.

    The last is how often each may use its model at once; 0 is no limit.
    """
    if stage == "revisions":
        each = max(1, round(seconds / (TEXTS * LATENCY)))
        # the first chains wait for a first response
        floor = each * TEXTS * LATENCY + LATENCY
        return size * each, floor, {"policy": (size, 1), "critic": (size, 1)}
    each = max(1, round(seconds / LATENCY))
    # two responses at once; then one comparison, whose two orders are one use of the judge
    return size * each, each * LATENCY + LATENCY, {"policy": (1, 0), "judge": (size, 1)}


def coordinate(stage: str, config: Path, profile: Path | None) -> float:
    """Run the command; the seconds of processor that it used."""
    command = [sys.executable, "-c", COMMAND, stage, str(config)]
    if profile:
        profile.parent.mkdir(parents=True, exist_ok=True)
        spy = ["py-spy", "record", "-r", "200", "-f", "raw", "-o", str(profile), "--"]
        command = [*spy, *command]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime


def prepare(config: Path, run: RunDirectory) -> None:
    """Leave the SL model that ``preferences`` needs; the scripted engine only takes its name."""
    with open_session(load_config(str(config), []), resume=False):
        folder = run.local / "models" / "sl"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"scripted")
        RunState(run).finish("sft", 1.0, {"weight_version": "sl-0123456789ab"})


def write_config(folder: Path, prompts: int, targets: dict[str, str]) -> Path:
    """A configuration whose services are at these targets, all else the defaults."""
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    asked = (json.dumps({"prompt": f"What is number {n} of many?"}) for n in range(prompts))
    (folder / "prompts.jsonl").write_text("\n".join(asked))
    (folder / "held.jsonl").write_text(json.dumps({"prompt": "What is held out?"}))
    nowhere = "127.0.0.1:1"
    settings: dict[str, Any] = {
        "constitution": "sandbox",
        "run_dir": str(folder / "run"),
        "models": dict.fromkeys(("policy", "critic", "judge", "base_for_sft"), str(model)),
        "services": {
            role: {"address": targets.get(role, nowhere)} for role in ("policy", "critic", "judge")
        },
        "prompts": {
            "red_team": [str(folder / "prompts.jsonl")],
            "preferences": [str(folder / "prompts.jsonl")],
            "evaluation": {"harmful": [str(folder / "held.jsonl")]},
        },
        "revisions": {"rounds": ROUNDS},
        "preferences": {"responses": 2, "principles": 1, "both_orders": True},
    }
    path = folder / "config.json"
    path.write_text(json.dumps(settings))
    return path


def show(rows: Sequence[Busy]) -> None:
    """The table."""
    load = psutil.getloadavg()[0]
    table = Table(title=f"replicas of {LATENCY:g} s, {psutil.cpu_count()} cores, load {load:.1f}")
    for heading in ("", "prompts", "least, s", "ours, s", "of the floor", "processor, ms a prompt"):
        table.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        table.add_row(
            row.name,
            str(row.prompts),
            f"{row.floor:.2f}",
            f"{row.ours:.2f}",
            f"{row.ratio:.1%}",
            f"{1000 * row.processor / row.prompts:.1f}",
        )
    Console().print(table)


def main() -> None:
    """Measure every size and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--stages", nargs="*", default=["revisions", "preferences"])
    parser.add_argument("--seconds", type=float, default=8.0, help="least time of each")
    parser.add_argument(
        "--profile", type=Path, metavar="FOLDER", help="with py-spy, stacks to here"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    args = parser.parse_args()
    rows = [measure(stage, size, args) for stage in args.stages for size in args.sizes]
    show(rows)
    write(args.json, rows)


if __name__ == "__main__":
    main()
