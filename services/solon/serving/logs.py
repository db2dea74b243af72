"""JSON lines on stderr: one object a line, for machines to read.

No line holds the text of a prompt or an answer, so an exception that nobody foresaw is logged by
its type and the place it came from; its message, which may quote a prompt, only at DEBUG. Lines
that are written within a span have its ids. Knows nothing of calls.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime

from solon import tracing

_ROOT = "solon"
_encoded = json.JSONEncoder(ensure_ascii=False, default=str).encode


class JsonFormatter(logging.Formatter):
    """A record as one JSON object: time, level, logger, event and the record's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """See ``logging.Formatter``. Fields come from ``extra={"fields": {...}}``."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
            **tracing.ids(),
        }
        return _encoded(line)


def configure(level: str) -> None:
    """Send every record of this process to stderr as JSON, those of libraries from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger(_ROOT).setLevel(level)
    logging.captureWarnings(capture=True)
    # nothing of these is in a line, and every record would look them up
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


def cause(error: BaseException, *, verbose: bool) -> dict[str, object]:
    """An exception as fields: its types from the outside in, and the frames it came through.

    ``verbose`` adds the messages, which may quote a prompt.
    """
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    frames = traceback.extract_tb(chain[-1].__traceback__)
    fields: dict[str, object] = {
        "exceptions": [f"{type(e).__module__}.{type(e).__qualname__}" for e in chain],
        "frames": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }
    if verbose:
        fields["messages"] = [str(e) for e in chain]
    return fields
