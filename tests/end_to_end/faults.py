"""Kills a real run at random moments, lets it go on, and holds what it left to an unharmed one.

The whole loop: real services on the sandbox model, real training, `kill -9`. By hand, on any
configuration:

    python tests/end_to_end/faults.py CONFIG FOLDER --kills 10 [--of services] [key.path=value ...]

It leaves FOLDER/straight (the unharmed run) and FOLDER/killed-N, prints every kill, and exits with
1 and a list of what differs.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from solon.trainer.pipeline import weights_digest
from solon.trainer.schemas import EPISODES, EVALUATION, JUDGED_PAIRS, PREFERENCES, REVISIONS
from solon.trainer.store import RunDirectory

RECORDS = {
    "revisions": REVISIONS,
    "preferences": PREFERENCES,
    "rl": EPISODES,
    "evaluation/responses": EVALUATION,
    "evaluation/pairs": JUDGED_PAIRS,
}
VARYING = {"queue", "inference", "cached_tokens", "time", "eps"}
"""Keys that may differ between two runs of one seed: times, and what a cache happened to hold."""
SOON = "store.part_seconds=0.5"
"""A part is written often, so that a kill finds a stage half done."""
MOST_OF_A_ROLE = 4
"""Kills of one service; a run rightly gives up one that dies five times in a minute."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A run to be started, killed and continued."""

    config: str
    folder: Path
    """The run directory: new, or of a run that is to go on."""
    overrides: tuple[str, ...] = ()
    """``key.path=value``."""

    @property
    def log(self) -> str:
        """What the run said, all attempts together."""
        return self.folder.with_suffix(".log").read_text()

    def start(self) -> subprocess.Popen[str]:
        """`solon run CONFIG --run FOLDER`, with `--resume` where there is something."""
        resume = ["--resume"] if (self.folder / "config.yaml").exists() else []
        command = [sys.executable, "-m", "solon.trainer.cli", "run", self.config]
        command += ["--run", str(self.folder), *resume, SOON, *self.overrides]
        with self.folder.with_suffix(".log").open("a") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, text=True)

    def run(self) -> float:
        """Run to the end; the seconds that it took."""
        began = time.monotonic()
        assert self.start().wait() == 0, self.log
        return time.monotonic() - began

    def kill_coordinator(self, within: float, dice: random.Random) -> list[str]:
        """Kill the coordinator and go on, until an attempt ends by itself; what was killed when.

        Every attempt is killed at a moment drawn from [0, ``within``) seconds.
        """
        kills = []
        while True:
            process = self.start()
            try:
                code = process.wait(dice.uniform(0, within))
            except subprocess.TimeoutExpired:
                orphans = psutil.Process(process.pid).children(recursive=True)
                process.kill()
                process.wait()
                kills.append(where(self.folder))
                _, alive = psutil.wait_procs(orphans, timeout=30)
                assert not alive, f"outlived the coordinator: {alive}"
            else:
                assert code == 0, self.log
                return kills

    def kill_services(self, every: float, dice: random.Random) -> list[str]:
        """Kill one service after the other while the run, never restarted, goes on.

        Seconds between two kills are drawn from [0, 2 ``every``).
        """
        process = self.start()
        kills = []
        victims: Counter[str] = Counter()
        while True:
            try:
                code = process.wait(dice.uniform(0, 2 * every))
            except subprocess.TimeoutExpired:
                found = [one for one in _services(process.pid) if victims[one[0]] < MOST_OF_A_ROLE]
                if found:
                    role, victim = dice.choice(found)
                    victims[role] += 1
                    victim.send_signal(signal.SIGKILL)
                    kills.append(f"{role} in {where(self.folder)}")
            else:
                assert code == 0, self.log
                return kills


def _services(coordinator: int) -> Iterator[tuple[str, psutil.Process]]:
    for child in psutil.Process(coordinator).children():
        try:
            words = child.cmdline()
        except psutil.Error:
            continue
        for role in ("policy", "critic", "judge"):
            if f"solon.{role}.server" in words:
                yield role, child


def where(folder: Path) -> str:
    """How far a run is: the stages that are done, and the parts that are there."""
    state = folder / "state.json"
    stages = json.loads(state.read_text())["stages"] if state.exists() else {}
    done = [name for name, stage in stages.items() if stage.get("done")]
    parts = len(list(folder.glob("**/part-*.parquet")))
    checkpoints = [path.name for path in folder.glob("checkpoints/*/*")]
    return f"{' '.join(done) or 'nothing'} done, {parts} parts, checkpoints {checkpoints or 'none'}"


def differences(ours: Path, theirs: Path) -> list[str]:
    """Everything in which two runs differ, but for times."""
    found = []
    for name, schema in RECORDS.items():
        left, right = (
            sorted(RunDirectory(str(run)).parts(name, schema).records(), key=_id)
            for run in (ours, theirs)
        )
        ids = [record["id"] for record in left]
        if len(set(ids)) != len(ids):
            found.append(f"{name}: {len(ids) - len(set(ids))} records are doubled")
        if lost := {record["id"] for record in right} - set(ids):
            found.append(f"{name}: {len(lost)} records are lost")
        if timeless(left) != timeless(right):
            found.append(f"{name}: the records differ")
    for path in sorted(theirs.glob("export/**/*.parquet")):
        same = ours / path.relative_to(theirs)
        if not pq.read_table(same).equals(pq.read_table(path)):
            found.append(f"{path.relative_to(theirs)}: the rows differ")
    found += [
        f"models/{model}: the weights differ"
        for model in ("sl", "reward", "rl")
        if weights_digest(ours / "models" / model) != weights_digest(theirs / "models" / model)
    ]
    if metrics(ours) != metrics(theirs):
        found.append("metrics.jsonl: the rows differ")
    if (ours / "evaluation.json").read_text() != (theirs / "evaluation.json").read_text():
        found.append("evaluation.json differs")
    return found


def metrics(run: Path) -> list[Any]:
    """The rows of metrics.jsonl, without times."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [timeless(json.loads(line)) for line in lines]


def timeless(value: Any) -> Any:
    """Without what may differ between two runs of one seed."""
    if isinstance(value, dict):
        return {
            key: timeless(item)
            for key, item in value.items()
            if key not in VARYING and not key.startswith("timing/")
        }
    return [timeless(item) for item in value] if isinstance(value, list) else value


def _id(record: dict[str, Any]) -> str:
    return str(record["id"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run by hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("folder", type=Path)
    parser.add_argument("overrides", nargs="*", default=[], metavar="key.path=value")
    parser.add_argument("--kills", type=int, default=10, help="at least so many")
    parser.add_argument("--of", choices=("coordinator", "services"), default="coordinator")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args(arguments)
    given.folder.mkdir(parents=True, exist_ok=True)
    overrides = tuple(given.overrides)
    straight = Trial(config=given.config, folder=given.folder / "straight", overrides=overrides)
    seconds = straight.run()
    print(f"unharmed: {seconds:.0f} s", flush=True)
    dice, kills, found = random.Random(given.seed), 0, []
    for number in range(given.kills):
        if kills >= given.kills:
            break
        folder = given.folder / f"killed-{number}"
        trial = Trial(config=given.config, folder=folder, overrides=overrides)
        if given.of == "coordinator":
            killed = trial.kill_coordinator(seconds / 3, dice)
        else:
            killed = trial.kill_services(seconds / 8, dice)
        for line in killed:
            print(f"{folder.name}: killed: {line}", flush=True)
        kills += len(killed)
        found += [f"{folder.name}: {line}" for line in differences(folder, straight.folder)]
    print(f"{kills} kills; " + ("\n".join(found) or "everything equals the unharmed run"))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
