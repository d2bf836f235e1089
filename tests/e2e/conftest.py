"""One real run of the pipeline `svd`, ended on its way, that all end-to-end tests look at."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest

from svdflow.common.video import encode_mp4
from tests.waiting import wait_for


@dataclass
class Run:
    """A finished command: exit status, output, and the work directory."""

    status: int
    out: str
    err: str
    workdir: Path

    @property
    def summary(self) -> dict:
        return json.loads((self.workdir / "summary.json").read_text())


def svdflow(*arguments: str | Path, timeout: float = 3600) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "svdflow.pipelines.cli", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def run_command(workdir: Path, source: Path, *more: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "svdflow.pipelines.cli",
        "run",
        "svd",
        "--profile",
        "test",
        "-w",
        str(workdir),
        "--source",
        str(source),
        *more,
    ]


def run_svd(workdir: Path, source: Path, *more: str, timeout: float = 3600) -> Run:
    done = subprocess.run(
        run_command(workdir, source, *more),
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return Run(done.returncode, done.stdout, done.stderr, workdir)


def processes_of(workdir: Path) -> list[str]:
    """Command lines of live processes that belong to a run: they name its work directory, or carry its event file."""
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
            ours = str(workdir) in line or str(workdir) in process.environ().get("SVDFLOW_EVENTS", "")
            if ours and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(line[:150])
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def run_and_end(workdir: Path, source: Path, step: str, signum: int, after: Callable[[list[dict]], bool]) -> list[str]:
    """Start the run, end the command when ``after`` holds of the step's events; returns what stays."""
    process = subprocess.Popen(run_command(workdir, source), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def reached() -> bool:
        files = sorted((workdir / "logs").glob("*.events")) if workdir.exists() else []
        lines = [json.loads(line) for line in files[-1].read_text().splitlines() if line.endswith("}")] if files else []
        return process.poll() is not None or after([e for e in lines if e["step"] == step])

    try:
        assert wait_for(reached, 3600), f"the run never came to {step}"
        assert process.poll() is None, f"the run ended before {step} could be interrupted; see {workdir}/logs"
    finally:
        process.send_signal(signum)
        process.wait(120)
    wait_for(lambda: not processes_of(workdir), 120)
    return processes_of(workdir)


def _bad_files(source: Path, good: Path) -> None:
    whole = good.read_bytes()
    (source / "truncated.mp4").write_bytes(whole[: len(whole) // 3])
    (source / "notes.mp4").write_text("this is no video\n" * 50)
    (source / "empty.mp4").write_bytes(b"")
    (source / "one frame.mp4").write_bytes(encode_mp4(np.full((1, 64, 64, 3), 127, np.uint8), 25))
    (source / "sound only.mp4").write_bytes(_sound())


def _sound() -> bytes:
    import io

    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        stream.layout = "mono"
        for n in range(8):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 8000, n * 1024
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory, media: Path) -> Path:
    """Real footage under awkward names, and files that nobody can use."""
    folder = tmp_path_factory.mktemp("raw footage")
    shutil.copy(media / "bikes.mp4", folder / "vélos dans la rue.mp4")
    shutil.copy(media / "carphone_pristine.mp4", folder / "car phone.mp4")
    _bad_files(folder, media / "bigbuckbunny.mp4")
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, source: Path) -> Run:
    """The run, after it was ended at three steps on its way, in each way that a command can end."""
    workdir = tmp_path_factory.mktemp("work") / "svd run"
    for step, signum, reached in (
        ("annotate", signal.SIGINT, lambda events: any(e.get("done", 0) >= 2 for e in events)),
        (
            "train_video",
            signal.SIGTERM,
            lambda events: any(e.get("what") == "steps" and e["done"] >= 2 for e in events),
        ),
        ("serve", signal.SIGKILL, lambda events: any(e.get("what") == "requests" for e in events)),  # and Triton
    ):
        left = run_and_end(workdir, source, step, signum, reached)
        assert left == [], f"processes outlived a command that was ended in {step}"
    run = run_svd(workdir, source)
    assert run.status == 0, run.err[-3000:]
    return run
