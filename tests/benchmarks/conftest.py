"""What the benchmarks share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def local_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work directory of runs of the profile `local`: what one of them has made, the next finds.

    SVDFLOW_BENCH_RUNS names one to keep, for benchmarks that are run one at a time.
    """
    kept = os.environ.get("SVDFLOW_BENCH_RUNS")
    return Path(kept).resolve() if kept else tmp_path_factory.mktemp("local runs")
