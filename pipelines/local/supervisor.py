"""The process between the command and kfp.local: it owns the run's process tree and ends it with the command.

kfp.local leaves its tasks running when it is killed, and tasks start processes in sessions of their own. So the
supervisor is a session leader and a subreaper, is told by the kernel when the command ends however it ends, and then
ends every process below it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from svdflow.common.processes import become_subreaper, die_with_parent, end_tree

GRACE_S = 5.0  # a training step takes about a second, a checkpoint less; after 10 s nothing may be left


class _Ended(Exception):
    """The command ended or asked for an end."""


def main(job_path: str, command_pid: int) -> int:
    """Run the job in a child process and wait for it; returns its exit status.

    Args:
        job_path: JSON with ``ir``, ``arguments``, ``pipeline_root`` and ``log``.
        command_pid: the process whose end ends the run.
    """

    def ended(signum: int, frame: FrameType | None) -> None:
        raise _Ended

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command answers Ctrl-C, and tells us
    signal.signal(signal.SIGTERM, ended)
    become_subreaper()
    child: subprocess.Popen | None = None
    try:
        die_with_parent(signal.SIGTERM)
        if os.getppid() != command_pid:  # it ended before the kernel was asked to tell
            return 143
        job = json.loads(Path(job_path).read_text())
        with open(job["log"], "ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "svdflow.pipelines.local.kfp_run", job_path], stdout=log, stderr=log
            )
        return child.wait()
    except _Ended:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return 143
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_tree(GRACE_S if child and child.returncode is None else 1.0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
