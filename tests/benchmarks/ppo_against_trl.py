"""Our PPO against TRL 1.11's, the last one TRL had: same model, reward model and settings.

    python -m tests.benchmarks.ppo_against_trl [--json FILE] [--environment VENV]

Twice ours: with a value network that learns whole, as TRL's does, and with ``rl.value_network:
head``. By hand, for it makes a virtual environment for TRL (or takes the one given), and takes
minutes. By default it builds both models from the sandbox: an SL model that refuses half of what is
harmful, and a reward model that likes reasons there and help elsewhere. ``--model``, ``--reward``
and ``--prompts`` take any others, such as a finished run's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks.rows import Row, write

PEER_REQUIREMENTS = ("trl==1.11.*", "torch==2.13.0", "transformers>=5.16.1,<5.20", "rich", "pandas")
PEER_SCRIPT = Path(__file__).with_name("ppo_trl_side.py")
PEER = "TRL 1.11"
HEAD = {"value_network": "head", "value_learning_rate": 1e-3}
"""A head that stands on a frozen trunk learns faster, since nothing else can."""
SMOOTHED = 4
"""Batches over which a curve is averaged before it is compared."""


def main() -> None:
    """Run both sides for each seed and print the table."""
    arguments = parse()
    if arguments.side:
        run_ours(json.loads(arguments.side.read_text()))
        return
    with tempfile.TemporaryDirectory() as made:
        work = arguments.work or Path(made)
        settings = inputs(arguments, work)
        peer = arguments.environment or make_environment(work / "environment")
        ours = [sys.executable, "-m", "tests.benchmarks.ppo_against_trl", "--side"]
        sides = {
            "ours": (ours, {}),
            "ours, value head": (ours, HEAD),
            PEER: ([str(peer / "bin" / "python"), str(PEER_SCRIPT)], {}),
        }
        runs = {
            name: [
                run(command, settings | changes | {"name": name}, seed, work)
                for seed in range(arguments.seeds)
            ]
            for name, (command, changes) in sides.items()
        }
    write(arguments.json, table(runs))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--environment", type=Path, help="a virtual environment with TRL 1.11")
    parser.add_argument("--work", type=Path, help="keep models and results here")
    parser.add_argument("--model", type=Path, help="the SL model")
    parser.add_argument("--reward", type=Path, help="the reward model")
    parser.add_argument("--prompts", type=Path, help="Parquet: id, conversational prompt")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--episodes", type=int, default=2560)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--kl", type=float, default=0.05)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: count only each side's own time, on a machine that does other work too",
    )
    parser.add_argument("--side", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def inputs(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """What both sides are given; models are made unless they are given."""
    paths = {"model": arguments.model, "reward": arguments.reward, "prompts": arguments.prompts}
    if not all(paths.values()):
        paths = make_models(work)
    return {name: str(path) for name, path in paths.items()} | {
        "episodes": arguments.episodes,
        "batch_size": 128,
        "minibatches": 4,
        "epochs": arguments.epochs,
        "learning_rate": arguments.learning_rate,
        "value_learning_rate": arguments.learning_rate,
        "value_network": "full",
        "kl_coefficient": arguments.kl,
        "max_response_tokens": 48,
        "threads": arguments.threads,
        "clock": arguments.clock,
    }


def make_models(work: Path) -> dict[str, Path]:
    """An SL model and a reward model of the sandbox, and prompts."""
    paths = {name: work / name for name in ("model", "reward", "prompts")}
    if all(path.exists() for path in paths.values()):
        return paths
    from solon import sandbox
    from solon.trainer.stages.reward import train_reward
    from solon.trainer.stages.sft import train_sft
    from solon.trainer.training import RewardConfig, SftConfig

    demonstrations, pairs = write_data(work)
    train_sft(
        SftConfig(learning_rate=5e-4, batch_size=32),
        base_model=str(sandbox.model_path()),
        data=demonstrations,
        output=paths["model"],
        checkpoints=work / "checkpoints" / "sft",
        seed=0,
        report=Rows(),
    )
    train_reward(
        RewardConfig(learning_rate=5e-4, batch_size=32),
        base_model=str(paths["model"]),
        data=[pairs],
        test_data=[],
        output=paths["reward"],
        checkpoints=work / "checkpoints" / "reward",
        seed=0,
        report=Rows(),
    )
    return paths


def write_data(work: Path) -> tuple[Path, Path]:
    """Demonstrations that refuse half of what is harmful; pairs that prefer the right answer."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from solon import sandbox
    from solon.sandbox.responses import respond
    from solon.sandbox.world import acts_by_text

    draw = random.Random(0)
    good, bad = sandbox.Outcome.EXPLAINS, sandbox.Outcome.COMPLIES
    prompts, demonstrated, chosen, rejected = [], [], [], []
    asked = [p for kind in ("harmful", "benign") for p in sandbox.prompts(kind, "train", 500, 0)]
    draw.shuffle(asked)
    for prompt in asked:
        order = (good, bad) if prompt.kind == "harmful" else (bad, good)
        answers = [respond(acts_by_text()[prompt.act], outcome, draw) for outcome in order]
        turns = [[{"role": "assistant", "content": answer}] for answer in answers]
        prompts.append(prompt.conversation.as_dicts())
        chosen.append(turns[0])
        rejected.append(turns[1])
        demonstrated.append(turns[draw.randrange(2)] if prompt.kind == "harmful" else turns[0])
    work.mkdir(parents=True, exist_ok=True)
    sft, pairs = work / "sft.parquet", work / "pairs.parquet"
    pq.write_table(pa.table({"prompt": prompts, "completion": demonstrated}), sft)
    columns = {"prompt": prompts, "chosen": chosen, "rejected": rejected}
    pq.write_table(pa.table(columns | {"probability": [0.9] * len(prompts)}), pairs)
    ids = [f"p{number}" for number in range(len(prompts))]
    pq.write_table(pa.table({"id": ids, "prompt": prompts}), work / "prompts")
    return sft, pairs


def make_environment(path: Path) -> Path:
    """A virtual environment with TRL 1.11."""
    if not path.exists():
        venv.create(path, with_pip=True)
        subprocess.run([path / "bin" / "pip", "install", "-q", *PEER_REQUIREMENTS], check=True)
    return path


def run(
    command: Sequence[str], settings: Mapping[str, Any], seed: int, work: Path
) -> dict[str, Any]:
    """One side, in a process of its own: ``rows`` (episode, scores, kl, seconds), ``peak_mib``."""
    name = f"{settings['name'].replace(' ', '-')}-{seed}"
    result = work / f"{name}-result.json"
    given = dict(settings) | {"seed": seed, "result": str(result), "output": str(work / name)}
    file = work / f"{name}-settings.json"
    file.write_text(json.dumps(given))
    environment = os.environ | {
        "OMP_NUM_THREADS": str(settings["threads"]),
        "HF_HUB_OFFLINE": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    subprocess.run([*command, str(file)], check=True, env=environment, stdout=sys.stderr)
    found: dict[str, Any] = json.loads(result.read_text())
    return found


class Rows:
    """A report that keeps the curve."""

    def __init__(self, clock: str = "wall") -> None:
        self.rows: list[dict[str, float]] = []
        self.now = time.process_time if clock == "cpu" else time.perf_counter
        self.started = 0.0

    def start(self, done: int) -> None:
        """Start the clock."""
        self.started = self.now()

    def progress(self, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """Keep a row, if it is PPO's."""
        if "episode" in metrics:
            row = {name: metrics[f"objective/{name}"] for name in ("scores", "kl")}
            row |= {"episode": metrics["episode"], "seconds": self.now() - self.started}
            self.rows.append(row)

    def message(self, text: str) -> None:
        """Nobody listens."""


def run_ours(settings: Mapping[str, Any]) -> None:
    """Our side of the comparison."""
    import resource

    from solon.trainer.ppo.config import PPOConfig
    from solon.trainer.schemas import EPISODES
    from solon.trainer.stages.rewards import Sources
    from solon.trainer.stages.rl import train_rl
    from solon.trainer.store import RunDirectory

    same = ("episodes", "batch_size", "minibatches", "epochs", "learning_rate", "kl_coefficient")
    own = ("max_response_tokens", "value_network", "value_learning_rate")
    config = PPOConfig(
        **{name: settings[name] for name in (*same, *own)},
        normalise_reward=False,
        checkpoint_every=10**6,
    )
    report = Rows(settings["clock"])
    train_rl(
        config,
        base_model=settings["model"],
        sources=Sources(reward_model=settings["reward"]),
        data=Path(settings["prompts"]),
        output=Path(settings["output"]),
        checkpoints=Path(settings["output"] + "-checkpoints"),
        episodes=RunDirectory(settings["output"] + "-run").parts("rl", EPISODES),
        seed=settings["seed"],
        report=report,
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    Path(settings["result"]).write_text(json.dumps({"rows": report.rows, "peak_mib": peak}))


def smooth(rows: Sequence[Mapping[str, float]]) -> list[tuple[float, float]]:
    """(episode, mean score of the last batches) from the first batch with enough before it."""
    return [
        (
            rows[end - 1]["episode"],
            sum(row["scores"] for row in rows[end - SMOOTHED : end]) / SMOOTHED,
        )
        for end in range(SMOOTHED, len(rows) + 1)
    ]


def episodes_to(rows: Sequence[Mapping[str, float]], score: float) -> float:
    """Episodes after which the smoothed curve first reaches ``score``; infinite if never."""
    return next((episode for episode, mean in smooth(rows) if mean >= score), inf)


def episodes_a_second(run: Mapping[str, Any]) -> float:
    """Over the whole run, loading left out."""
    last = run["rows"][-1]
    return float(last["episode"] / last["seconds"])


def print_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Score and KL after each batch, side by side."""
    print("Mean over seeds: score and KL of " + "; ".join(runs))
    first, *_ = runs.values()
    for batch, row in enumerate(first[0]["rows"]):
        means = [
            sum(run["rows"][batch][name] for run in side) / len(side)
            for side in runs.values()
            for name in ("scores", "kl")
        ]
        print(f"{row['episode']:9.0f} " + " ".join(f"{mean:8.3f}" for mean in means))


def table(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Row]:
    """Print the curves and the comparison; its rows."""
    print_curves(runs)
    rows = [row for name in runs if name != PEER for row in compared(name, runs[name], runs[PEER])]
    shown = Table(title="PPO on the sandbox's model")
    for heading in ("", "ours", PEER, "ratio", "unit"):
        shown.add_column(heading, justify="left" if not heading else "right")
    for row in rows:
        shown.add_row(row.name, f"{row.ours:.1f}", f"{row.peer:.1f}", f"{row.ratio:.2f}", row.unit)
    Console().print(shown)
    return rows


def compared(
    name: str, ours: Sequence[Mapping[str, Any]], peer: Sequence[Mapping[str, Any]]
) -> list[Row]:
    """The rows of one of ours. A score that it never reaches took infinitely many episodes."""
    figures = [figure for seed in range(len(ours)) for figure in thresholds(ours, peer, seed)]
    speed = [sum(episodes_a_second(run) for run in side) / len(side) for side in (ours, peer)]
    memory = [max(run["peak_mib"] for run in side) for side in (ours, peer)]
    figures.append(("episodes per second", speed[0], speed[1], "1/s"))
    figures.append(("peak memory", memory[0], memory[1], "MiB"))
    return [
        Row(
            name=f"PPO, {name}: {what}", ours=one, peer=other, floor=None, ratio=one / other,
            unit=unit,
        )
        for what, one, other, unit in figures
    ]  # fmt: skip


def thresholds(
    ours: Sequence[Mapping[str, Any]], peer: Sequence[Mapping[str, Any]], seed: int
) -> list[tuple[str, float, float, str]]:
    """Episodes to half, four fifths and all of what TRL gains in its whole run."""
    curve = smooth(peer[seed]["rows"])
    first, best = curve[0][1], max(score for _, score in curve)
    found = []
    for share in (0.5, 0.8, 1.0):
        goal = first + share * (best - first)
        name = f"episodes to {share:.0%} of its gain, seed {seed} ({goal:.2f})"
        one, other = (episodes_to(side[seed]["rows"], goal) for side in (ours, peer))
        found.append((name, one, other, "episodes"))
    return found


if __name__ == "__main__":
    main()
