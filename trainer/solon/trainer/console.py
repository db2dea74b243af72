"""What a person at a terminal, or in a log file, sees of a run.

On a terminal progress bars with rate and remaining time; elsewhere a line now and then. Knows
nothing of how a stage works.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import rich.console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from solon.trainer.snapshots import is_snapshot

_LINE_SECONDS = 10.0
"""Between two lines of progress where there is no terminal."""
_METRICS = {
    "loss": "loss",
    "objective/scores": "score",
    "objective/kl": "KL",
    "eval_accuracy": "accuracy",
}
"""Metrics worth a place beside the bar -> what to call them."""


class RunConsole:
    """Where a run is shown."""

    def __init__(self) -> None:
        """Progress goes to standard error, results to standard output."""
        self._console = rich.console.Console(stderr=True, highlight=False)
        self._results = rich.console.Console(highlight=False)

    def say(self, text: str) -> None:
        """One sentence, as it is."""
        self._console.print(text, markup=False, soft_wrap=True)

    def result(self, shown: Table | str) -> None:
        """What the run was for."""
        self._results.print(shown, markup=False, soft_wrap=isinstance(shown, str))

    @contextmanager
    def stage(self, name: str) -> Iterator[StageProgress]:
        """Show a stage for as long as the block runs."""
        if self._console.is_terminal:
            with self._bars() as bars:
                task = bars.add_task(name, total=None, rate="", metrics="")
                yield StageProgress(self, name, bars, task)
        else:
            yield StageProgress(self, name, None, TaskID(0))

    def _bars(self) -> Progress:
        return Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"),
            console=self._console,
        )


class StageProgress:
    """One stage's progress: its done and total, the rate, the remaining time."""

    def __init__(self, shown: RunConsole, name: str, bars: Progress | None, task: TaskID) -> None:
        """See ``RunConsole.stage``."""
        self._shown = shown
        self._name = name
        self._bars = bars
        self._task = task
        self._total = 0.0
        self._done = 0.0
        self._first = 0.0
        self._metrics = ""
        self._since = self._told = time.monotonic()

    def start(self, total: float, done: float) -> None:
        """There is so much to do, and so much was done before."""
        is_resumed = done > 0 and not self._total
        self._total, self._done, self._first = total, done, done
        self._since = self._told = time.monotonic()
        if is_resumed:
            self.note(f"{self._name}: {done:g} of {total:g} are there already")
        self._tell()

    def advance(self) -> None:
        """One more."""
        self._done += 1
        self._tell()

    def update(self, done: float, total: float, metrics: Mapping[str, float]) -> None:
        """A training stage's progress."""
        if not self._total:
            self.start(total, 0)
            self._first = done
        self._done = done
        shown = [f"{name} {metrics[key]:.3g}" for key, name in _METRICS.items() if key in metrics]
        self._metrics = ", ".join(shown) or self._metrics
        self._tell()

    def note(self, text: str) -> None:
        """One sentence."""
        self._shown.say(text)

    def _tell(self) -> None:
        rate = (self._done - self._first) / max(time.monotonic() - self._since, 1e-9)
        if self._bars:
            self._bars.update(
                self._task,
                total=self._total,
                completed=self._done,
                rate=f"{rate:.1f}/s",
                metrics=self._metrics,
            )
            return
        now = time.monotonic()
        if now - self._told >= _LINE_SECONDS:
            self._told = now
            left = f"{(self._total - self._done) / rate:.0f} s left" if rate else "not moving"
            metrics = f", {self._metrics}" if self._metrics else ""
            self._shown.say(
                f"{self._name}: {self._done:g}/{self._total:g}, {rate:.1f}/s, {left}{metrics}"
            )


def models_table(evaluation: Mapping[str, Any]) -> Table:
    """The models by ground truth, or by the judge's preference where there is none."""
    measured: Mapping[str, Mapping[str, Mapping[str, Any]]] = evaluation["models"]
    models = {name: of for name, of in measured.items() if not is_snapshot(name)}
    measures = list(dict.fromkeys(name for of in models.values() for name in of))
    table = Table(title="Held-out prompts", title_justify="left")
    table.add_column("")
    for model in models:
        table.add_column(model, justify="right")
    for name in measures:
        figures = (_rate(of[name]) if name in of else "" for of in models.values())
        table.add_row(name.replace("_", " "), *figures)
    return table


def snapshots_table(evaluation: Mapping[str, Any]) -> Table | None:
    """The policy on its way, a row a snapshot; None if none was measured."""
    snapshots = {name: of for name, of in evaluation["models"].items() if is_snapshot(name)}
    if not snapshots:
        return None
    measures = list(dict.fromkeys(name for of in snapshots.values() for name in of))
    table = Table(title="The policy on its way (rl@batches)", title_justify="left")
    table.add_column("")
    for name in measures:
        table.add_column(name.replace("_", " "), justify="right")
    for name, of in snapshots.items():
        table.add_row(name, *(_rate(of[measure]) for measure in measures))
    return table


def judge_sentence(evaluation: Mapping[str, Any]) -> str:
    """How far the judge can be trusted, in words."""
    judge = evaluation["judge"]
    if not judge["n"]:
        return "The judge was not measured: no two models' responses could be compared."
    right = "unknown" if judge["accuracy"] is None else f"{judge['accuracy']:.1%}"
    return (
        f"Judge, on {judge['n']} held-out pairs in both orders: accuracy {right}, "
        f"position bias {judge['position_bias'] or 0:.1%}"
    )


def times_sentence(seconds: Mapping[str, float]) -> str:
    """Wall time by stage."""
    parts = [f"{name} {spent:.0f} s" for name, spent in seconds.items() if spent]
    return f"Time: {', '.join(parts)}; in all {sum(seconds.values()):.0f} s"


def _rate(value: Mapping[str, Any]) -> str:
    share, cases = value["rate"], value["n"]
    return "-" if share is None else f"{share:.1%} ({round(share * cases)}/{cases})"
