"""A training stage as a process: ``python -m solon.trainer.stages.worker STAGE --run DIR``.

Speaks JSON lines on stdout and nothing else::

    {"event": "progress", "stage": "rl", "done": 12, "total": 80, "metrics": {...}}
    {"event": "message", "text": "..."}
    {"event": "error", "kind": "user" | "internal", "text": "...", "at": 1234.5}
    {"event": "done", "metrics": {...}}

Exit code 0, 2 for the user's mistake, 1 for anything else. It may be one of several processes that
train together (see ``ranks``), of which the first tells how far they are. Knows where a run
directory keeps what; the stages know how to train. A stage that was killed goes on from its last
checkpoint.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeAlias

from solon.constitution import derive_seed
from solon.trainer.config import RunConfig, load_run_config, model_source
from solon.trainer.course import learns_by
from solon.trainer.errors import RunDirectoryError, StageFailed, StoreError, TrainerError, UserError
from solon.trainer.ranks import from_all, joined, rank

if TYPE_CHECKING:
    from solon.trainer.stages.judge_scores import Judge

_SFT_DATA = "export/sft/train.parquet"
_PAIRS = "export/preferences/train.parquet"
_TEST_PAIRS = "export/preferences/test.parquet"
_RL_PROMPTS = "export/rl_prompts/train.parquet"
_SL, _REWARD, _RL = "models/sl", "models/reward", "models/rl"
_REWARD_TEST = "models/reward_test"
_NEEDS: Mapping[str, Mapping[str, str]] = {
    "sft": {_SFT_DATA: "revisions"},
    "reward": {_SL: "sft", _PAIRS: "preferences"},
    "rl": {_SL: "sft", _REWARD: "reward", _RL_PROMPTS: "preferences"},
}
"""Stage -> what it reads -> the stage that makes it."""
_FULL_DISK = ("No space left", "os error 28", "Disk quota exceeded")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one stage; the exit code."""
    parser = argparse.ArgumentParser(prog="solon.trainer.stages.worker", description=__doc__)
    parser.add_argument("stage", choices=sorted(_STAGES))
    parser.add_argument("--run", type=Path, required=True, help="the run directory")
    parser.add_argument(
        "--judge",
        action="append",
        default=[],
        metavar="NAME=ADDRESS",
        help="of a judge that the run has started, by its name among the run's services",
    )
    parser.add_argument(
        "--rendezvous", help="where several processes meet (default: as torchrun says)"
    )
    arguments = parser.parse_args(argv)
    events = _Events(_take_stdout())
    try:
        judges = dict(one.split("=", 1) for one in arguments.judge)
        metrics = _run(arguments.stage, arguments.run, events, judges, arguments.rendezvous)
    except TrainerError as error:
        events.failure(str(error), user_error=isinstance(error, UserError))
        return error.exit_code
    except Exception as error:
        # the process's last resort: whatever it was, the coordinator is to hear of it in words
        at = time.monotonic()
        traceback.print_exc()
        full = _disk_is_full(error)
        text = f"the disk is full: {error}" if full else f"{type(error).__name__}: {error}"
        events.failure(text, user_error=full, at=at)
        return StoreError.exit_code if full else 1
    events.send(event="done", metrics=metrics)
    return 0


def _take_stdout() -> TextIO:
    """Keep the real stdout for events; let whatever libraries print there go to stderr."""
    sys.stdout.flush()
    own = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(own, "w", encoding="utf-8", buffering=1)


def _disk_is_full(error: Exception) -> bool:
    # safetensors and torch raise errors of their own, with the system's words in them
    return any(words in str(error) for words in _FULL_DISK)


def _run(
    stage: str,
    run: Path,
    events: _Events,
    judges: Mapping[str, str],
    rendezvous: str | None = None,
) -> dict[str, float]:
    config = load_run_config(run)
    for path, maker in _needs(stage, config).items():
        if not (run / path).exists():
            raise RunDirectoryError(
                f"{run / path}: expected what the {maker} stage makes, it does not exist; run it"
            )
    _quieten_libraries()
    checkpoints = run / "checkpoints" / stage
    checkpoints.mkdir(parents=True, exist_ok=True)
    first = rank() == 0
    report = _RunReport(stage, run / "metrics.jsonl", events) if first else _Silence()
    key, settings = learns_by(config, stage)
    with joined(settings.processes, key=key, rendezvous=rendezvous):
        metrics = _trains(stage, config, judges)(config, run, checkpoints, report)
    if first:
        shutil.rmtree(checkpoints)
    return metrics


def _needs(stage: str, config: RunConfig) -> dict[str, str]:
    if stage == "rl" and config.rl.algorithm == "dpo":
        return {_SL: "sft", _PAIRS: "preferences"}
    without_model = stage == "rl" and not config.rl.has_reward_model
    return {p: maker for p, maker in _NEEDS[stage].items() if not (without_model and p == _REWARD)}


def _trains(stage: str, config: RunConfig, judges: Mapping[str, str]) -> Train:
    if stage != "rl":
        return _STAGES[stage]
    return _dpo if config.rl.algorithm == "dpo" else partial(_rl, judges=judges)


def _quieten_libraries() -> None:
    """Nothing phones home, and stderr holds warnings that mean something."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with _heavy_import():
        from transformers.utils import logging  # noqa: PLC0415 - the variables come first

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@contextmanager
def _heavy_import() -> Iterator[None]:
    """Without the garbage collector: it takes a sixth of the time, and what is imported stays."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _sft(config: RunConfig, run: Path, checkpoints: Path, report: StageReport) -> dict[str, float]:
    with _heavy_import():
        from solon.trainer.stages.sft import train_sft  # noqa: PLC0415

    from_policy = config.sft.chat_format == "policy"
    return train_sft(
        config.sft,
        base_model=model_source(config.models.base_for_sft),
        data=run / _SFT_DATA,
        output=run / _SL,
        checkpoints=checkpoints,
        seed=config.seed,
        report=report,
        chat_model=model_source(config.models.policy) if from_policy else None,
    )


def _reward(
    config: RunConfig, run: Path, checkpoints: Path, report: StageReport
) -> dict[str, float]:
    with _heavy_import():
        from solon.trainer.stages.reward import FIGURES, train_reward  # noqa: PLC0415

    def trained(output: Path, checkpoints: Path, half: int | None, report: StageReport) -> None:
        train_reward(
            config.reward,
            base_model=str(run / _SL),
            data=run / _PAIRS,
            test_data=run / _TEST_PAIRS,
            output=output,
            checkpoints=checkpoints,
            seed=derive_seed(config.seed, "test-model") if half else config.seed,
            report=report,
            half=half,
        )

    def figures(model: str) -> dict[str, float]:
        text = (run / model / FIGURES).read_text(encoding="utf-8")
        found: dict[str, float] = json.loads(text)["metrics"]
        return found

    if not config.reward.test_model:
        trained(run / _REWARD, checkpoints, None, report)
        return figures(_REWARD)
    # first, since the stage is over when the other is there
    if not (run / _REWARD_TEST).exists():
        trained(run / _REWARD_TEST, checkpoints / "test", 1, report.of("reward_test"))
    trained(run / _REWARD, checkpoints, 0, report)
    of_test = {f"test_model/{name}": value for name, value in figures(_REWARD_TEST).items()}
    return figures(_REWARD) | of_test


def _rl(
    config: RunConfig,
    run: Path,
    checkpoints: Path,
    report: StageReport,
    judges: Mapping[str, str] | None = None,
) -> dict[str, float]:
    with _heavy_import():
        from solon.trainer.schemas import EPISODES  # noqa: PLC0415
        from solon.trainer.stages.rewards import Sources  # noqa: PLC0415
        from solon.trainer.stages.rl import train_rl  # noqa: PLC0415
        from solon.trainer.store import EPISODES_FOLDER, RunDirectory  # noqa: PLC0415

    with _judge(config, run, judges or {}, report) as connected:
        return train_rl(
            config.rl,
            base_model=str(run / _SL),
            sources=Sources(
                reward_model=str(run / _REWARD) if config.rl.has_reward_model else None,
                reward_device=config.services.reward_device,
                judge=connected,
                test_model=str(run / _REWARD_TEST) if (run / _REWARD_TEST).exists() else None,
            ),
            data=run / _RL_PROMPTS,
            output=run / _RL,
            checkpoints=checkpoints,
            episodes=RunDirectory(str(run)).parts(EPISODES_FOLDER, EPISODES),
            seed=config.seed,
            report=report,
        )


def _dpo(config: RunConfig, run: Path, checkpoints: Path, report: StageReport) -> dict[str, float]:
    with _heavy_import():
        from solon.trainer.stages.dpo import train_dpo  # noqa: PLC0415

    return train_dpo(
        config.dpo,
        base_model=str(run / _SL),
        data=run / _PAIRS,
        test_data=run / _TEST_PAIRS,
        output=run / _RL,
        checkpoints=checkpoints,
        seed=config.seed,
        report=report,
    )


@contextmanager
def _judge(
    config: RunConfig, run: Path, addresses: Mapping[str, str], report: StageReport
) -> Iterator[Judge | None]:
    """The judge or panel, if it rewards; at the end it is told what it had no score for."""
    if not config.rl.reward.judge:
        yield None
        return
    from solon.trainer.session import saved_constitution  # noqa: PLC0415 - as below
    from solon.trainer.stages.judge_scores import open_judge  # noqa: PLC0415 - imports gRPC
    from solon.trainer.store import RunDirectory  # noqa: PLC0415 - as above

    constitution = saved_constitution(RunDirectory(str(run)))
    with open_judge(config, constitution, addresses=addresses, log_dir=run / "logs") as judge:
        try:
            yield judge
            judge.gather(from_all)
        finally:
            for line in judge.told():
                report.message(f"rl: {line}")


class _Events:
    """The JSON lines."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def send(self, **event: object) -> None:
        """One line. Not-a-number is no JSON, and is refused."""
        self._out.write(json.dumps(event, allow_nan=False) + "\n")

    def failure(self, text: str, *, user_error: bool, at: float | None = None) -> None:
        """The last event. ``at``: when it was noticed, by the monotonic clock; None: now."""
        kind = "user" if user_error else "internal"
        self.send(event="error", kind=kind, text=text, at=time.monotonic() if at is None else at)


class _RunReport:
    """Progress as events, metrics also as rows of ``metrics.jsonl``."""

    def __init__(
        self, stage: str, metrics: Path, events: _Events, *, key: str | None = None
    ) -> None:
        """``key``: the stage's part of the configuration; None: it has the stage's name."""
        self._stage, self._metrics, self._events = stage, metrics, events
        self._key = key or stage

    def of(self, name: str) -> _RunReport:
        """The same for another model of the stage, whose rows and events have its own name."""
        return _RunReport(name, self._metrics, self._events, key=self._key)

    def start(self, done: int) -> None:
        """Drop the rows of steps that will be made again."""
        if not self._metrics.exists():
            return
        lines = self._metrics.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if not self._is_void(line, done)]
        temporary = self._metrics.with_suffix(f".tmp-{os.getpid()}")
        temporary.write_text("".join(kept), encoding="utf-8")
        temporary.replace(self._metrics)

    def _is_void(self, line: str, done: int) -> bool:
        if not line.endswith("\n"):
            return True  # a kill cut it short
        row = json.loads(line)
        return bool(row["stage"] == self._stage and row["step"] > done)

    def progress(self, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """One event and one row."""
        broken = [name for name, value in metrics.items() if not math.isfinite(value)]
        if broken:
            raise StageFailed(
                f"{self._stage}: {broken[0]} is {metrics[broken[0]]!r} at step {done} of {total}: "
                f"training diverged; lower {self._key}.learning_rate"
            )
        self._events.send(
            event="progress", stage=self._stage, done=done, total=total, metrics=dict(metrics)
        )
        row = {"stage": self._stage, "step": done, "time": time.time(), **metrics}
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def message(self, text: str) -> None:
        """One event."""
        self._events.send(event="message", text=text)


class _Silence:
    """What the processes after the first tell: it would be the same."""

    def of(self, name: str) -> _Silence:
        """Of another model neither."""
        return self

    def start(self, done: int) -> None:
        """Rows are the first one's to drop."""

    def progress(self, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """The first one tells it."""

    def message(self, text: str) -> None:
        """Likewise."""


StageReport: TypeAlias = _RunReport | _Silence
Train = Callable[[RunConfig, Path, Path, StageReport], dict[str, float]]

_STAGES: Mapping[str, Train] = {
    "sft": _sft,
    "reward": _reward,
    "rl": _rl,
}

if __name__ == "__main__":
    sys.exit(main())
