"""A process between svdflow and a server: when svdflow ends, however it ends, no process of the server is left.

    python -m svdflow.export.supervise GRACE_S SHM_PREFIX SCRATCH PROGRAM ARGUMENT…

Standard input is a pipe whose other end svdflow holds: it closes when svdflow ends, also after SIGKILL, and the server
is then killed at once and its directory SCRATCH removed. SIGTERM gives it ``GRACE_S`` to finish its requests. (The
kernel's own parent-death signal follows the thread that started a child, so it is kept for the step from here to the
server.)
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from ..common.processes import become_subreaper, die_with_parent, end_tree

_POLL_S = 0.2


def main(arguments: list[str]) -> int:
    """Run the program until it ends, standard input closes or SIGTERM or SIGINT comes. Returns the exit status."""
    grace_s, shm_prefix, scratch, command = float(arguments[0]), arguments[1], arguments[2], arguments[3:]
    asked: list[int] = []
    abandoned = False
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, lambda number, _frame: asked.append(number))
    become_subreaper()  # the server's own children stay below this process when the server dies
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent)
        while child.poll() is None and not asked:
            if select.select([0], [], [], _POLL_S)[0] and not os.read(0, 1):
                child.kill()
                abandoned = True
                break
        if asked and child.poll() is None:
            child.terminate()
            try:
                child.wait(grace_s)
            except subprocess.TimeoutExpired:
                pass
        end_tree(0.0)
        return child.poll() or 0
    finally:
        for segment in Path("/dev/shm").glob(f"{shm_prefix}*"):  # a killed server leaves its shared memory behind
            segment.unlink(missing_ok=True)
        if abandoned:
            shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
