"""What the benchmarks share."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def local_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work directory of runs of the profile `local`: what one of them has made, the next finds.

    SVDFLOW_BENCH_RUNS names one to keep, for benchmarks that are run one at a time.
    """
    kept = os.environ.get("SVDFLOW_BENCH_RUNS")
    return Path(kept).resolve() if kept else tmp_path_factory.mktemp("local runs")


@pytest.fixture(scope="session")
def run_local(local_runs: Path, media: Path) -> Callable[[Mapping[str, object]], dict]:
    """Run the pipeline `svd` there with changed settings; gives its summary."""

    def run(changes: Mapping[str, object]) -> dict:
        command = [sys.executable, "-m", "svdflow.pipelines.cli", "run", "svd", "-w", str(local_runs)]
        command += ["--source", str(media)]
        for setting, value in changes.items():
            command += ["--set", f"{setting}={value}"]
        assert subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode == 0
        return json.loads((local_runs / "summary.json").read_text())

    return run
