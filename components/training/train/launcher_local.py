"""Training on this machine: torchrun as a child of this process.

The child ends with its parent, however that ends: it is told to checkpoint and stop. Its output goes to a log file;
what a caller sees of a failure is one line.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ...common.errors import ConfigError
from ...common.processes import die_with_parent
from .build_ops import clear_stale_locks, extensions_dir, gpu_count, worker_environment
from .endings import INTERRUPTED, TrainingFailed, TrainingInterrupted, error_line, last_line
from .heartbeat import Watch, read_beats
from .job import Job
from .signals import on_signals

_END_S = 5.0  # beyond the grace, for torchrun itself
_POLL_S = 0.05
_WATCH_S = 0.5


def launch(job: Job, folder: Path) -> dict[str, Any]:
    """Run ``svdflow.training.train.worker`` on a job and return what rank 0 reports.

    SIGUSR1 to this process leads to a checkpoint.

    Args:
        job: how many processes there are, and how long they may take, is part of its settings.
        folder: for the job file, the log (``train.log``), signs of life, the result and the error lines.

    Raises:
        ConfigError: this machine cannot run it so.
        TrainingInterrupted: this process was told to end (SIGTERM, SIGINT), or the time was over; a checkpoint is kept.
        TrainingFailed: a process failed or hung; carries its own line, or the end of the log.
    """
    settings, processes = job.settings, job.settings.processes
    check_machine(job)
    folder.mkdir(parents=True, exist_ok=True)
    result, log, job_file = folder / "result.json", folder / "train.log", folder / "job.json"
    for old in (result, *folder.glob("error-*.txt"), *folder.glob("beat-*.txt")):
        old.unlink(missing_ok=True)
    job.write(job_file)
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
    watch = Watch(folder, processes, settings.hang_timeout_s)
    with open(log, "wb") as output, on_signals(told, lambda: _send(folder, processes, signal.SIGUSR1)):
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
            hanging = _wait(process, told, watch, settings.timeout_s, settings.grace_s)
        finally:
            _end(process, folder, processes)
    status = process.returncode
    if hanging:
        raise TrainingFailed(
            f"{hanging}; the run was ended, run it again and it goes on from its last checkpoint (log: {log})"
        )
    if told:
        raise TrainingInterrupted(
            f"training was interrupted ({told[0]}); run it again and it goes on from its last checkpoint"
        )
    if status == 0 and result.is_file():
        return json.loads(result.read_text())
    if f": {INTERRUPTED} (pid" in log.read_text(errors="replace"):  # the workers were told, not this process
        raise TrainingInterrupted("training was interrupted from outside; run it again and it goes on")
    raise TrainingFailed(_cause(folder, log, status))


def check_machine(job: Job) -> None:
    """Refuse what this machine cannot run, before anything is started.

    Raises:
        ConfigError: names the field.
    """
    gpus, settings = gpu_count(), job.settings
    if gpus and settings.processes > gpus:
        raise ConfigError(
            f"train_{job.stage}.processes: {settings.processes} processes, but this machine has {gpus} GPUs; "
            f"take at most {gpus} and more accumulation"
        )


def _wait(
    process: subprocess.Popen[bytes], told: list[str], watch: Watch, timeout_s: float, grace_s: float
) -> str | None:
    """Wait for the processes' end. Returns a line when one of them hangs: they are still to be ended then."""
    deadline, next_look = time.monotonic() + timeout_s, 0.0
    while process.poll() is None:
        now = time.monotonic()
        if now > deadline:
            told.append(f"it took longer than {timeout_s:g} s")
        if told:
            process.terminate()  # torchrun passes it on; the workers checkpoint at the next step's end
            try:
                process.wait(grace_s + _END_S)
            except subprocess.TimeoutExpired:
                pass
            return None
        if now >= next_look:
            next_look = now + _WATCH_S
            if hanging := watch.hanging():
                return hanging
        time.sleep(_POLL_S)
    return None


def _send(folder: Path, processes: int, number: int) -> None:
    for beat in read_beats(folder, processes).values():
        try:
            os.kill(beat.pid, number)
        except ProcessLookupError:
            pass


def _end(process: subprocess.Popen[bytes], folder: Path, processes: int) -> None:
    """Leave no process behind: the workers are in sessions of their own and die with torchrun, a moment later."""
    if process.poll() is None:
        process.kill()
    process.wait()
    workers, deadline = [beat.pid for beat in read_beats(folder, processes).values()], time.monotonic() + _END_S
    while any(_is_worker(pid, folder) for pid in workers) and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _is_worker(pid: int, folder: Path) -> bool:
    import psutil

    try:
        return any(str(folder) in word for word in psutil.Process(pid).cmdline())
    except psutil.Error:
        return False


def _cause(folder: Path, log: Path, status: int | None) -> str:
    text = log.read_text(errors="replace") if log.is_file() else ""
    # Not of the root cause alone: torchrun may see first that another process missed the killed one, and ended.
    killed = re.search(r"rank\s*:\s*(\d+)[^\n]*\n\s*exitcode\s*:\s*-9", text)
    if killed and not error_line(folder, echoes=False):
        return (
            f"training process {killed[1]} was killed, most likely for want of memory: take more accumulation; "
            f"run again and it goes on from its last checkpoint (log: {log})"
        )
    if told := error_line(folder):
        return f"{told} (log: {log})"
    return f"the training processes ended with status {status}: {last_line(log)} (log: {log})"
