"""What may be too much for memory: kept on disk, and gone with the process however that ends.

SQLite's temporary databases: files without a name, of which a few MiB at most are held in memory.
Knows nothing of what is kept.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Set

_CACHE_KIB = 4096
"""Of one database in memory, at most."""


def temporary_database() -> sqlite3.Connection:
    """An empty database of this process alone; every statement is a transaction of its own."""
    # one thread at a time uses it, but not always the same one
    database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    database.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    return database


class TextSet(Set[str]):
    """A set of texts that only grows."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        """Start with these."""
        self._database = temporary_database()
        self._database.execute("CREATE TABLE texts (text TEXT PRIMARY KEY) WITHOUT ROWID")
        self._size = 0
        for text in texts:
            self.add(text)

    def add(self, text: str) -> bool:
        """Put in a text; returns whether it is new."""
        done = self._database.execute("INSERT OR IGNORE INTO texts VALUES (?)", (text,))
        self._size += done.rowcount
        return done.rowcount == 1

    def __contains__(self, text: object) -> bool:
        """Whether it was put in."""
        found = self._database.execute("SELECT 1 FROM texts WHERE text = ?", (text,))
        return found.fetchone() is not None

    def __iter__(self) -> Iterator[str]:
        """All of them, sorted by code point."""
        for (text,) in self._database.execute("SELECT text FROM texts ORDER BY text"):
            yield text

    def __len__(self) -> int:
        """How many there are."""
        return self._size
