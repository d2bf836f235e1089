"""Starts the training processes and sees them through. The local backend: torchrun as a child of this process.

The child ends with its parent, however that ends: it is told to checkpoint and stop. Its output goes to a log file;
what a caller sees of a failure is one line.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...common.errors import SvdflowError
from ...common.processes import die_with_parent
from .build_ops import clear_stale_locks, extensions_dir, worker_environment

INTERRUPTED = 75  # exit status of a worker that was told to stop and wrote a checkpoint (EX_TEMPFAIL: run it again)
_GRACE_S = 60.0
_POLL_S = 0.05


class TrainingFailed(SvdflowError):
    """A training process ended before its work was done."""


class TrainingInterrupted(SvdflowError):
    """Training was told to stop; a checkpoint is kept and the next run goes on from it."""


def launch(job: dict[str, Any], folder: Path, processes: int, timeout_s: float) -> dict[str, Any]:
    """Run ``svdflow.training.train.worker`` on a job in ``processes`` processes and return what rank 0 reports.

    Args:
        job: plain values, see the worker.
        folder: for the job file, the log (``train.log``), the result and the error lines.
        processes: on this machine.
        timeout_s: after this the processes are told to checkpoint and stop.

    Raises:
        TrainingInterrupted: this process was told to end (SIGTERM, SIGINT), or the time was over; a checkpoint is kept.
        TrainingFailed: a process failed; carries its own line, or the end of the log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    result, log, job_file = folder / "result.json", folder / "train.log", folder / "job.json"
    for old in (result, *folder.glob("error-*.txt")):
        old.unlink(missing_ok=True)
    job_file.write_text(json.dumps(job, indent=1))
    extensions_dir().mkdir(parents=True, exist_ok=True)
    clear_stale_locks()
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc_per_node={processes}",
        "--standalone",
        "--local-addr=127.0.0.1",
        "--max-restarts=0",
        "-m",
        "svdflow.training.train.worker",
        str(job_file),
    ]
    environment = worker_environment() | {"GLOO_SOCKET_IFNAME": "lo"}
    told: list[str] = []
    with open(log, "wb") as output, _on_signals(told):
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: die_with_parent(signal.SIGTERM),
        )
        try:
            status = _wait(process, told, timeout_s)
        finally:
            _end(process)
    if told:
        raise TrainingInterrupted(
            f"training was interrupted ({told[0]}); run it again and it goes on from its last checkpoint"
        )
    if status == 0 and result.is_file():
        return json.loads(result.read_text())
    if f": {INTERRUPTED} (pid" in log.read_text(errors="replace"):  # the workers were told, not this process
        raise TrainingInterrupted("training was interrupted from outside; run it again and it goes on")
    raise TrainingFailed(_cause(folder, log, status))


def _wait(process: subprocess.Popen[bytes], told: list[str], timeout_s: float) -> int | None:
    deadline = time.monotonic() + timeout_s
    while process.poll() is None:
        if time.monotonic() > deadline:
            told.append(f"it took longer than {timeout_s:g} s")
        if told:
            process.terminate()  # torchrun passes it on; the workers checkpoint at the next step's end
            try:
                return process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                return None
        time.sleep(_POLL_S)
    return process.returncode


def _end(process: subprocess.Popen[bytes]) -> None:
    """Leave no process behind: the workers are in sessions of their own and die with torchrun."""
    if process.poll() is None:
        process.kill()
    process.wait()


@contextmanager
def _on_signals(told: list[str]) -> Iterator[None]:
    """Note SIGTERM and SIGINT instead of ending, so that the workers can be told first. Only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        s: signal.signal(s, lambda number, _: told.append(signal.Signals(number).name))
        for s in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _cause(folder: Path, log: Path, status: int | None) -> str:
    for line in sorted(folder.glob("error-*.txt")):
        return f"{line.read_text().strip()} (log: {log})"
    text = log.read_text(errors="replace") if log.is_file() else ""
    if "exitcode: -9" in text or "exitcode  : -9" in text or "Signal 9" in text:
        return f"a training process was killed, most likely for want of memory: take more accumulation (log: {log})"
    last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no output")
    return f"the training processes ended with status {status}: {last} (log: {log})"
