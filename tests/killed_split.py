"""The split step in a process group that is killed: at the n-th commit, or from outside."""

import os
import signal
import subprocess
import sys
from pathlib import Path

# Runs the step; dies with all its workers before or after the n-th time that something is put in its final place.
# Spawned workers import this file anew, so they are patched as well; the count is the length of a file they share.
DRIVER = """
import os, signal, sys
from pathlib import Path

base, moment, side = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
replace = Path.replace

def counted(self, target):
    with open(base / "commits", "ab") as log:
        log.write(b"x")
        log.flush()
        number = os.fstat(log.fileno()).st_size
    if number == moment and side == "before":
        os.killpg(0, signal.SIGKILL)
    done = replace(self, target)
    if number == moment and side == "after":
        os.killpg(0, signal.SIGKILL)
    return done

Path.replace = counted

if __name__ == "__main__":
    from svdflow.common.storage import DataRoot
    from svdflow.curation.split.settings import SplitSettings
    from svdflow.curation.split.split import split_videos

    root = DataRoot.open(base / "data")
    split_videos(base / "videos.parquet", base / "clips.parquet", root, SplitSettings(end="cut", min_s=0.3, max_s=10.0))
"""


def start(base: Path, moment: int = 0, side: str = "before") -> subprocess.Popen:
    """The step in a process group of its own."""
    (base / "commits").write_bytes(b"")
    (base / "driver.py").write_text(DRIVER)
    command = [sys.executable, str(base / "driver.py"), str(base), str(moment), side]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, env=quiet)


def finished(base: Path, process: subprocess.Popen) -> int:
    """Waits for the step; 0 when it ended by itself, with the manifest written."""
    _, errors = process.communicate(timeout=600)
    assert process.returncode in (0, -signal.SIGKILL), errors.decode()
    return process.returncode
