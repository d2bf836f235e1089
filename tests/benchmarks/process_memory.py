"""The memory of a process and all below it while it works."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

_POLL_S = 0.05


def run_measured(script: str, *arguments: str | Path, cores: int = 2) -> tuple[float, float, float]:
    """Run a script in a process of its own on so many cores.

    Returns:
        Seconds, and the peak over its process tree of resident memory and of private memory (which no file backs), in
        GiB.
    """
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-c", script, *map(str, arguments)])
    whole = psutil.Process(process.pid)
    whole.cpu_affinity(sorted(os.sched_getaffinity(0))[:cores])
    resident = private = 0
    while process.poll() is None:
        try:
            tree = [whole, *whole.children(recursive=True)]
            resident = max(resident, sum(p.memory_info().rss for p in tree))
            private = max(private, sum(p.memory_info().rss - p.memory_info().shared for p in tree))
        except psutil.NoSuchProcess:
            continue
        time.sleep(_POLL_S)
    assert process.wait() == 0
    return time.monotonic() - started, resident / 2**30, private / 2**30
