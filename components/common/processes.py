"""Process trees on Linux: children that die with their parent, and trees that are ended to the last process."""

from __future__ import annotations

import ctypes
import os
import signal
import time

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def die_with_parent(signum: int = signal.SIGKILL) -> None:
    """Have the kernel send ``signum`` to this process when its parent ends, however it ends. A no-op off Linux."""
    _prctl(_PR_SET_PDEATHSIG, signum)


def become_subreaper() -> None:
    """Have orphans below this process become its children, so that none escapes ``end_tree``. A no-op off Linux."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_tree(grace_s: float) -> None:
    """End every descendant of this process: SIGTERM, ``grace_s`` seconds to finish, then SIGKILL until none is left."""
    import psutil

    me = psutil.Process()
    deadline = time.monotonic() + grace_s
    for child in me.children(recursive=True):
        _send(child.pid, signal.SIGTERM)
    while (children := me.children(recursive=True)) and time.monotonic() < deadline:
        psutil.wait_procs(children, timeout=0.1)
    for _ in range(100):
        if not (children := me.children(recursive=True)):
            return
        for child in children:
            _send(child.pid, signal.SIGKILL)
        psutil.wait_procs(children, timeout=0.1)


def _send(pid: int, signum: int) -> None:
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        pass


def _prctl(option: int, value: int) -> None:
    try:
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
    except (OSError, AttributeError):
        pass
