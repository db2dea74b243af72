"""Becomes another program that dies when its parent does, however that ends.

Run as ``python -I -S tether.py PARENT_PID COMMAND...``. The parent may be killed with SIGKILL,
which nothing in it can catch, and its children would go on holding memory and ports. Linux only
(prctl PR_SET_PDEATHSIG, kept across exec); elsewhere the command runs untethered.

The signal comes when the parent's *thread* that started the child ends: with asyncio, the thread
of the event loop, without which nobody looks after the child either.

Standard library only, and imported by nobody: it costs one short interpreter start.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def _die_with_parent(parent: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) was refused")
    if os.getppid() != parent:
        # it died before prctl, so its signal will never come
        sys.exit(1)


if __name__ == "__main__":
    if sys.platform == "linux":
        _die_with_parent(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])
