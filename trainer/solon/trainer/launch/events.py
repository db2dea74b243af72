"""What a training stage's process says, line by line.

JSON on stdout::

    {"event": "progress", "stage": "rl", "done": 12, "total": 80, "metrics": {"lr": 1e-5}}
    {"event": "message", "text": "..."}
    {"event": "error", "kind": "user" | "internal", "text": "...", "at": 1234.5}
    {"event": "done", "metrics": {...}}

Other lines are some library's chatter. Knows nothing of processes or of what a stage does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from solon.trainer.launch.errors import StageFailed


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a stage is."""

    stage: str
    done: float
    """Of ``total``, in the stage's own unit."""
    total: float
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """Something worth showing to whoever watches."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """The stage's result stands."""

    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """The stage cannot go on."""

    user_error: bool
    text: str
    at: float
    """Seconds of the machine's monotonic clock; of several processes the earliest is the cause."""


StageEvent = Progress | Note | Done


def parse_event(line: bytes) -> StageEvent | Failure | None:
    """The event that a line tells of; None if it is not an event at all.

    Raises:
        StageFailed: It is one, but of an unknown kind or without the fields it needs.
    """
    record = _json_object(line)
    if record is None or "event" not in record:
        return None
    try:
        return _event(record)
    except (KeyError, TypeError, ValueError) as error:
        raise StageFailed(
            f"expected a progress, message, error or done event with its fields, got {line!r} "
            f"({type(error).__name__}: {error})"
        ) from error


def _event(record: Mapping[str, object]) -> StageEvent | Failure:
    match record["event"]:
        case "progress":
            return Progress(
                stage=_text(record["stage"]),
                done=_number(record["done"]),
                total=_number(record["total"]),
                metrics=_metrics(record.get("metrics", {})),
            )
        case "message":
            return Note(text=_text(record["text"]))
        case "done":
            return Done(metrics=_metrics(record.get("metrics", {})))
        case "error":
            return Failure(
                user_error=record["kind"] == "user",
                text=_text(record["text"]),
                at=_number(record["at"]),
            )
        case unknown:
            raise ValueError(f"event {unknown!r} is unknown")


def _json_object(line: bytes) -> Mapping[str, object] | None:
    if not line.startswith(b"{"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        # some library printed a dict
        return None
    return record if isinstance(record, dict) else None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {value!r}")
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"expected a number, got {value!r}")
    return value


def _metrics(value: object) -> Mapping[str, float]:
    if not isinstance(value, dict):
        raise TypeError(f"metrics: expected an object, got {value!r}")
    return {_text(name): _number(metric) for name, metric in value.items()}
