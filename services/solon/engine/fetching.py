"""A checkpoint behind a URL: its known files, fetched by fsspec into a folder for a while.

Asks for files by name and lists nothing, so that plain HTTP will do. Knows nothing of tensors.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import fsspec
from aiohttp import ClientTimeout
from fsspec.callbacks import Callback

from solon.engine.base import WeightsNotLoaded
from solon.engine.sources import WEB, Source

ADAPTER_CONFIG = "adapter_config.json"
"""Tells an adapter from full weights."""
ADAPTER_WEIGHTS = "adapter_model.safetensors"

_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_EXPECTED = (
    f"expected {_CONFIG} with {_WEIGHTS}, or with {_INDEX} and its shards; or {ADAPTER_CONFIG} "
    f"with {ADAPTER_WEIGHTS}; pickles (.bin) are not loaded: save as safetensors"
)
_SHARD = re.compile(r"[A-Za-z0-9_.-]+\.safetensors")
_SILENCE = 60.0
"""Seconds without a byte after which a web server is given up."""


@contextmanager
def fetched(source: Source, abandoned: threading.Event) -> Iterator[Path]:
    """A folder with the files of the checkpoint at a URL; removed at the end, whatever happens.

    Args:
        source: The URL.
        abandoned: Ends the transfer, once set.

    Raises:
        WeightsNotLoaded: A file cannot be fetched; the text says which and why.
    """
    try:
        temporary = TemporaryDirectory(prefix="solon-weights-")
    except OSError as error:
        raise WeightsNotLoaded(
            f"path {str(source)!r}: there is nowhere to fetch it to: {error}: point TMPDIR to a "
            "directory that the server may write"
        ) from error
    with temporary as folder:
        download = _Download(source, Path(folder), abandoned)
        if download.found(ADAPTER_CONFIG):
            download.get(ADAPTER_WEIGHTS)
        else:
            download.get(_CONFIG)
            if not download.found(_WEIGHTS):
                download.get(_INDEX)
                download.get(*download.shards())
        yield Path(folder)


class _NotThere(WeightsNotLoaded):
    """A file that the URL does not have, or does not admit to have."""


class _Download:
    """Files of one checkpoint on their way into a folder."""

    def __init__(self, source: Source, folder: Path, abandoned: threading.Event) -> None:
        self.source = source
        self.folder = folder
        self.abandoned = abandoned
        self._file_system = _file_system(source)
        self._sizes: dict[str, int] = {}

    def get(self, *names: str) -> None:
        """Fetch files, together where the file system can."""
        # the file system's own way with a URL, which it also uses for a single path
        remote = [self._file_system._strip_protocol(self.source.file(name)) for name in names]
        local = [str(self.folder / name) for name in names]
        self._file_system.get(remote, local, callback=_Transfers(self))

    def found(self, name: str) -> bool:
        """Fetch a file if it is there."""
        try:
            self.get(name)
        except _NotThere:
            return False
        return True

    def shards(self) -> Sequence[str]:
        """The files that the index lists."""
        try:
            index = json.loads((self.folder / _INDEX).read_text("utf-8"))
            names = sorted(set(index["weight_map"].values()))
        except (ValueError, LookupError, TypeError, AttributeError):
            raise self.failed(_INDEX, "it is no index of shards") from None
        for name in names:
            if not _SHARD.fullmatch(str(name)):
                raise self.failed(_INDEX, f"expected names of .safetensors files, got {name!r}")
        return names

    def expect(self, name: str, size: int) -> None:
        """Refuse what the disk cannot hold."""
        self._sizes[name] = size
        here = sum(p.stat().st_size for p in self.folder.iterdir() if p.name in self._sizes)
        missing = sum(self._sizes.values()) - here
        if missing > (free := shutil.disk_usage(self.folder).free):
            reason = f"{missing:,} more bytes are needed where {free:,} are free"
            raise self.failed(name, f"{reason}: point TMPDIR to a larger disk")

    def failed(self, name: str, reason: str) -> WeightsNotLoaded:
        """The error that names URL, file and reason."""
        return WeightsNotLoaded(_failure(self.source, name, reason))


class _Transfers(Callback):  # type: ignore[misc]
    """fsspec's hook in a call that fetches files: gives each a hook of its own."""

    def __init__(self, download: _Download) -> None:
        super().__init__()
        self._download = download

    def branched(self, path_1: str, path_2: str, **kwargs: Any) -> _Transfer:
        """See ``Callback``."""
        return _Transfer(self._download, Path(path_2).name)


class _Transfer(Callback):  # type: ignore[misc]
    """fsspec's hook in one file's transfer: knows the name, hears sizes, chunks and the end."""

    def __init__(self, download: _Download, name: str) -> None:
        super().__init__()
        self._download = download
        self._name = name

    def set_size(self, size: int | None) -> None:
        """See ``Callback``."""
        if size is not None:
            self._download.expect(self._name, size)

    def relative_update(self, inc: int = 1) -> None:
        """See ``Callback``."""
        if self._download.abandoned.is_set():
            raise self._download.failed(self._name, "nobody waits for it any more")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Say of any driver's error which file it is about."""
        if not isinstance(error, Exception) or isinstance(error, WeightsNotLoaded):
            return
        source, status = self._download.source, getattr(error, "status", None)
        # without its cause, whose text may quote the URL with its credentials
        if isinstance(error, FileNotFoundError | PermissionError) or status in (403, 404, 410):
            # stores that let nobody list answer 403 for what is not there
            reason = f"it is not there, or may not be read: {_EXPECTED}"
            raise _NotThere(_failure(source, self._name, reason)) from None
        said = f"HTTP {status}" if status else _said(error, source)
        raise self._download.failed(self._name, said) from None


def _failure(source: Source, name: str, reason: str) -> str:
    return f"path {str(source)!r}: cannot fetch {name}: {reason}"


def _file_system(source: Source) -> Any:
    options: dict[str, Any] = {}
    if source.scheme in WEB:
        # aiohttp allows five minutes for a whole file, and knows no proxy or .netrc by itself
        timeout = ClientTimeout(total=None, sock_connect=_SILENCE, sock_read=_SILENCE)
        options["client_kwargs"] = {"timeout": timeout, "trust_env": True}
    try:
        # a new one each time: a kept one may remember how things were
        file_system, _ = fsspec.core.url_to_fs(source.text, skip_instance_cache=True, **options)
    except ImportError as error:
        problem = f"{source.scheme} URLs need a package that this server lacks: {error}"
    except Exception as error:  # every driver has its own
        problem = f"{source.scheme} URLs cannot be read: {_said(error, source)}"
    else:
        return file_system
    raise WeightsNotLoaded(f"path {str(source)!r}: {problem}")


def _said(error: Exception, source: Source) -> str:
    """An error in one line, without its text where that may quote the URL's credentials."""
    kind, text = type(error).__name__, str(error).partition("\n")[0]
    return kind if source.has_credentials else f"{kind}: {text}"
