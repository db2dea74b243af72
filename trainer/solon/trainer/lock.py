"""One coordinator for a run directory: a second would double every record.

On a disk the kernel holds the lock and frees it when its holder dies, however that happens.
Behind a URL there is no such thing: a file names the holder, and counts as left over once that
process is known to be gone. Knows nothing of what is protected.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from solon.trainer.errors import RunDirectoryError, StoreError
from solon.trainer.storage import Storage

LOCK_NAME = ".lock"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@contextmanager
def exclusive(storage: Storage) -> Iterator[None]:
    """Hold the run directory until the block ends.

    Raises:
        RunDirectoryError: Another process holds it; the text names it and the way out.
        StoreError: The lock file cannot be written.
    """
    if storage.local_root is None:
        with _named_in_a_file(storage):
            yield
    else:
        with _held_by_the_kernel(storage.local_root):
            yield


@contextmanager
def _held_by_the_kernel(root: Path) -> Iterator[None]:
    try:
        root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(root / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StoreError(f"{root}: cannot be made or written: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise StoreError(f"{root}: cannot be locked: {error.strerror}") from error
            holder = _parsed(os.pread(descriptor, 4096, 0))
            raise RunDirectoryError(
                f"{root}: another run is at work in it ({_described(holder)}); wait for it, end "
                "it, or choose another directory with --run"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(_myself()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _named_in_a_file(storage: Storage) -> Iterator[None]:
    if storage.exists(LOCK_NAME):
        holder = _parsed(storage.read(LOCK_NAME))
        if not _is_gone(holder):
            raise RunDirectoryError(
                f"{storage.url}: another run is at work in it ({_described(holder)}); wait for it, "
                f"or, if it is gone for certain, remove {storage.url.rstrip('/')}/{LOCK_NAME}"
            )
    storage.write(LOCK_NAME, json.dumps(_myself()).encode())
    try:
        yield
    finally:
        storage.remove(LOCK_NAME)


def _myself() -> dict[str, Any]:
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "boot": _boot(),
        "pid": pid,
        "started": _started(pid),
    }


def _is_gone(holder: dict[str, Any]) -> bool:
    """Whether the holder is known to be dead: this machine has rebooted, or has no such process."""
    me = _myself()
    if holder.get("host") != me["host"]:
        return False
    if holder.get("boot") != me["boot"]:
        return True
    return _started(int(holder.get("pid", 0))) != holder.get("started")


def _boot() -> str:
    return _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""


def _started(pid: int) -> str | None:
    """When a process started, in ticks since boot: a pid may be another process by now."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # the name of the program, in parentheses, may itself hold spaces
    return stat.rpartition(")")[2].split()[19]


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        holder = json.loads(content)
    except ValueError:
        # the holder has not written its name yet, or was killed while doing so
        return {}
    return holder if isinstance(holder, dict) else {}


def _described(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid', 'unknown')} on {holder.get('host', 'an unknown host')}"
