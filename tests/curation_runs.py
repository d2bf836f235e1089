"""Runs of the pipeline `curation` by its command: to the end, killed on the way, and what they leave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

MANIFESTS = ("videos", "clips", "annotations", "selection")


def command(workdir: Path, source: Path, *more: str) -> list[str]:
    start = [sys.executable, "-m", "svdflow.pipelines.cli", "run", "curation", "--profile", "test"]
    return [*start, "--set", "ingest.generated_clips=0", "--source", str(source), "-w", str(workdir), *more]


def start(workdir: Path, source: Path, *more: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        command(workdir, source, *more),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )


def finish(workdir: Path, source: Path, *more: str, timeout_s: float = 1800, **environment: str) -> dict[str, Any]:
    """Run to the end; returns the summary."""
    process = start(workdir, source, *more, **environment)
    try:
        _, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        kill_everything(process, workdir)
        raise
    assert process.returncode == 0, err[-3000:]
    return summary(workdir)


def summary(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / "summary.json").read_text())


def manifests(workdir: Path) -> dict[str, bytes]:
    return {kind: (workdir / "manifests" / f"{kind}.parquet").read_bytes() for kind in MANIFESTS}


def events(workdir: Path) -> list[dict[str, Any]]:
    """Events of the newest run."""
    files = sorted((workdir / "logs").glob("*.events")) if workdir.exists() else []
    return [json.loads(line) for line in files[-1].read_text().splitlines() if line.endswith("}")] if files else []


def wait_until(process: subprocess.Popen, workdir: Path, reached: Callable[[list[dict]], bool]) -> bool:
    """Wait until ``reached`` holds of the run's events; False when it ended before."""
    runs = len(list((workdir / "logs").glob("*.events")))
    while process.poll() is None:
        if len(list((workdir / "logs").glob("*.events"))) > runs and reached(events(workdir)):
            return True
        time.sleep(0.02)
    return False


def kill_everything(process: subprocess.Popen, workdir: Path) -> None:
    """SIGKILL for the command and all processes of its run at once, so that nobody tidies up."""
    doomed = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
    for pid in doomed:
        _kill(pid)
    process.wait()
    deadline = time.monotonic() + 120
    while (left := _processes_of(workdir)) and time.monotonic() < deadline:
        for pid in left:  # started or orphaned while we looked
            _kill(pid)
        time.sleep(0.05)
    assert not left


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _processes_of(workdir: Path) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            environment: Mapping[str, str] = process.environ()
            ours = str(workdir) in " ".join(process.cmdline()) or str(workdir) in environment.get("SVDFLOW_EVENTS", "")
            if ours and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found
