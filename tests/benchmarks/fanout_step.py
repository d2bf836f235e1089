"""A step that fans out, in a process of its own so that its memory can be told: prints what it took, as JSON."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet  # noqa: F401  as in every step

from svdflow.common.cluster.api import Cluster
from svdflow.common.fanout import Limits
from svdflow.common.fanout_jobs import IndexedJobs
from svdflow.common.fanout_manifest import FanoutSettings
from svdflow.common.storage import DataRoot
from svdflow.curation.split import split  # noqa: F401  what a step has in memory besides
from tests.fanout_work import Task, square


class Tasks(Sequence[Task]):
    """So many units, made when they are asked for: as long as those of split."""

    def __init__(self, count: int, place: str) -> None:
        self.count, self.place = count, place

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, at: Any) -> Any:
        if at >= self.count:
            raise IndexError(at)
        return Task(at, "a" * 600, self.place)


def main(url: str, folder: str, indexes: int, units: int) -> None:
    def configuration() -> Any:
        from kubernetes.client import Configuration

        made = Configuration()
        made.host, made.api_key["authorization"] = url, "Bearer token"
        return made

    settings = FanoutSettings(
        image="a:1", claim="work", claim_path=folder, units=units, parallelism=1000, max_failed_percent=20
    )
    root = DataRoot.open(Path(folder) / "data")
    executor = IndexedJobs(root, "bench", "key", settings, None, lambda: Cluster(configuration, "svdflow"))
    before, begun = peak_mib(), time.monotonic()
    found: Counter[str] = Counter()
    for outcome in executor.run(square, Tasks(indexes * units, folder), None, Limits()):
        found[outcome.error or "done"] += 1
    print(json.dumps({"before": before, "peak": peak_mib(), "seconds": time.monotonic() - begun, "found": found}))


def peak_mib() -> float:
    """The most memory this process has held. ``ru_maxrss`` would be that of the parent too, until exec."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
