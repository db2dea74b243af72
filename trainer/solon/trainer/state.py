"""Which steps of a run are done, how long they took, and what they counted.

Knows nothing of what a step does.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from solon.trainer.errors import RunDirectoryError
from solon.trainer.store import STATE_NAME, RunDirectory

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
    """The state file, written whole after every change. Steps go by their names (``steps``)."""

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

    def is_done(self, step: str) -> bool:
        """Whether the step has finished."""
        return bool(self._stages.get(step, {}).get("done", False))

    def seconds(self, step: str) -> float:
        """Wall time of the step over all attempts that were not killed, in seconds."""
        return float(self._stages.get(step, {}).get("seconds", 0.0))

    def summary(self, step: str) -> dict[str, Any]:
        """What the step counted; empty until it is done."""
        return dict(self._stages.get(step, {}).get("summary", {}))

    def key(self, step: str) -> StageKey | None:
        """What decided the step's result; None if it is not done, or that is not known."""
        found = self._stages.get(step, {}).get("key")
        return StageKey(**found) if found else None

    def origin(self, step: str) -> Origin | None:
        """The run that the step's result or records come from; None if this run made them."""
        found = self._stages.get(step, {}).get("taken_from")
        return Origin(**found) if found else None

    def spent(self, step: str, seconds: float) -> None:
        """An attempt at the step ended early after so many seconds."""
        self._write(step, seconds=self.seconds(step) + seconds, origin=self.origin(step))

    def finish(
        self, step: str, seconds: float, summary: dict[str, Any], key: StageKey | None = None
    ) -> None:
        """The step is done; its last attempt took so many seconds."""
        self._write(
            step,
            done=True,
            seconds=self.seconds(step) + seconds,
            summary=summary,
            key=key,
            origin=self.origin(step),
        )

    def taking(self, step: str, origin: Origin) -> None:
        """Result or records are about to be taken over: noted first, lest a kill hide it."""
        self._write(step, seconds=self.seconds(step), origin=origin)

    def taken(
        self, step: str, origin: Origin, summary: dict[str, Any], key: StageKey | None
    ) -> None:
        """The step is done; its result was taken over whole."""
        self._write(step, done=True, summary=summary, key=key, origin=origin)

    def _write(
        self,
        step: str,
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
        self._stages[step] = entry
        self._run.write_json(STATE_NAME, {"format": _FORMAT, "stages": self._stages})
