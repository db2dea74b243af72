"""Files that are read again when they change: tokens, certificates.

Knows nothing of what is in them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")

_LOG = logging.getLogger(__name__)
_Stamp = tuple[int, int, int] | None


class Watched(Generic[T]):
    """What some files hold together."""

    def __init__(self, paths: Sequence[Path], read: Callable[[], T]) -> None:
        """Read them for the first time.

        Args:
            paths: What to watch.
            read: Makes something of the files' contents; a ValueError says that they make nothing.

        Raises:
            ValueError: As ``read``.
        """
        self._paths = tuple(paths)
        self._read = read
        # before the contents: what changes in between is then read again
        self._stamps = self._look()
        self.first = read()
        """What they held at first."""

    def renewed(self) -> T | None:
        """What they hold now; None if they have not changed, or cannot be used as they are."""
        if (stamps := self._look()) == self._stamps:
            return None
        self._stamps = stamps
        fields: dict[str, object] = {"files": list(map(str, self._paths))}
        try:
            value = self._read()
        except ValueError as error:
            # files that are just being replaced may not fit together: the next look will tell
            fields["cause"] = str(error)
            _LOG.error("files not read again: what they held stays", extra={"fields": fields})
            return None
        _LOG.info("files read again", extra={"fields": fields})
        return value

    def _look(self) -> tuple[_Stamp, ...]:
        return tuple(map(_stamp, self._paths))


def _stamp(path: Path) -> _Stamp:
    """Inode, size and modification time in ns; None: no file. Mounted secrets are links."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
