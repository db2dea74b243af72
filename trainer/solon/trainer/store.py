"""The run directory: records exactly once, state, exports.

::

    RUN/config.yaml  constitution.yaml  state.json  metrics.jsonl  preflight.json  evaluation.json
    RUN/{preflight,revisions,preferences,rl}/part-*.parquet  evaluation/*/part-*.parquet
    RUN/export/sft/train.parquet  export/preferences/{train,test}.parquet  export/rl_prompts/...
    RUN/models/{sl,reward,rl}/    RUN/checkpoints/    RUN/logs/

Later iterations have folders of their own: preferences-2, export/preferences-2, models/rl-2, ...
A record is done when its part is there; a part is there whole or not at all. So a resumed run
repeats only what no part holds. Knows nothing of stages, services or models.
"""

from __future__ import annotations

import io
import json
import tempfile
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet as pq

from solon.trainer.errors import RunDirectoryError, StoreError
from solon.trainer.spool import TextSet
from solon.trainer.storage import Storage

Record = Mapping[str, Any]
"""A row as plain values; its keys are the schema's columns."""

STATE_NAME = "state.json"
_WRITTEN_FOLDERS = (
    *("", "preflight", "revisions", "preferences*", "rl*", "evaluation/*"),
    *("export", "export/sft", "export/preferences*", "export/rl_prompts"),
)
"""Patterns of folders in which writing may have been cut short."""


_SORTED_TOGETHER = 4096
"""Records that are sorted in memory, about; of more, one such share after the other."""
_MOST_SHARES = 256
"""Each is an open file; with more records than they hold so, shares grow."""
_SAMPLED = 16
"""Of so many ids one is looked at to find where the shares begin."""
_ROWS_A_GROUP = 2048
"""Rows of an export that are in memory at once."""


class Parts:
    """Records of one kind, in Parquet parts. One writer at a time; see ``lock``."""

    def __init__(self, storage: Storage, folder: str, schema: pa.Schema) -> None:
        """Look at nothing yet.

        Args:
            storage: The run directory.
            folder: The parts' folder in it.
            schema: Columns; one of them is ``id``.
        """
        self._storage = storage
        self._folder = folder
        self._schema = schema
        self._next: int | None = None

    def append(self, records: Sequence[Record]) -> None:
        """Write one part that holds these records; nothing if there are none.

        Raises:
            StoreError: The part could not be written; none of the records is done.
        """
        if not records:
            return
        number = self._next_number()
        self.write(f"part-{number:06d}", records)
        self._next = number + 1

    def write(self, name: str, records: Sequence[Record]) -> None:
        """Write the part of that name, or write it anew.

        Raises:
            StoreError: It could not be written.
        """
        for record in records:
            assert record.keys() == set(self._schema.names), sorted(record)
        self._storage.write(
            f"{self._folder}/{name}.parquet", _parquet(_made(records, self._schema))
        )

    def names(self) -> list[str]:
        """Of the parts that are there, sorted."""
        return [Path(name).stem for name in self._names()]

    def remove(self, name: str) -> None:
        """Remove a part.

        Raises:
            StoreError: It could not be removed.
        """
        self._storage.remove(f"{self._folder}/{name}.parquet")

    def ids(self) -> TextSet:
        """Ids of the records that are done.

        Raises:
            StoreError: A part is damaged, or a record is there twice.
        """
        found = TextSet()
        for name in self._names():
            for one in self._read(name, columns=["id"]).column("id").to_pylist():
                if not found.add(one):
                    raise StoreError(
                        f"{self._storage.url}/{name}: holds records that another part holds too, "
                        f"such as {one!r}; remove one of the two files"
                    )
        return found

    def column(self, name: str) -> Iterator[Any]:
        """One column of all records."""
        for part in self._names():
            yield from self._read(part, columns=[name]).column(name).to_pylist()

    def where(self, name: str, value: str) -> list[dict[str, Any]]:
        """The records with this value in a column, sorted by id."""
        found: list[dict[str, Any]] = []
        for part in self._names():
            values = self._read(part, columns=[name]).column(name).to_pylist()
            if value in values:
                table = self._read(part)
                for place in (place for place, one in enumerate(values) if one == value):
                    found += table.slice(place, 1).to_pylist()
        return sorted(found, key=lambda record: str(record["id"]))

    def records(self) -> Iterator[dict[str, Any]]:
        """All records, sorted by id: the same however often the run was interrupted.

        Any number of them: what is in memory is a share of them at most.
        """
        with self._shares() as shares:
            for share in shares:
                for batch in _sorted(share).to_batches(max_chunksize=256):
                    yield from batch.to_pylist()

    @contextmanager
    def _shares(self) -> Iterator[Iterator[pa.Table]]:
        """All records, those of lower ids first; each share is to be sorted by itself."""
        bounds = self._bounds()
        if not bounds:
            tables = [self._read(name) for name in self._names()]
            yield iter([pa.concat_tables(tables)] if tables else [])
            return
        with tempfile.TemporaryDirectory(prefix="solon-records-") as folder:
            files = [Path(folder) / f"{number}.arrow" for number in range(len(bounds) + 1)]
            self._distribute(bounds, files)
            yield map(_spilled, files)

    def _bounds(self) -> list[str]:
        """The ids with which all shares but the first begin."""
        sample: list[str] = []
        for name in self._names():
            ids = self._read(name, columns=["id"]).column("id")
            sample += ids.to_pylist()[::_SAMPLED]
        sample.sort()
        each = max(_SORTED_TOGETHER // _SAMPLED, -(-len(sample) // _MOST_SHARES))
        return sample[each : len(sample) - each // 2 : each]

    def _distribute(self, bounds: Sequence[str], files: Sequence[Path]) -> None:
        """Write every record to the file of its share."""
        options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
        with ExitStack() as stack:
            writers = [
                stack.enter_context(pa.ipc.new_stream(str(file), self._schema, options=options))
                for file in files
            ]
            for group in self._groups():
                table = _sorted(group)
                ids = table.column("id").to_pylist()
                edges = [0, *(bisect_left(ids, bound) for bound in bounds), len(ids)]
                for writer, (first, end) in zip(writers, pairwise(edges), strict=True):
                    if first < end:
                        writer.write_table(table.slice(first, end - first).combine_chunks())

    def _groups(self) -> Iterator[pa.Table]:
        """All records, so many together as make batches of some rows in the file of each share."""
        waiting: list[pa.Table] = []
        for name in self._names():
            waiting.append(self._read(name))
            if sum(table.num_rows for table in waiting) >= _SORTED_TOGETHER:
                yield pa.concat_tables(waiting)
                waiting = []
        if waiting:
            yield pa.concat_tables(waiting)

    def _names(self) -> list[str]:
        return self._storage.list(self._folder, ".parquet")

    def _next_number(self) -> int:
        if self._next is not None:
            return self._next
        names = self._names()
        return int(Path(names[-1]).stem.removeprefix("part-")) + 1 if names else 0

    def _read(self, name: str, columns: list[str] | None = None) -> pa.Table:
        content = self._storage.read(name)
        try:
            table = _table(content, columns)
        except (pa.ArrowException, OSError) as error:
            raise StoreError(
                f"{self._storage.url}/{name}: is damaged ({error}); remove it, and run again with "
                "--resume: its records will be made again"
            ) from error
        if columns is None and table.schema != self._schema:
            raise StoreError(
                f"{self._storage.url}/{name}: has other columns than this version of Solon writes; "
                "go on with the version that made it, or start a new run"
            )
        return table


class Export:
    """A file for training that is being written; of its rows few are in memory."""

    def __init__(self, writer: pq.ParquetWriter, schema: pa.Schema) -> None:
        """See ``RunDirectory.exporting``."""
        self._writer = writer
        self._schema = schema
        self._waiting: list[Record] = []
        self.rows = 0
        """That it has so far."""

    def extend(self, records: Iterable[Record]) -> None:
        """Add rows at the end."""
        for record in records:
            self._waiting.append(record)
            self.rows += 1
            if len(self._waiting) == _ROWS_A_GROUP:
                self.flush()

    def flush(self) -> None:
        """Write the rows that wait."""
        if self._waiting:
            self._writer.write_table(_made(self._waiting, self._schema))
            self._waiting.clear()


class RunDirectory:
    """Everything that a run keeps."""

    def __init__(self, url: str) -> None:
        """Look at the URL; touch nothing.

        Raises:
            StoreError: No file system of that kind.
        """
        self.url = url
        self.storage = Storage(url)

    @property
    def local(self) -> Path:
        """The folder on this machine, which training and weight updates need.

        Raises:
            RunDirectoryError: The run is behind a URL.
        """
        if self.storage.local_root is None:
            raise RunDirectoryError(
                f"{self.url}: training and weight updates read and write models as local files; "
                "choose a path with --run (records alone may live behind a URL)"
            )
        return self.storage.local_root

    def parts(self, folder: str, schema: pa.Schema) -> Parts:
        """The records of one kind."""
        return Parts(self.storage, folder, schema)

    @contextmanager
    def exporting(self, name: str, schema: pa.Schema) -> Iterator[Export]:
        """``export/NAME.parquet`` for training, which is there, whole, when the block has ended."""
        with (
            self.storage.writing(f"export/{name}.parquet") as file,
            pq.ParquetWriter(file, schema, compression="zstd") as writer,
        ):
            export = Export(writer, schema)
            yield export
            export.flush()

    def exported(self, name: str) -> list[dict[str, Any]]:
        """The rows of ``export/NAME.parquet``; none if there is no such file.

        Raises:
            StoreError: It is damaged.
        """
        file = f"export/{name}.parquet"
        if not self.storage.exists(file):
            return []
        try:
            rows: list[dict[str, Any]] = _table(self.storage.read(file)).to_pylist()
            return rows
        except (pa.ArrowException, OSError) as error:
            raise StoreError(f"{self.url}/{file}: is damaged: {error}") from error

    def write_json(self, name: str, value: Any) -> None:
        """Put a JSON file in its place."""
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        self.storage.write(name, text.encode())

    def read_json(self, name: str) -> Any:
        """A JSON file's value; None if there is no such file.

        Raises:
            StoreError: It is not JSON.
        """
        if not self.storage.exists(name):
            return None
        try:
            return json.loads(self.storage.read(name))
        except ValueError as error:
            raise StoreError(f"{self.url}/{name}: is damaged: {error}") from error

    def remove_leftovers(self) -> int:
        """Remove half-written files of writers that were killed."""
        return self.storage.remove_leftovers(*_WRITTEN_FOLDERS)


def _made(records: Sequence[Record], schema: pa.Schema) -> pa.Table:
    """Plain values as a table."""
    if not records:
        return pa.Table.from_batches([], schema=schema)
    # Table.from_pylist imports pandas wherever that is installed (1.2 s, 110 MB), as do empty_table
    # and read_table; and this leaves the interpreter to the event loop while Arrow reads
    text = "\n".join(json.dumps(record, ensure_ascii=False) for record in records).encode()
    return pyarrow.json.read_json(
        io.BytesIO(text),
        read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(text) + 1),
        parse_options=pyarrow.json.ParseOptions(
            explicit_schema=schema, unexpected_field_behavior="error"
        ),
    )


def _table(content: bytes, columns: list[str] | None = None) -> pa.Table:
    # files are small; and Arrow aborts a process that ends while its threads still start
    file = pq.ParquetFile(io.BytesIO(content), pre_buffer=False)
    return file.read(columns=columns, use_threads=False)


def _sorted(table: pa.Table) -> pa.Table:
    # not Table.sort_by, which starts threads
    return table.take(pc.sort_indices(table.column("id")))


def _spilled(file: Path) -> pa.Table:
    """What ``_distribute`` wrote."""
    options = pa.ipc.IpcReadOptions(use_threads=False)
    with pa.OSFile(str(file)) as content, pa.ipc.open_stream(content, options=options) as stream:
        return stream.read_all()


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
