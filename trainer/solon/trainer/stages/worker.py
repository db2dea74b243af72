"""A training stage as a process: ``python -m solon.trainer.stages.worker STAGE --run DIR``.

In a later iteration with ``--iteration N``. Speaks JSON lines on stdout and nothing else::

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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeAlias

from solon.constitution import derive_seed
from solon.trainer.config import RunConfig, load_run_config, model_source
from solon.trainer.course import learns_by
from solon.trainer.errors import RunDirectoryError, StageFailed, StoreError, TrainerError, UserError
from solon.trainer.ranks import from_all, joined, rank
from solon.trainer.steps import MOST_ITERATIONS, Step

if TYPE_CHECKING:
    from solon.trainer.stages.judge_scores import Judge
    from solon.trainer.stages.policy_answers import PolicyAnswers

_SFT_DATA = "export/sft/train.parquet"
_RL_PROMPTS = "export/rl_prompts/train.parquet"
_SL = "models/sl"
_FULL_DISK = ("No space left", "os error 28", "Disk quota exceeded")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one stage; the exit code."""
    parser = argparse.ArgumentParser(prog="solon.trainer.stages.worker", description=__doc__)
    parser.add_argument("stage", choices=sorted(_STAGES))
    parser.add_argument("--run", type=Path, required=True, help="the run directory")
    parser.add_argument(
        "--iteration", type=int, default=1, choices=range(1, MOST_ITERATIONS + 1), help="which"
    )
    parser.add_argument(
        "--service",
        action="append",
        default=[],
        metavar="NAME=ADDRESS",
        help="of a service that the run has started, by its name among the run's services",
    )
    parser.add_argument(
        "--rendezvous", help="where several processes meet (default: as torchrun says)"
    )
    arguments = parser.parse_args(argv)
    events = _Events(_take_stdout())
    try:
        step = Step(arguments.stage, arguments.iteration)
        services = dict(one.split("=", 1) for one in arguments.service)
        metrics = _run(step, arguments.run, events, services, arguments.rendezvous)
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
    step: Step,
    run: Path,
    events: _Events,
    services: Mapping[str, str],
    rendezvous: str | None = None,
) -> dict[str, float]:
    config = load_run_config(run)
    for path, maker in _needs(step, config).items():
        if not (run / path).exists():
            raise RunDirectoryError(
                f"{run / path}: expected what the {maker} stage makes, it does not exist; run it"
            )
    _quieten_libraries()
    checkpoints = run / "checkpoints" / step.name
    checkpoints.mkdir(parents=True, exist_ok=True)
    first = rank() == 0
    report = (
        _RunReport(step.name, run / "metrics.jsonl", events, key=step.stage)
        if first
        else _Silence()
    )
    job = _Job(step=step, config=config, run=run, checkpoints=checkpoints, report=report)
    key, settings = learns_by(config, step.stage)
    with joined(settings.processes, key=key, rendezvous=rendezvous):
        metrics = _trains(step, config, services)(job)
    if first:
        shutil.rmtree(checkpoints)
    return metrics


def _needs(step: Step, config: RunConfig) -> dict[str, str]:
    """What the step reads -> the stage that makes it."""
    if step.stage == "sft":
        return {_SFT_DATA: "revisions"}
    pairs = {_pairs(step, "train"): "preferences"}
    if step.stage == "reward":
        return {_SL: "sft"} | pairs
    if config.rl.algorithm == "dpo":
        return {f"models/{step.policy}": "sft" if step.iteration == 1 else "rl"} | pairs
    scored = {f"models/{step.of('reward').model}": "reward"} if config.rl.has_reward_model else {}
    return {_SL: "sft", _RL_PROMPTS: "preferences"} | scored


def _pairs(step: Step, split: str) -> str:
    """The pairs of the step's iteration."""
    return f"export/{step.of('preferences').name}/{split}.parquet"


def _trains(step: Step, config: RunConfig, services: Mapping[str, str]) -> Train:
    if step.stage != "rl":
        return _STAGES[step.stage]
    return _dpo if config.rl.algorithm == "dpo" else partial(_rl, services=services)


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


def _sft(job: _Job) -> dict[str, float]:
    with _heavy_import():
        from solon.trainer.stages.sft import train_sft  # noqa: PLC0415

    config = job.config
    from_policy = config.sft.chat_format == "policy"
    return train_sft(
        config.sft,
        base_model=model_source(config.models.base_for_sft),
        data=job.run / _SFT_DATA,
        output=job.output,
        checkpoints=job.checkpoints,
        seed=job.seed,
        report=job.report,
        chat_model=model_source(config.models.policy) if from_policy else None,
    )


def _reward(job: _Job) -> dict[str, float]:
    with _heavy_import():
        from solon.trainer.stages.reward import FIGURES, train_reward  # noqa: PLC0415

    # of all iterations so far
    steps = [Step("reward", iteration) for iteration in range(1, job.step.iteration + 1)]

    def trained(output: Path, checkpoints: Path, half: int | None, report: StageReport) -> None:
        train_reward(
            job.config.reward,
            base_model=str(job.run / _SL),
            data=[job.run / _pairs(step, "train") for step in steps],
            test_data=[job.run / _pairs(step, "test") for step in steps],
            output=output,
            checkpoints=checkpoints,
            seed=derive_seed(job.seed, "test-model") if half else job.seed,
            report=report,
            half=half,
        )

    def figures(model: Path) -> dict[str, float]:
        text = (model / FIGURES).read_text(encoding="utf-8")
        found: dict[str, float] = json.loads(text)["metrics"]
        return found

    if not job.config.reward.test_model:
        trained(job.output, job.checkpoints, None, job.report)
        return figures(job.output)
    # first, since the stage is over when the other is there
    if not job.reward_test.exists():
        trained(job.reward_test, job.checkpoints / "test", 1, job.report.of(job.reward_test.name))
    trained(job.output, job.checkpoints, 0, job.report)
    of_test = {f"test_model/{name}": value for name, value in figures(job.reward_test).items()}
    return figures(job.output) | of_test


def _rl(job: _Job, services: Mapping[str, str] | None = None) -> dict[str, float]:
    with _heavy_import():
        from solon.trainer.schemas import EPISODES  # noqa: PLC0415
        from solon.trainer.stages.rewards import Sources  # noqa: PLC0415
        from solon.trainer.stages.rl import train_rl  # noqa: PLC0415
        from solon.trainer.store import RunDirectory  # noqa: PLC0415

    config = job.config
    reward = job.run / "models" / job.step.of("reward").model
    with (
        _judge(config, job.run, services or {}, job.report) as connected,
        _policy(config, job.run, services or {}) as answers,
    ):
        return train_rl(
            config.rl,
            base_model=str(job.run / _SL),
            sources=Sources(
                reward_model=str(reward) if config.rl.has_reward_model else None,
                reward_device=config.services.reward_device,
                judge=connected,
                test_model=str(job.reward_test) if job.reward_test.exists() else None,
            ),
            data=job.run / _RL_PROMPTS,
            output=job.output,
            checkpoints=job.checkpoints,
            episodes=RunDirectory(str(job.run)).parts(job.step.name, EPISODES),
            seed=job.seed,
            report=job.report,
            iteration=job.step.iteration,
            answers=answers,
        )


def _dpo(job: _Job) -> dict[str, float]:
    with _heavy_import():
        from solon.trainer.stages.dpo import train_dpo  # noqa: PLC0415

    return train_dpo(
        job.config.dpo,
        base_model=str(job.run / "models" / job.step.policy),
        data=[job.run / _pairs(job.step, "train")],
        test_data=[job.run / _pairs(job.step, "test")],
        output=job.output,
        checkpoints=job.checkpoints,
        seed=job.seed,
        report=job.report,
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


@contextmanager
def _policy(
    config: RunConfig, run: Path, addresses: Mapping[str, str]
) -> Iterator[PolicyAnswers | None]:
    """The policy service, if it samples; it is the first process that asks it."""
    if not config.rl.is_served or rank() > 0:
        yield None
        return
    from solon.trainer.session import saved_constitution  # noqa: PLC0415 - as below
    from solon.trainer.stages.policy_answers import open_policy  # noqa: PLC0415 - imports gRPC
    from solon.trainer.store import RunDirectory  # noqa: PLC0415 - as above

    constitution = saved_constitution(RunDirectory(str(run)))
    with open_policy(config, constitution, addresses=addresses, log_dir=run / "logs") as answers:
        yield answers


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

    def __init__(self, step: str, metrics: Path, events: _Events, *, key: str) -> None:
        """``step``: how rows name it; ``key``: the stage's part of the configuration."""
        self._step, self._metrics, self._events = step, metrics, events
        self._key = key

    def of(self, name: str) -> _RunReport:
        """The same for another model of the step, whose rows and events have its own name."""
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
        return bool(row["stage"] == self._step and row["step"] > done)

    def progress(self, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """One event and one row."""
        broken = [name for name, value in metrics.items() if not math.isfinite(value)]
        if broken:
            raise StageFailed(
                f"{self._step}: {broken[0]} is {metrics[broken[0]]!r} at step {done} of {total}: "
                f"training diverged; lower {self._key}.learning_rate"
            )
        self._events.send(
            event="progress", stage=self._step, done=done, total=total, metrics=dict(metrics)
        )
        row = {"stage": self._step, "step": done, "time": time.time(), **metrics}
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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """One step to be made."""

    step: Step
    config: RunConfig
    run: Path
    checkpoints: Path
    report: StageReport

    @property
    def seed(self) -> int:
        return self.step.seed(self.config.seed)

    @property
    def output(self) -> Path:
        return self.run / "models" / self.step.model

    @property
    def reward_test(self) -> Path:
        """The held-out reward model of the iteration, which there need not be."""
        return self.run / "models" / self.step.at("reward_test")


Train = Callable[[_Job], dict[str, float]]

_STAGES: Mapping[str, Train] = {
    "sft": _sft,
    "reward": _reward,
    "rl": _rl,
}

if __name__ == "__main__":
    sys.exit(main())
