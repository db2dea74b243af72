"""Which stages of a run are done, how long they took, and what they counted.

Knows nothing of what a stage does.
"""

from __future__ import annotations

from typing import Any, Literal

from solon.trainer.errors import RunDirectoryError
from solon.trainer.store import STATE_NAME, RunDirectory

Stage = Literal["revisions", "sft", "preferences", "reward", "rl", "evaluate"]
STAGES: tuple[Stage, ...] = ("revisions", "sft", "preferences", "reward", "rl", "evaluate")
"""In the order of a run."""

_FORMAT = 1


class RunState:
    """The state file, written whole after every change."""

    def __init__(self, run: RunDirectory) -> None:
        """Read it.

        Raises:
            RunDirectoryError: A later version of Solon wrote it.
        """
        self._run = run
        found = run.read_json(STATE_NAME) or {"format": _FORMAT, "stages": {}}
        if found.get("format") != _FORMAT:
            raise RunDirectoryError(
                f"{run.url}/{STATE_NAME}: expected format {_FORMAT}, got "
                f"{found.get('format')!r}; it was written by another version of Solon"
            )
        self._stages: dict[str, dict[str, Any]] = found["stages"]

    def is_done(self, stage: Stage) -> bool:
        """Whether the stage has finished."""
        return bool(self._stages.get(stage, {}).get("done", False))

    def seconds(self, stage: Stage) -> float:
        """Wall time of the stage over all attempts that were not killed, in seconds."""
        return float(self._stages.get(stage, {}).get("seconds", 0.0))

    def summary(self, stage: Stage) -> dict[str, Any]:
        """What the stage counted; empty until it is done."""
        return dict(self._stages.get(stage, {}).get("summary", {}))

    def spent(self, stage: Stage, seconds: float) -> None:
        """An attempt at the stage ended early after so many seconds."""
        self._write(stage, self.seconds(stage) + seconds, done=False, summary={})

    def finish(self, stage: Stage, seconds: float, summary: dict[str, Any]) -> None:
        """The stage is done; its last attempt took so many seconds."""
        self._write(stage, self.seconds(stage) + seconds, done=True, summary=summary)

    def _write(self, stage: Stage, seconds: float, *, done: bool, summary: dict[str, Any]) -> None:
        entry = {"done": done, "seconds": round(seconds, 3), "summary": summary}
        self._stages[stage] = entry
        self._run.write_json(STATE_NAME, {"format": _FORMAT, "stages": self._stages})
