"""Files of a run, on a disk or behind an fsspec URL: whole or not at all.

Knows nothing of what is in them. On a disk, a file is written beside its place, flushed and
renamed; on an object store a single put is already atomic.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from solon.trainer.errors import StoreError

_LEFTOVER = ".tmp-"
_WHAT_TO_DO = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "the disk quota is used up: free some space",
    errno.EFBIG: "the file would exceed the largest size allowed (see `ulimit -f`)",
    errno.EACCES: "permission denied: make it writable, or choose another run directory",
    errno.EPERM: "permission denied: make it writable, or choose another run directory",
    errno.EROFS: "the file system is read-only: choose another run directory",
}


class Storage:
    """A folder: a path or an fsspec URL. Every method raises ``StoreError``."""

    def __init__(self, url: str) -> None:
        """Look at the URL; touch nothing.

        Raises:
            StoreError: No file system of that kind, or its package is not installed.
        """
        self.url = url
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise StoreError(f"run directory {url!r}: {error}") from error
        self.local_root: Path | None = (
            Path(self._root) if isinstance(self._fs, LocalFileSystem) else None
        )
        """The folder on this machine; None behind a URL."""

    def exists(self, name: str = "") -> bool:
        """Whether there is a file or folder of that name."""
        with self._explained(name, "looked at"):
            self._fs.invalidate_cache()
            return bool(self._fs.exists(self._at(name)))

    def list(self, folder: str, suffix: str) -> list[str]:
        """Names of the whole files in a folder, sorted; none if there is no such folder."""
        with self._explained(folder, "listed"):
            self._fs.invalidate_cache()
            try:
                found = self._fs.ls(self._at(folder), detail=False)
            except FileNotFoundError:
                return []
        names = (PurePosixPath(path).name for path in found)
        return sorted(f"{folder}/{n}" for n in names if n.endswith(suffix) and n[0] != ".")

    def read(self, name: str) -> bytes:
        """A file's content."""
        with self._explained(name, "read"):
            return bytes(self._fs.cat_file(self._at(name)))

    def write(self, name: str, content: bytes) -> None:
        """Put a file in its place, whole; replaces one that is there."""
        with self.writing(name) as file:
            file.write(content)

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """What is written in the block appears in its place, whole, unless the block fails."""
        with self._explained(name, "written"):
            if self.local_root is not None:
                with _writing_on_disk(self.local_root / name) as file:
                    yield file
                return
            with tempfile.TemporaryFile() as file:
                yield file
                file.seek(0)
                with self._fs.open(self._at(name), "wb") as there:
                    shutil.copyfileobj(file, there)

    def remove(self, name: str) -> None:
        """Remove a file."""
        with self._explained(name, "removed"):
            self._fs.rm_file(self._at(name))

    def remove_leftovers(self, *folders: str) -> int:
        """Remove what writers that were killed left half-written; returns how much.

        ``folders``: patterns, such as ``preferences*``.
        """
        if self.local_root is None:
            return 0
        removed = 0
        with self._explained("", "cleaned"):
            for folder in folders:
                for path in self.local_root.glob(f"{folder}/.*{_LEFTOVER}*".lstrip("/")):
                    if path.is_dir():
                        shutil.rmtree(path)
                    else:
                        path.unlink()
                    removed += 1
        return removed

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    @contextmanager
    def _explained(self, name: str, verb: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            advice = _WHAT_TO_DO.get(error.errno or 0, str(error))
            place = f"{self.url.rstrip('/')}/{name}" if name else self.url
            raise StoreError(
                f"{place}: could not be {verb}: {advice}. What was written before is whole; "
                "run again with --resume to go on from there"
            ) from error


@contextmanager
def _writing_on_disk(path: Path) -> Iterator[BinaryIO]:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}{_LEFTOVER}{os.getpid()}")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    # the rename itself must survive a power failure
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
