"""A dry run as a person at a terminal sees it. Knows nothing of how it was made."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich.table import Table

from solon.trainer.config import to_yaml
from solon.trainer.forecast.budget import Use
from solon.trainer.forecast.dry_run import DryRun
from solon.trainer.forecast.hardware import BANDWIDTH_SHARE, GIB, UTILISATION
from solon.trainer.forecast.workload import EXPECTED_SHARE
from solon.trainer.stage_names import STAGES

if TYPE_CHECKING:
    from rich.console import Console


def show(found: DryRun, console: Console) -> None:
    """The resolved plan, what it asks of models, memory and time; then what is worth knowing."""
    console.print("What differs from the defaults (`solon keys`):")
    console.print(to_yaml(found.config, defaults=False), markup=False, soft_wrap=True)
    for role, model in found.models.items():
        context = "unknown" if model.context is None else f"{model.context:,}"
        console.print(
            f"models.{role}: {model.name}: {model.parameters:,} parameters, "
            f"{model.stored_bytes / GIB:.2f} GiB, context {context}",
            markup=False,
            soft_wrap=True,
        )
    for name, fact in found.facts.items():
        console.print(f"{name}: {fact}", markup=False, soft_wrap=True)
    if found.work is not None:
        console.print(_calls(found))
    if found.budget is not None and found.budget.uses:
        console.print(_memory(found))
        for index in found.budget.devices if found.gpus else ():
            stage, needed = found.budget.most(index)
            console.print(
                f"device {index} ({found.gpus[index].name}): at most {needed / GIB:.1f} of "
                f"{found.gpus[index].memory / GIB:.0f} GiB, in {stage}"
            )
    if found.budget is not None and found.budget.seconds:
        _show_time(found, console)
    for note in found.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    if found.problems:
        return
    is_known = found.budget is not None and not found.budget.unknown
    console.print(
        "All is well: nothing was started."
        if is_known
        else "No problem was found in what could be looked at; nothing was started."
    )


def _calls(found: DryRun) -> Table:
    assert found.work is not None
    table = Table(title="What the models are asked", title_justify="left")
    for heading in ("stage", "role", "calls", "prompt tokens", "completion tokens", "at most"):
        table.add_column(heading, justify="left" if heading in ("stage", "role") else "right")
    for one in found.work.calls:
        counts = (one.calls, one.prompt_tokens, one.completion_tokens, one.most_completion_tokens)
        table.add_row(one.stage, one.role, *(f"{count:,}" for count in counts))
    for training in found.work.trainings:
        what = f"{training.steps:,} steps, {training.records:,} records"
        table.add_row(training.stage, "training", what, f"{training.tokens:,}", "", "")
    return table


def _memory(found: DryRun) -> Table:
    assert found.budget is not None
    table = Table(title="Memory in GiB, at most", title_justify="left")
    for heading in ("stage", "process", "device", "GiB", "of which"):
        table.add_column(heading, justify="right" if heading in ("device", "GiB") else "left")
    for same in _alike(found.budget.uses):
        use = same[0]
        large = {name: size for name, size in use.parts.items() if size >= 0.05 * use.total}
        parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in large.items())
        device = found.gpus[use.device].name if found.gpus else "machine"
        where = str(use.device) if len(same) == 1 else f"{use.device}-{same[-1].device}"
        shown = f"{where} {device}" if found.gpus else device
        count = "" if len(same) == 1 else f"{len(same)} x "
        table.add_row(
            use.stage, use.process.split(",")[0], shown, f"{count}{use.total / GIB:.1f}", parts
        )
    return table


def _alike(uses: Sequence[Use]) -> list[list[Use]]:
    """The ranks of a stage together, since each takes the same of its device."""
    groups = groupby(uses, key=lambda use: (use.stage, use.process.split(", rank")[0], use.total))
    return [list(same) for _, same in groups]


def _show_time(found: DryRun, console: Console) -> None:
    assert found.budget is not None
    seconds = found.budget.seconds
    parts = [f"{stage} {_duration(seconds[stage])}" for stage in STAGES if stage in seconds]
    console.print(f"Time: {', '.join(parts)}; in all {_duration(sum(seconds.values()))}")
    console.print(
        f"It assumes answers of {EXPECTED_SHARE:.0%} of their limits, {UTILISATION:.0%} of the "
        f"peak FLOP/s of {found.gpus[0].name} in training and reading, {BANDWIDTH_SHARE:.0%} of "
        "its memory's bandwidth in writing, and full batches. Expect it to be right within a "
        "factor of two or three.",
        soft_wrap=True,
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1.0, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
