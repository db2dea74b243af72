"""Which stages of a run are done, how long they took, and what they counted.

Knows nothing of what a stage does.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from solon.trainer.errors import RunDirectoryError
from solon.trainer.stage_names import STAGES, Stage
from solon.trainer.store import STATE_NAME, RunDirectory

__all__ = ["STAGES", "Origin", "RunState", "Stage", "StageKey"]

_FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class StageKey:
    """Digests (hex) of all that decides a stage's result; see ``lineage``."""

    records: str
    """Of what decides the stage's records: the same key, the same records."""
    result: str
    """Of that and of what decides what was made of the records: the same key, the same stage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """The run that made a stage's result, which this run took over."""

    run: str
    """Its directory."""
    seconds: float
    """Wall time that the stage took there."""
    whole: bool = True
    """Whether all of the result came from there; or records alone, of which this run made more."""


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

    def key(self, stage: Stage) -> StageKey | None:
        """What decided the stage's result; None if it is not done, or that is not known."""
        found = self._stages.get(stage, {}).get("key")
        return StageKey(**found) if found else None

    def origin(self, stage: Stage) -> Origin | None:
        """The run that the stage's result or records come from; None if this run made them."""
        found = self._stages.get(stage, {}).get("taken_from")
        return Origin(**found) if found else None

    def spent(self, stage: Stage, seconds: float) -> None:
        """An attempt at the stage ended early after so many seconds."""
        self._write(stage, seconds=self.seconds(stage) + seconds, origin=self.origin(stage))

    def finish(
        self, stage: Stage, seconds: float, summary: dict[str, Any], key: StageKey | None = None
    ) -> None:
        """The stage is done; its last attempt took so many seconds."""
        self._write(
            stage,
            done=True,
            seconds=self.seconds(stage) + seconds,
            summary=summary,
            key=key,
            origin=self.origin(stage),
        )

    def taking(self, stage: Stage, origin: Origin) -> None:
        """Result or records are about to be taken over: noted first, lest a kill hide it."""
        self._write(stage, seconds=self.seconds(stage), origin=origin)

    def taken(
        self, stage: Stage, origin: Origin, summary: dict[str, Any], key: StageKey | None
    ) -> None:
        """The stage is done; its result was taken over whole."""
        self._write(stage, done=True, summary=summary, key=key, origin=origin)

    def _write(
        self,
        stage: Stage,
        *,
        done: bool = False,
        seconds: float = 0.0,
        summary: dict[str, Any] | None = None,
        key: StageKey | None = None,
        origin: Origin | None = None,
    ) -> None:
        entry: dict[str, Any] = {
            "done": done,
            "seconds": round(seconds, 3),
            "summary": summary or {},
        }
        entry |= {"key": asdict(key)} if key else {}
        entry |= {"taken_from": asdict(origin)} if origin else {}
        self._stages[stage] = entry
        self._run.write_json(STATE_NAME, {"format": _FORMAT, "stages": self._stages})
