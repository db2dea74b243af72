"""Snapshots of a policy that is being trained: where they lie, and what they are called.

Beside the model that training leaves at ``models/rl``: ``models/rl-snapshots/batch-000040``, which
is ``rl@40``; and so beside ``models/rl-2``. Knows nothing of training or of models.
"""

from __future__ import annotations

from pathlib import Path

_BATCH = "batch-"
_MARK = "@"


def is_snapshot(model: str) -> bool:
    """Whether it is a policy on its way, such as ``rl@40``, and no stage's result."""
    return _MARK in model


def snapshot_folder(output: Path, batch: int) -> Path:
    """Where the policy is kept as it was after so many batches."""
    return _beside(output) / f"{_BATCH}{batch:06d}"


def snapshot_folders(output: Path) -> dict[str, Path]:
    """Snapshot -> its directory, in the order in which they were taken."""
    folders = sorted(_beside(output).glob(f"{_BATCH}??????"))
    batches = [int(folder.name.removeprefix(_BATCH)) for folder in folders]
    names = [f"{output.name}{_MARK}{batch}" for batch in batches]
    return dict(zip(names, folders, strict=True))


def _beside(output: Path) -> Path:
    return output.with_name(f"{output.name}-snapshots")
