"""Whether a file is another one than before: for what is read again when it changes."""

from __future__ import annotations

from pathlib import Path

Stamp = tuple[int, int, int] | None
"""Inode, size and modification time in ns; None: there is no file."""


def stamp_of(path: Path) -> Stamp:
    """What tells two states of a file apart. Follows links, as mounted secrets are links."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
