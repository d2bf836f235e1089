"""Fan-out over pods, end to end: a real client, a fake API server with a Job controller, pods that are processes.

Who owns jobs and files is in ``test_fanout_owners.py``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from svdflow.common.cluster.api import Cluster
from svdflow.common.errors import ConfigError, ServiceError, StorageError
from svdflow.common.fanout import Outcome
from svdflow.common.fanout_plan import read_part, write_plan
from tests.fakes.kube_kubelet import Container, Ending, as_process, until_told
from tests.fakes.kube_rules import JOBS, PODS
from tests.fakes.kube_store import wait_for
from tests.fanout_lab import NAMESPACE, Lab, at_once, first_only, good, limits, pods_do
from tests.fanout_work import square


def test_every_unit_comes_back_once_whatever_some_do_to_their_worker(lab):
    with pods_do(lab, as_process):
        found = lab.run(("a", "refused", "b", "c", "crash", "d", "e"), together=None)
    assert sorted(number for number, outcome in found.items() if good(outcome)) == [0, 2, 3, 5, 6]
    assert found[1].error == "1 is refused"
    assert "died (exit code -11)" in found[4].error
    assert lab.tries(4) == 2 and lab.tries(0) == 1
    assert lab.files() == []


def test_what_ends_a_pod_is_set_aside_alone_with_the_reason_and_its_neighbours_are_done(lab):
    def kernel(container: Container) -> Any:
        status = as_process(container)
        return Ending(137, "OOMKilled") if status == 137 else status

    with pods_do(lab, kernel):
        found = lab.run(("a", "b", "c", "d", "kill the pod", "e", "f"), units=7, retries=2, memory="3Gi", together=None)
    assert sorted(number for number, outcome in found.items() if good(outcome)) == [0, 1, 2, 3, 5, 6]
    assert found[4].error == "its pod took more than its 3Gi of memory (OOMKilled)"
    assert lab.tries(4) == 3


def test_a_function_may_work_on_all_units_of_a_pod_together(lab):
    with pods_do(lab, at_once):
        found = lab.run(("a", "b", "c"))
    assert all(map(good, found.values())) and len({outcome.value.worker for outcome in found.values()}) == 1


def test_one_object_however_many_pods_and_every_pod_without_a_token(lab):
    with pods_do(lab, at_once):
        lab.run(("a",) * 9, units=1, parallelism=3)
    assert [r.path for r in lab.api.asked("POST")] == [f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"]
    (job,) = lab.jobs()
    assert job["spec"]["completions"] == 9 and job["spec"]["parallelism"] == 3
    pods = lab.api.store.objects(PODS)
    assert len(pods) == 9
    for pod in pods:
        assert pod["spec"]["automountServiceAccountToken"] is False and pod["spec"]["serviceAccountName"] == "fan-out"
        assert pod["spec"]["securityContext"]["runAsUser"] == 1000
        (container,) = pod["spec"]["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_pods_have_the_step_s_own_image_unless_another_is_named(lab):
    container = {"name": "main", "image": "registry.example/curation@sha256:1"}
    pod = {"metadata": {"name": "step"}, "spec": {"containers": [{"name": "wait", "image": "argo"}, container]}}
    with pytest.raises(ConfigError, match="has to name the image"):
        lab.run(("a",), image=None)
    lab.api.store.create(PODS, NAMESPACE, pod)
    os.environ["KFP_POD_NAME"] = "step"
    with pods_do(lab, at_once):
        assert good(lab.run(("a",), image=None)[0])
    assert lab.jobs()[0]["spec"]["template"]["spec"]["containers"][0]["image"] == container["image"]


def test_a_job_deleted_by_somebody_else_is_begun_anew_with_what_is_missing(lab):
    gone = threading.Event()

    def first_only(container: Container) -> Any:
        if container.index == 0 or gone.is_set():
            return at_once(container)
        return until_told(container)

    with pods_do(lab, first_only):
        outcomes = lab.executor().run(square, lab.tasks(*"abcdef"), None, limits())
        found = [next(outcomes) for _ in range(3)]
        (job,) = lab.jobs()
        gone.set()
        lab.api.store.delete(JOBS, NAMESPACE, job["metadata"]["name"], {"propagationPolicy": "Background"})
        found += list(outcomes)
    assert sorted(outcome.unit.number for outcome in found) == list(range(6)) and all(map(good, found))
    (again,) = lab.jobs()
    assert again["metadata"]["name"] == job["metadata"]["name"] + "-2" and again["spec"]["completions"] == 1
    assert all(lab.tries(n) == 1 for n in range(6))


def test_more_failed_pods_than_allowed_fail_the_step_and_the_next_run_begins_anew(lab):
    mended = threading.Event()

    def bad(container: Container) -> Any:
        return at_once(container) if container.index == 0 or mended.is_set() else 1

    with pods_do(lab, bad):
        found = []
        with pytest.raises(ServiceError, match="of 3 pods failed or were ended, and 1 may fail .* status 1"):
            for outcome in lab.executor(retries=0).run(square, lab.tasks(*"abcdefghi"), None, limits()):
                found.append(outcome)
        assert sorted(o.unit.number for o in found if o.ok) == [0, 1, 2]
        mended.set()
        again = lab.run(tuple("abcdefghi"), retries=0)
    assert all(map(good, again.values())) and len(lab.jobs()) == 2


def test_at_its_deadline_what_is_not_done_is_set_aside(lab):
    with pods_do(lab, first_only) as cluster:
        cluster.jobs.second = 60.0
        outcomes = lab.executor(deadline_s=400).run(square, lab.tasks(*"abcdef"), None, limits())
        done = [next(outcomes) for _ in range(3)]
        cluster.jobs.second = 0.0  # the time is over
        late = list(outcomes)
    assert sorted(outcome.unit.number for outcome in done) == [0, 1, 2] and all(map(good, done))
    assert sorted(outcome.unit.number for outcome in late) == [3, 4, 5]
    assert {outcome.error for outcome in late} == {"the fan-out's deadline was over"}


def test_quota_that_is_never_granted_ends_with_the_queue_s_own_words(lab, capsys, monkeypatch):
    with pods_do(lab, at_once) as cluster:
        cluster.jobs.hold = True
        monkeypatch.setattr(lab.api.store, "create", with_workloads(lab))
        with pytest.raises(ServiceError, match=r"not let run within 0.3 s by queue fan-out: .*unused quota for cpu"):
            lab.run(("a",), quota_wait_s=0.3)
    assert "waits in queue fan-out: couldn't assign flavors" in capsys.readouterr().err
    assert not lab.jobs() and lab.files() == []


def test_an_image_that_cannot_be_had_ends_the_step(lab):
    with pods_do(lab, at_once) as cluster:
        cluster.kubelet.image_error = ("ImagePullBackOff", 'Back-off pulling image "registry.example/curation:1"')
        with pytest.raises(ServiceError, match="do not start: ImagePullBackOff: Back-off pulling image"):
            lab.run(("a",), image_wait_s=0.3)
        wait_for(lambda: not lab.jobs())


def test_pods_of_another_version_fail_the_job_at_once(lab):
    def other(container: Container) -> Any:
        for uri in lab.files():
            if uri.endswith("plan.json"):
                lab.root.put_named(uri, lab.root.read(uri).replace(b'"svdflow": "', b'"svdflow": "9'))
        return as_process(container)

    with pods_do(lab, other), pytest.raises(ConfigError, match="cannot do this work"):
        lab.run(("a", "b", "c"))


def test_a_data_root_that_fails_in_pods_is_no_fault_of_units(lab):
    with pods_do(lab, as_process), pytest.raises(StorageError, match="the disk is full"):
        lab.run(("a", "no disk"), retries=0, together=None)


def test_evicted_pods_are_replaced_and_nothing_that_was_kept_is_done_again(lab):
    first = threading.Event()

    def drained_once(container: Container) -> Any:
        if not first.is_set():
            first.set()
            return until_told(container)
        return at_once(container)

    with pods_do(lab, drained_once) as cluster:
        outcomes = lab.executor(retries=0).run(square, lab.tasks("a", "b"), None, limits())
        thread: list[Outcome] = []
        reader = threading.Thread(target=lambda: thread.extend(outcomes), daemon=True)
        reader.start()
        pod = wait_for(lambda: [p for p in lab.api.store.objects(PODS) if p["status"].get("phase") == "Running"])[0]
        cluster.evict(pod)
        reader.join(120)
    assert len(thread) == 2 and all(map(good, thread))
    assert lab.jobs()[0]["status"].get("failed", 0) == 0


def test_a_lost_node_costs_no_unit_and_is_not_counted(lab):
    first = threading.Event()

    def lost_once(container: Container) -> Any:
        if not first.is_set():
            first.set()
            return until_told(container)
        return at_once(container)

    with pods_do(lab, lost_once) as cluster:
        found: list[Outcome] = []
        outcomes = lab.executor(retries=0).run(square, lab.tasks("a", "b"), None, limits())
        reader = threading.Thread(target=lambda: found.extend(outcomes), daemon=True)
        reader.start()
        pod = wait_for(lambda: [p for p in lab.api.store.objects(PODS) if p["status"].get("phase") == "Running"])[0]
        cluster.lose_node(pod)
        reader.join(120)
    assert len(found) == 2 and all(map(good, found))


def test_credentials_that_expire_half_way_are_read_anew(lab):
    renewed = threading.Event()

    def held_back(container: Container) -> Any:
        renewed.wait(120)
        return at_once(container)

    def connect() -> Cluster:
        return Cluster(lambda: lab.api.configuration("new" if renewed.is_set() else "token"), NAMESPACE, patience_s=120)

    with pods_do(lab, held_back):
        found: list[Outcome] = []
        executor = lab.executor()
        executor._cluster = connect
        outcomes = executor.run(square, lab.tasks(*"abcd"), None, limits())
        reader = threading.Thread(target=lambda: found.extend(outcomes), daemon=True)
        reader.start()
        wait_for(lambda: lab.api.store.objects(PODS))
        lab.api.tokens["new"] = ("system:admin", float("inf"))
        lab.api.expire("token")
        renewed.set()
        lab.api.cut_streams()
        reader.join(120)
    assert len(found) == 4 and all(map(good, found))


def test_a_step_killed_right_after_it_created_its_job_goes_on_in_the_next_one(lab):
    go = threading.Event()

    def held_back(container: Container) -> Any:
        go.wait(120)
        return at_once(container)

    command = [sys.executable, "-m", "tests.benchmarks.fanout_step", lab.api.url, str(lab.folder), "2", "2"]
    with pods_do(lab, held_back):
        step = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_for(lab.jobs)
        step.kill()
        step.wait()
        go.set()
        again = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["found"] == {"done": 4}
    assert [request.status for request in lab.api.asked("POST")].count(201) == 1 and not lab.files()


def test_the_api_server_may_be_away_for_a_while(lab):
    ready = threading.Event()

    def held_back(container: Container) -> Any:
        ready.wait(120)
        return at_once(container)

    with pods_do(lab, held_back):
        found: list[Outcome] = []
        outcomes = lab.executor().run(square, lab.tasks(*"abcd"), None, limits())
        reader = threading.Thread(target=lambda: found.extend(outcomes), daemon=True)
        reader.start()
        wait_for(lambda: lab.api.store.objects(PODS))
        with lab.api.away():
            ready.set()
            wait_for(lambda: lab.jobs()[0].get("status", {}).get("succeeded") == 2)
        reader.join(120)
    assert len(found) == 4 and all(map(good, found))


def test_a_pod_that_writes_nonsense_costs_its_own_units(lab):
    def mad(container: Container) -> Any:
        if container.index == 0:
            (name,) = {uri.split("/")[1] for uri in lab.files()}
            lab.root.put_named(f"fanout/{name}/outcomes/00000.json", b"\x80\x04cos\nsystem\n")
            return 0
        return at_once(container)

    with pods_do(lab, mad):
        found = lab.run(tuple("abcdef"))
    assert sorted(number for number, o in found.items() if good(o)) == [3, 4, 5]
    assert all("no outcomes that can be read" in found[n].error for n in (0, 1, 2))


def test_a_worker_that_is_told_to_end_keeps_what_it_has(lab, tmp_path):
    plan, _ = write_plan(lab.root, "squares", square, None, lab.tasks("a", "b", "c", "hold", "d"), 5, 1, limits())
    environment = {**os.environ, "JOB_COMPLETION_INDEX": "0", "SVDFLOW_DATA_ROOT": lab.root.location}
    command = [sys.executable, "-m", "svdflow.common.fanout_worker", plan.name]
    worker = subprocess.Popen(command, env=environment)
    wait_for(lambda: lab.tries(3))
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(120) == 75
    kept = read_part(lab.root, plan, 0)
    assert kept.begun == 1 and not kept.done and {0, 1} <= set(kept.outcomes) <= {0, 1, 2}


def with_workloads(lab: Lab) -> Callable[..., Any]:
    """Makes objects, with every Job Kueue's account of why it waits."""
    from tests.fakes.kube_rules import WORKLOADS

    told = "couldn't assign flavors to pod set main: insufficient unused quota for cpu in flavor svdflow-cpu-spot"

    make = lab.api.store.create

    def create(resource: Any, namespace: str, obj: dict[str, Any], *how: Any) -> dict[str, Any]:
        job = make(resource, namespace, obj, *how)
        if resource is not JOBS:
            return job
        labels = {"kueue.x-k8s.io/job-uid": job["metadata"]["uid"]}
        made = {"metadata": {"name": "job-squares", "labels": labels}, "spec": {"active": True}}
        make(WORKLOADS, NAMESPACE, made)
        waits = {"type": "QuotaReserved", "status": "False", "reason": "WaitingForQuota", "message": told}
        lab.api.store.set_status(WORKLOADS, NAMESPACE, "job-squares", conditions=[waits])
        return job

    return create
