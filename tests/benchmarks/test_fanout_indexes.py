"""A fan-out of 10,000 pods: objects and requests in the API, memory of the step (some minutes).

pytest -s tests/benchmarks/test_fanout_indexes.py

The step is a process of its own. The API server is the tests' own: it holds the Job, its 10,000 pods and 10,000 of
others, and shows indexes as complete in random order, which makes the Job's status as long as it can be. What pods do
is left out: their outcomes are written as a pod would write them.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from svdflow.common.fanout_manifest import PLAN_NOTE
from svdflow.common.fanout_plan import Part, Plan, read_plan, write_part
from svdflow.common.storage import DataRoot
from tests.fakes.kube_api import KubeAPI
from tests.fakes.kube_jobs import ranges
from tests.fakes.kube_rules import JOBS, PODS
from tests.fakes.kube_store import wait_for
from tests.fanout_work import Done

UNITS = 16  # of a pod
UPDATES = 100  # of the Job's status
FAILED = 20


def play(api: KubeAPI, root: DataRoot, indexes: int) -> None:
    """Pods and Job controller: outcomes, then the status that tells of them."""
    (job,) = wait_for(lambda: api.store.objects(JOBS), 300)
    name, plan = job["metadata"]["name"], read_plan(root, job["metadata"]["annotations"][PLAN_NOTE])
    assert plan is not None and plan.indexes == indexes
    order = list(range(indexes))
    random.Random(0).shuffle(order)
    failed, completed = set(order[:FAILED]), set[int]()
    for index in order:
        api.store.impose(PODS, "svdflow", pod(name, index, index in failed))
    rest = order[FAILED:]
    for update in range(UPDATES):
        chosen = rest[update * len(rest) // UPDATES : (update + 1) * len(rest) // UPDATES]
        for index in chosen:
            write_part(root, plan, index, outcomes(plan, index))
        completed |= set(chosen)
        status: dict[str, Any] = {"completedIndexes": ranges(completed), "active": 1000, "ready": 1000}
        status["failedIndexes"] = ranges(failed) if update else ""
        api.store.set_status(JOBS, "svdflow", name, **status)
    told = {"reason": "FailedIndexes", "message": "Job has failed indexes", "status": "True"}
    api.store.set_status(JOBS, "svdflow", name, active=0, conditions=[{"type": "Failed", **told}])


def outcomes(plan: Plan, index: int) -> Part:
    done = {at: (Done(place**2, b"x" * 400, None, 1), None, 1.0) for at, place in enumerate(plan.part(index))}
    return Part(done, begun=1, done=True)


def pod(job: str, index: int, failed: bool) -> dict[str, Any]:
    labels = {"batch.kubernetes.io/job-name": job, "batch.kubernetes.io/job-completion-index": str(index)}
    end = {"exitCode": 137, "reason": "OOMKilled"} if failed else {"exitCode": 0, "reason": "Completed"}
    status = {"phase": "Failed" if failed else "Succeeded"}
    shown = [{"name": "worker", "image": "a:1", "state": {"terminated": end}}]
    meta = {"name": f"{job}-{index}-{index:05d}", "namespace": "svdflow", "uid": f"{job}-{index}", "labels": labels}
    made = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"containers": [{"name": "worker"}]}}
    return {**made, "status": {**status, "containerStatuses": shown}}


@pytest.mark.parametrize("indexes", [100, 10_000])
def test_objects_and_memory_do_not_grow_with_pods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, indexes: int):
    monkeypatch.setenv("SVDFLOW_FANOUT_PACKAGES", "tests")
    with KubeAPI() as api:
        for index in range(indexes):
            api.store.impose(PODS, "svdflow", pod("other", index, False))
        root = DataRoot.open(tmp_path / "data")
        controller = threading.Thread(target=play, args=(api, root, indexes), daemon=True)
        controller.start()
        command = [
            sys.executable,
            "-m",
            "tests.benchmarks.fanout_step",
            api.url,
            str(tmp_path),
            str(indexes),
            str(UNITS),
        ]
        done = subprocess.run(
            command, env=os.environ | {"KFP_POD_NAME": "none"}, capture_output=True, text=True, timeout=1800
        )
        assert done.returncode == 0, done.stderr[-3000:]
        told = json.loads(done.stdout.splitlines()[-1])
        controller.join(60)
        created = [request.path for request in api.asked("POST")]
        sent = sum(request.sent for request in api.requests) / 2**20
    print(f"\n{indexes} pods, {indexes * UNITS} units: {told['seconds']:.0f} s, {len(created)} object created, "
          f"{len(api.requests)} requests ({sent:.1f} MiB beside watches), memory {told['before']:.0f} MiB before, "
          f"{told['peak']:.0f} MiB at most")  # fmt: skip
    assert len(created) == 1 and len(api.requests) < 30
    assert told["peak"] < 200
    failed = {reason: count for reason, count in told["found"].items() if reason != "done"}
    assert failed == {"its pod took more than its 8Gi of memory (OOMKilled)": FAILED * UNITS}
    assert told["found"]["done"] == (indexes - FAILED) * UNITS
