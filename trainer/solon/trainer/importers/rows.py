"""The rows of a file, one after the other: text, JSON lines, a JSON list, CSV or Parquet.

Text may be compressed with gzip. Memory is that of the longest row (of a thousand rows for
Parquet), however long the file. Knows nothing of what is in a row.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, cast

from solon.trainer.errors import PromptError
from solon.trainer.importers.records import place_of

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".txt")
"""Kinds of files; all but .parquet may end with .gz, too."""
_CHUNK = 1 << 16
_BATCH = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row, as it is."""

    path: Path
    label: str
    """Where in the file: ``line 3``, ``row 3`` or ``item 3``, from 1."""
    value: Any
    """A mapping from columns to values for a table; whatever JSON it is; a line's text."""

    @property
    def place(self) -> str:
        """For messages: the file and where in it."""
        return place_of(self.path, self.label)


def kind_of(path: Path) -> str:
    """One of ``SUFFIXES``.

    Raises:
        PromptError: No such file, or another kind.
    """
    if not path.is_file():
        raise PromptError(f"{path}: no such file")
    name = path.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    if suffix not in SUFFIXES or (suffix == ".parquet" and name.endswith(".gz")):
        raise PromptError(
            f"{path}: expected a file that ends with {', '.join(SUFFIXES)} (or .gz after it), "
            "or a source that comes with Solon, such as sandbox:harmful or written:red_team"
        )
    return suffix


def read_rows(path: Path) -> Iterator[Row]:
    """Read a file from its beginning; lines without text are left out.

    Raises:
        PromptError: There is no such file, it is of another kind, or it cannot be read.
    """
    return _READERS[kind_of(path)](path)


def _lines(path: Path) -> Iterator[Row]:
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _row(path, number, line.strip())


def _json_lines(path: Path) -> Iterator[Row]:
    with _opened(path) as file:
        is_list = _first_character(file) == "["
    if is_list:
        # some publishers call a JSON list .jsonl
        yield from _json_list(path)
        return
    for line in _lines(path):
        try:
            value = json.loads(line.value)
        except json.JSONDecodeError as error:
            raise PromptError(
                f"{line.place}: not valid JSON: {error.msg}, at column {error.colno}"
            ) from error
        yield Row(path=path, label=line.label, value=value)


def _json_list(path: Path) -> Iterator[Row]:
    """The items of a list, decoded one at a time."""
    with _opened(path) as file:
        buffer = _Buffer(file, path)
        if buffer.take() != "[":
            raise PromptError(f"{path}: expected a JSON list of objects, or lines in a .jsonl file")
        number = 0
        while buffer.peek() != "]":
            number += 1
            yield Row(path=path, label=f"item {number}", value=buffer.value())
            if (mark := buffer.peek()) == ",":
                buffer.take()
            elif mark != "]":
                raise PromptError(f"{path}: not valid JSON after item {number}: {mark!r}")


class _Buffer:
    """The part of a text that was read and not yet decoded."""

    def __init__(self, file: TextIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._text = ""
        self._decoder = json.JSONDecoder()

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while not (left := self._text.lstrip()) and self._more():
            pass
        self._text = left
        return left[:1]

    def take(self) -> str:
        """The same, and go past it."""
        first = self.peek()
        self._text = self._text[1:]
        return first

    def value(self) -> Any:
        """The next JSON value."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text)
            except json.JSONDecodeError as error:
                # twice as much each time, so that a long value is not decoded over and over
                if not self._more(len(self._text)):
                    raise PromptError(f"{self._path}: not valid JSON: {error.msg}") from error
                continue
            self._text = self._text[end:]
            return value

    def _more(self, at_least: int = 0) -> bool:
        read = self._file.read(max(_CHUNK, at_least))
        self._text += read
        return bool(read)


def _csv_rows(path: Path) -> Iterator[Row]:
    with _opened(path) as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, [])
            line = reader.line_num + 1
            for cells in reader:
                if len(cells) != len(header) and cells:
                    raise PromptError(
                        f"{path}:{line}: expected {len(header)} cells, as the header has, got "
                        f"{len(cells)}; put cells with commas or line breaks in double quotes"
                    )
                if cells:
                    yield _row(path, line, dict(zip(header, cells, strict=True)))
                line = reader.line_num + 1
        except csv.Error as error:
            raise PromptError(f"{path}:{reader.line_num}: not valid CSV: {error}") from error


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow as pa  # noqa: PLC0415 - the configuration is checked without it
    import pyarrow.parquet as pq  # noqa: PLC0415

    number = 0
    try:
        # as the run directory's parts are read: without Arrow's threads
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=_BATCH, use_threads=False):
                for value in batch.to_pylist():
                    number += 1
                    yield Row(path=path, label=f"row {number}", value=value)
    except (pa.ArrowException, OSError) as error:
        raise PromptError(f"{path}: cannot be read as Parquet: {error}") from error


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".txt": _lines,
    ".jsonl": _json_lines,
    ".json": _json_list,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}


def _row(path: Path, line: int, value: Any) -> Row:
    return Row(path=path, label=f"line {line}", value=value)


def _first_character(file: TextIO) -> str:
    while chunk := file.read(_CHUNK):
        if found := chunk.strip():
            return found[0]
    return ""


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """A text file, compressed or not, whatever its name says; a byte order mark is left out."""
    try:
        with path.open("rb") as raw:
            is_compressed = raw.read(2) == b"\x1f\x8b"
        opener = gzip.open if is_compressed else open
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield cast("TextIO", file)
    except UnicodeDecodeError as error:
        line = _first_broken_line(path, is_compressed)
        raise PromptError(
            f"{path}:{line}: not UTF-8: {error.reason}; save it as UTF-8 text"
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise PromptError(
            f"{path}: the compressed data is damaged or cut short: {error}; fetch it again"
        ) from error
    except OSError as error:
        raise PromptError(f"{path}: cannot be read: {error.strerror or error}") from error


def _first_broken_line(path: Path, is_compressed: bool) -> int:
    """Decoding goes ahead of the lines, so the failure itself does not know which it was."""
    with gzip.open(path) if is_compressed else path.open("rb") as raw:
        return next((n for n, line in enumerate(raw, start=1) if not _is_utf8(line)), 1)


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
