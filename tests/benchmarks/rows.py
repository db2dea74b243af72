"""The form in which every benchmark says what it found: a row a comparison."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Row:
    """Ours beside a peer and beside what no system could do better than."""

    name: str
    ours: float
    peer: float | None
    floor: float | None
    ratio: float
    """Ours to the peer, or to the floor where there is no peer; above 1 is better than it."""
    unit: str


def write(path: Path | None, rows: Sequence[Row]) -> None:
    """Write ``--json FILE``, if one was asked for."""
    if path is not None:
        text = json.dumps([asdict(row) for row in rows], indent=2)
        path.write_text(text + "\n", encoding="utf-8")
