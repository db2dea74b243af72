"""Two coordinators on one run directory: the second is refused, the dead are not waited for."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

from solon.trainer.errors import RunDirectoryError
from solon.trainer.lock import LOCK_NAME, exclusive
from solon.trainer.storage import Storage

HOLDER = """
import sys
from solon.trainer.lock import exclusive
from solon.trainer.storage import Storage

with exclusive(Storage(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(url: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def test_a_second_coordinator_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    process = holder(str(tmp_path))
    with (
        pytest.raises(RunDirectoryError, match=f"process {process.pid} on {socket.gethostname()}"),
        exclusive(Storage(str(tmp_path))),
    ):
        pass
    process.kill()
    process.communicate()


def test_the_lock_of_a_killed_coordinator_holds_nobody_up(tmp_path: Path) -> None:
    process = holder(str(tmp_path))
    process.kill()
    process.communicate()
    with exclusive(Storage(str(tmp_path))):
        assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()


def test_behind_a_url_a_living_holder_is_respected_and_a_dead_one_replaced() -> None:
    url = "memory://locked-run"
    file_system = fsspec.filesystem("memory")
    with exclusive(Storage(url)):
        mine = json.loads(file_system.cat_file("/locked-run/.lock"))
        with (
            pytest.raises(RunDirectoryError, match="another run is at work"),
            exclusive(Storage(url)),
        ):
            pass
    assert not file_system.exists("/locked-run/.lock")
    for change in ({"boot": "another boot"}, {"pid": 2**22 + 1}, {"started": "1"}):
        file_system.pipe_file("/locked-run/.lock", json.dumps(mine | change).encode())
        with exclusive(Storage(url)):
            pass


def test_behind_a_url_a_holder_on_another_host_is_never_taken_for_dead() -> None:
    url = "memory://shared-run"
    held = json.dumps({"host": "elsewhere", "pid": 1, "boot": "x", "started": "1"})
    fsspec.filesystem("memory").pipe_file("/shared-run/.lock", held.encode())
    with (
        pytest.raises(RunDirectoryError, match=r"process 1 on elsewhere.*remove memory://.*\.lock"),
        exclusive(Storage(url)),
    ):
        pass
