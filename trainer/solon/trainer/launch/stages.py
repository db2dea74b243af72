"""One training stage as a process of this machine, its progress told event by event.

The worker prints JSON lines on stdout::

    {"event": "progress", "stage": "rl", "done": 12, "total": 80, "metrics": {"lr": 1e-5}}
    {"event": "message", "text": "..."}
    {"event": "error", "kind": "user" | "internal", "text": "..."}
    {"event": "done", "metrics": {...}}

and ends with 0, 2 (the user's mistake) or 1. Other lines on stdout are some library's chatter and
go to the log. Knows nothing of what a stage does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from solon.trainer.launch.child import USER_ERROR, Child
from solon.trainer.launch.errors import StageFailed

_GRACE = 20.0
"""Seconds from SIGTERM to SIGKILL for a stage that is cancelled."""


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


StageEvent = Progress | Note | Done


async def run_stage(
    stage: str,
    run_dir: Path,
    *,
    on_event: Callable[[StageEvent], None],
    threads: int | None = None,
    judges: Mapping[str, str] | None = None,
) -> None:
    """Run a training stage to its end. It resumes from its checkpoint by itself.

    Args:
        stage: ``sft``, ``reward`` or ``rl``.
        run_dir: The run's directory; ``logs/STAGE.log`` in it is appended to.
        on_event: Told of every event, in order.
        threads: Compute threads (OMP_NUM_THREADS). None: as this process has it.
        judges: Name -> address of the judges that score responses. None: as configured, if they
            are needed.

    Raises:
        StageFailed: It ended without its result; ``user_error`` says who can put it right.
    """
    arguments = ["-m", "solon.trainer.stages.worker", stage, "--run", str(run_dir)]
    for name, address in (judges or {}).items():
        arguments += ["--judge", f"{name}={address}"]
    log = run_dir / "logs" / f"{stage}.log"
    await run_worker(stage, arguments, log=log, on_event=on_event, threads=threads)


async def run_worker(
    name: str,
    arguments: Sequence[str],
    *,
    log: Path,
    on_event: Callable[[StageEvent], None],
    threads: int | None = None,
) -> None:
    """Run ``python arguments...``, which speaks as this module's docstring says, to its end.

    The process is stopped if this is cancelled or ``on_event`` raises, and dies with this one.

    Raises:
        StageFailed: It ended without ``done``, or said what the protocol does not know.
    """
    child = await Child.start(name, arguments, log=log, threads=threads, pipe_stdout=True)
    try:
        last = await _listen(child, on_event)
        await child.process.wait()
    finally:
        await child.stop(_GRACE)
    if isinstance(last, Failure):
        raise StageFailed(f"stage {name}: {last.text} (log: {log})", user_error=last.user_error)
    if child.process.returncode != 0 or not isinstance(last, Done):
        missing = "" if isinstance(last, Done) else ", without a result"
        raise StageFailed(
            f"stage {name} ended ({child.ending()}){missing}: {child.last_error()} (log: {log})",
            user_error=child.process.returncode == USER_ERROR,
        )


async def _listen(
    child: Child, on_event: Callable[[StageEvent], None]
) -> StageEvent | Failure | None:
    """Pass the events on; the last one."""
    assert child.process.stdout is not None, "started without a pipe"
    last: StageEvent | Failure | None = None
    with child.log.open("ab", buffering=0) as chatter:
        while line := await child.process.stdout.readline():
            event = parse_event(line)
            if event is None:
                chatter.write(line)
                continue
            last = event
            if not isinstance(event, Failure):
                on_event(event)
    return last


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
            return Failure(user_error=record["kind"] == "user", text=_text(record["text"]))
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
