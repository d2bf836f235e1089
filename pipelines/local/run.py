"""`svdflow run`: check what can be checked at once, run supervised, show progress, say how it ended."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any

import psutil
import yaml
from rich.console import Console

from svdflow.common.config import sendable
from svdflow.common.errors import BadInputError, ConfigError, StorageError
from svdflow.common.files import DISK_FULL, write_atomic
from svdflow.common.report import StepReport
from svdflow.common.steps import steps_directory
from svdflow.common.storage import DataRoot

from ..registry import compiled_path, parameters, require_chain, resolve_settings, task_count
from .display import View

MINIMUM_FREE_BYTES = 500 * 1000**2
FULL_BYTES = 1000**2
KEPT_RUNS = 10
MEMORY_INTERVAL_S = 2.0


@dataclass(frozen=True)
class RunResult:
    """How a run ended: its exit status (0, 1 failed, 130 interrupted), and where to look."""

    status: int
    run_id: str
    workdir: Path
    log: Path
    errors: list[str]


def run_pipeline(
    name: str,
    workdir: Path,
    profile: str,
    overrides: Mapping[str, Any],
    arguments: Mapping[str, Any],
    ir: Path | None = None,
) -> RunResult:
    """Run a compiled pipeline on this machine.

    Args:
        name: the pipeline.
        workdir: made when missing; a second run in it finds the first one's work.
        profile: see ``svdflow.common.config``.
        overrides: dotted setting to value.
        arguments: the pipeline's further parameters (``source``, ``objects``).
        ir: the compiled pipeline; the committed one of that name unless told.

    Raises:
        ConfigError: there is no such pipeline, it takes no such argument, or a setting is wrong.
        BadInputError: another run uses the work directory.
        StorageError: the work directory cannot be written, its disk is full, or the data root does not answer.
    """
    ir = ir or compiled_path(name)
    if unknown := sorted(set(arguments) - parameters(ir)):
        raise ConfigError(f"the pipeline {name} takes no --{unknown[0]}; leave it out")
    settings = resolve_settings(profile, overrides)
    require_chain(name, settings)
    _require_data_root()
    workdir = workdir.absolute()
    with _locked(workdir) as lock, _data_root_claimed(name, workdir):
        _require_space(workdir)
        run_id = time.strftime("%Y%m%d-%H%M%S-") + uuid.uuid4().hex[:6]
        _forget_old_runs(workdir)
        log, events = workdir / "logs" / f"{run_id}.log", workdir / "logs" / f"{run_id}.events"
        pipeline_root = workdir / "artifacts" / run_id
        job = {
            "ir": str(ir),
            "arguments": {"workdir": str(workdir), "profile": profile, "overrides": sendable(overrides), **arguments},
            "pipeline_root": str(pipeline_root),
            "log": str(log),
        }
        write_atomic(log, b"")
        write_atomic(events, b"")
        write_atomic(workdir / "settings.yaml", yaml.safe_dump(settings, sort_keys=False).encode())
        job_path = workdir / "logs" / f"{run_id}.job.json"
        write_atomic(job_path, json.dumps(job).encode())
        environment = os.environ | {"SVDFLOW_RUN_ID": run_id, "SVDFLOW_EVENTS": str(events), "PYTHONUNBUFFERED": "1"}
        interrupted, status, peak_bytes = _supervise(job_path, lock, environment, events, task_count(ir))
        reports = _step_reports(workdir, run_id)
        errors = [f"{r.step}: {r.error}" for r in reports if r.error]
        if interrupted:
            status = 130
        elif status and shutil.disk_usage(workdir).free < FULL_BYTES:  # nobody could write down what happened
            errors = [f"{_last_step(events)}: {workdir}: {DISK_FULL}"]
        elif status and not errors:
            errors = [f"the run ended with exit status {status} before a step could say why; see {log}"]
        with suppress(StorageError):  # a courtesy: a full disk was reported above
            _add_peak_memory(workdir, run_id, peak_bytes)
        return RunResult(status, run_id, workdir, log, errors)


def _supervise(
    job_path: Path, lock: IO[bytes], environment: Mapping[str, str], events: Path, tasks: int
) -> tuple[bool, int, int]:
    """Start the supervisor, show progress until it ends; returns (interrupted, exit status, peak memory in bytes)."""
    stop: list[int] = []
    peak_bytes, measured_at = 0, 0.0

    def asked(signum: int, frame: FrameType | None) -> None:
        stop.append(signum)

    previous = {number: signal.signal(number, asked) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    command = [sys.executable, "-m", "svdflow.pipelines.local.supervisor", str(job_path), str(os.getpid())]
    # The supervisor inherits the lock, so that no second run starts while it still ends processes of this one.
    supervisor = subprocess.Popen(
        command, env=dict(environment), start_new_session=True, pass_fds=[lock.fileno()], stdin=subprocess.DEVNULL
    )
    view = View(Console(file=sys.stderr), events, tasks)
    try:
        while supervisor.poll() is None:
            view.update()
            if time.monotonic() - measured_at > MEMORY_INTERVAL_S:
                peak_bytes, measured_at = max(peak_bytes, memory_bytes()), time.monotonic()
            if len(stop) == 1:
                stop.append(0)
                view.say("stopping: work already done is kept …")
                supervisor.send_signal(signal.SIGTERM)
            time.sleep(0.1)
        view.update()
    finally:
        if supervisor.poll() is None:
            supervisor.send_signal(signal.SIGTERM)
            supervisor.wait()
        view.close()
        for number, handler in previous.items():
            signal.signal(number, handler)
    return bool(stop), supervisor.returncode, peak_bytes


def memory_bytes() -> int:
    """Memory of this process and all below it; what they share is counted once (PSS)."""
    total = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def _add_peak_memory(workdir: Path, run_id: str, peak_bytes: int) -> None:
    path = workdir / "summary.json"
    summary = json.loads(path.read_text()) if path.is_file() else {}
    if summary.get("run", {}).get("id") == run_id:
        summary["run"]["peak_memory_mb"] = round(peak_bytes / 1e6)
        write_atomic(path, json.dumps(summary, indent=2, sort_keys=True).encode())


class _locked:  # noqa: N801 - reads as a verb in a with statement
    """One run at a time in a work directory; the lock goes with its last holder, however that ends."""

    def __init__(self, workdir: Path) -> None:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            self.file = open(workdir / ".lock", "a+b")
        except OSError as error:
            raise StorageError(
                f"{workdir}: cannot be used as work directory ({error.strerror}); choose another with --workdir"
            ) from error
        self.workdir = workdir

    def __enter__(self) -> IO[bytes]:
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.file.close()
            raise BadInputError(
                f"{self.workdir}: another run is using this work directory; wait for it or choose another --workdir"
            ) from None
        return self.file

    def __exit__(self, *exc: object) -> None:
        self.file.close()


def _require_space(workdir: Path) -> None:
    free = shutil.disk_usage(workdir).free
    if free < MINIMUM_FREE_BYTES:
        raise StorageError(
            f"{workdir}: only {free // 1000**2} MB are free and a run wants {MINIMUM_FREE_BYTES // 1000**2} MB; "
            "free some space or choose another --workdir"
        )


def _require_data_root() -> None:
    """A data root in S3 must answer at once: steps wait for one that goes away, but a wrong address is told here."""
    location = os.environ.get("SVDFLOW_DATA_ROOT", "")
    if location.startswith("s3://"):
        from svdflow.common.storage_s3 import S3Root

        S3Root(location, patience_s=0)


@contextmanager
def _data_root_claimed(name: str, workdir: Path) -> Iterator[None]:
    """A data root of several work directories: who tidies it up from another one sees that a run relies on it."""
    location = os.environ.get("SVDFLOW_DATA_ROOT")
    if not location:  # the work directory's own, guarded by its lock
        yield
        return
    from svdflow.curation.version import claims

    with claims.adding(DataRoot.open(location), f"running {name} in {workdir}"):
        yield


def _forget_old_runs(workdir: Path) -> None:
    """Keep the logs and passing artifacts of the newest runs; results lie in the data root and stay."""
    for place in ("artifacts", "steps"):
        runs = sorted(path for path in (workdir / place).glob("*") if path.is_dir())
        for path in runs[: -KEPT_RUNS + 1]:
            shutil.rmtree(path, ignore_errors=True)
    for path in sorted((workdir / "logs").glob("*"))[: -3 * KEPT_RUNS]:
        path.unlink(missing_ok=True)


def _last_step(events: Path) -> str:
    """The step that was at work at the end; the report is made after a failure too and says nothing."""
    steps = [json.loads(line)["step"] for line in events.read_text().splitlines() if line.endswith("}")]
    return next((step for step in reversed(steps) if step not in ("", "report")), "the run")


def _step_reports(workdir: Path, run_id: str) -> Iterator[StepReport]:
    for path in sorted(steps_directory(str(workdir), run_id).glob("*.json"), key=lambda p: p.stat().st_mtime_ns):
        yield StepReport.from_json(path.read_bytes())
