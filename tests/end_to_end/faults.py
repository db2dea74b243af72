"""Kills a real run at random moments, lets it go on, and holds what it left to an unharmed one.

The whole loop: real services on the sandbox model, real training, `kill -9`. By hand, on any
configuration:

    python tests/end_to_end/faults.py CONFIG FOLDER --kills 10 [--of service] [key.path=value ...]

It leaves FOLDER/straight (the unharmed run) and FOLDER/killed-N, prints every kill, and exits with
1 and a list of what differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

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
MOST_OF_A_SERVICE = 4
"""Kills of one service; a run rightly gives up one that dies five times in a minute."""
Victim = Literal["coordinator", "service"]
_PART = re.compile(r"part-\d+\.parquet")
_LOOK_SECONDS = 0.1
"""How often a run is asked how far it got."""


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

    def harm(
        self, of: Sequence[Victim], every: int, within: float, dice: random.Random
    ) -> list[str]:
        """Kill what ``of`` names, in turn, until an attempt ends by itself; what was killed when.

        The first kill comes a moment after the start, each other one a moment after the run got
        further by 1 to 2 ``every`` steps that no attempt made before, so that it has an end. A
        moment is drawn from [0, ``within``) seconds. A killed coordinator is started again, a
        killed service is the coordinator's to start.
        """
        kills: list[str] = []
        made: set[str] = set()
        enough = 0
        process = self.start()
        while (code := _ended(process, _LOOK_SECONDS)) is None:
            made |= set(steps(self.folder))
            if len(made) < enough or _ended(process, dice.uniform(0, within)) is not None:
                continue
            turn = of[len(kills) % len(of)]
            if turn == "coordinator":
                kills.append(f"coordinator: {where(self.folder)}")
                _kill_with_children(process)
                process = self.start()
            elif found := [one for one in _services(process.pid) if _may_die(one[0], kills)]:
                name, victim = dice.choice(found)
                kills.append(f"{name}: {where(self.folder)}")
                victim.send_signal(signal.SIGKILL)
            else:
                continue
            enough = len(made) + dice.randint(1, 2 * every)
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
                yield f"{role} service", child


def _may_die(service: str, kills: Sequence[str]) -> bool:
    return sum(kill.startswith(service) for kill in kills) < MOST_OF_A_SERVICE


def _ended(process: subprocess.Popen[str], seconds: float) -> int | None:
    """The exit code, if it ends within so many seconds."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def _kill_with_children(coordinator: subprocess.Popen[str]) -> None:
    """Kill the coordinator, with which everything that it started has to end."""
    orphans = psutil.Process(coordinator.pid).children(recursive=True)
    coordinator.kill()
    coordinator.wait()
    # an engine sees it between two imports, which on a busy machine take long
    _, alive = psutil.wait_procs(orphans, timeout=300)
    assert not alive, f"outlived the coordinator: {alive}"


def stages_done(folder: Path) -> list[str]:
    """The stages that a run is done with."""
    state = folder / "state.json"
    stages = json.loads(state.read_text())["stages"] if state.exists() else {}
    return [name for name, stage in stages.items() if stage.get("done")]


def steps(folder: Path) -> Iterator[str]:
    """What a run has made so far: stages, parts, checkpoints, and training stages that began."""
    yield from stages_done(folder)
    # what is gone in the next moment is no error here, as it would be for `Path.glob`
    for root, folders, files in os.walk(folder):
        yield from (f"{root}/{name}" for name in files if _PART.fullmatch(name))
        if (folder / "checkpoints") in (Path(root), *Path(root).parents):
            yield from (f"{root}/{name}" for name in folders if ".tmp" not in name)


def where(folder: Path) -> str:
    """How far a run is: the stages that are done, and the parts that are there."""
    done = stages_done(folder)
    made = [Path(step).relative_to(folder) for step in set(steps(folder)) - set(done)]
    parts = sum(path.suffix == ".parquet" for path in made)
    training = " ".join(sorted(str(path) for path in made if path.suffix != ".parquet"))
    return f"{' '.join(done) or 'nothing'} done, {parts} parts, {training or 'no training'}"


def differences(ours: Path, theirs: Path) -> list[str]:
    """Everything in which two runs differ, but for times."""
    found = []
    later = {path.name: PREFERENCES for path in theirs.glob("preferences-*")}
    later |= {path.name: EPISODES for path in theirs.glob("rl-*")}
    for name, schema in (RECORDS | later).items():
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
        for model in sorted(path.name for path in (theirs / "models").iterdir())
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
    parser.add_argument("--of", choices=get_args(Victim), action="append", help="default: both")
    parser.add_argument("--every", type=int, default=4, help="steps between two kills")
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
        killed = trial.harm(given.of or get_args(Victim), given.every, seconds / 20, dice)
        for line in killed:
            print(f"{folder.name}: killed: {line}", flush=True)
        kills += len(killed)
        found += [f"{folder.name}: {line}" for line in differences(folder, straight.folder)]
    print(f"{kills} kills; " + ("\n".join(found) or "everything equals the unharmed run"))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
