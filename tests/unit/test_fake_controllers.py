"""The controllers of the fake cluster write what the recorded ones wrote: the same conditions, reasons and statuses."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.kube_api import KubeAPI
from tests.fakes.kube_controllers import Controllers
from tests.fakes.kube_jobs import ranges
from tests.fakes.kube_kubelet import TERM, Container, Ending, succeed, until_told
from tests.fakes.kube_rules import JOBS, PODS, QUEUE, TRAINJOBS, WORKLOADS
from tests.fakes.kube_store import Object, Resource, Store, wait_for

RECORDINGS = Path(__file__).resolve().parents[2].parent / "shared" / "transcripts"
NS = "svdflow"
TERMINAL = {"Complete", "Failed"}


@pytest.fixture
def store() -> Iterator[Store]:
    with KubeAPI() as api:
        yield api.store


def recorded(name: str) -> list[Object]:
    path = RECORDINGS / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"there are no recordings of a real API server here ({RECORDINGS})")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line["event"] for line in lines if line.get("event")]


def job(name: str, completions: int = 6, queue: str | None = "fan-out", **spec: Any) -> Object:
    pod = {"restartPolicy": "Never", "containers": [{"name": "main", "image": "registry.example/work:1"}]}
    given = {"completionMode": "Indexed", "completions": completions, "parallelism": completions, **spec}
    labels = {QUEUE: queue} if queue else {}
    return {"metadata": {"name": name, "labels": labels}, "spec": {**given, "template": {"spec": pod}}}


def train_job(name: str, queue: str = "research", gpus: int = 2, **spec: Any) -> Object:
    trainer = {"numNodes": 2, "image": "i:1", "resourcesPerNode": {"limits": {"nvidia.com/gpu": str(gpus)}}}
    given = {"runtimeRef": {"name": "svdflow-torch"}, "trainer": trainer, **spec}
    return {"metadata": {"name": name, "labels": {QUEUE: queue}}, "spec": given}


def conditions(obj: Object) -> list[tuple[str, str, str]]:
    return [(c["type"], c["status"], c["reason"]) for c in obj.get("status", {}).get("conditions", [])]


def ended(store: Store, resource: Resource, name: str) -> Object:
    def over() -> Object | None:
        obj = store.get(resource, NS, name)
        return obj if any(c[0] in TERMINAL for c in conditions(obj)) else None

    return wait_for(over)


def history(events: list[Object], kind: str, name: str, key: Any) -> list[Any]:
    """What ``key`` says of an object, in order, repetitions left out."""
    out: list[Any] = []
    for event in events:
        obj = event["object"]
        if obj["kind"] == kind and obj["metadata"]["name"].startswith(name):
            said = key(obj)
            if not out or out[-1] != said:
                out.append(said)
    return out


def seen(store: Store, resource: Resource) -> list[Object]:
    return [{"object": change.last} for change in store.changes(resource, 0)]


def no_more_than(obj: Object) -> Any:
    return obj["spec"].get("suspend"), conditions(obj)


def test_a_train_job_goes_through_the_recorded_conditions(store):
    with Controllers(store, succeed, second=0.001):
        store.create(TRAINJOBS, NS, train_job("svd-a"))
        ended(store, TRAINJOBS, "svd-a")
        wait_for(lambda: ("Finished", "True", "Succeeded") in conditions(store.objects(WORKLOADS)[0]))
    own = history(seen(store, TRAINJOBS), "TrainJob", "svd-a", no_more_than)
    assert own == history(recorded("trainjob_complete"), "TrainJob", "svd-a", no_more_than)


@pytest.mark.parametrize(
    ("recording", "name", "ending"),
    [
        ("trainjob_failed_exit1", "svd-x1", Ending(1)),
        ("trainjob_failed_oomkilled", "svd-oom", Ending(137, "OOMKilled")),
    ],
)
def test_a_failed_train_job_says_why_only_in_its_pod(store, recording, name, ending):
    events = recorded(recording)
    names = {e["object"]["metadata"]["name"] for e in events if e["object"]["kind"] == "TrainJob"}
    behaviour = lambda c: ending if c.index == 0 else until_told(c)  # noqa: E731
    with Controllers(store, behaviour) as cluster:
        store.create(TRAINJOBS, NS, train_job("t"))
        job = ended(store, TRAINJOBS, "t")
        wait_for(lambda: len(cluster.pods("t")) == 1)  # the one that failed by itself stays
        state = cluster.pods("t")[0]["status"]["containerStatuses"][0]["state"]["terminated"]
    own = history(seen(store, TRAINJOBS), "TrainJob", "t", no_more_than)
    assert own == history(events, "TrainJob", names.pop(), no_more_than)
    assert job["status"]["conditions"][-1]["message"].endswith("(first failed job: t-node-0)")
    terminated = [e["object"]["status"]["containerStatuses"][0]["state"].get("terminated") for e in events
                  if e["object"]["kind"] == "Pod" and e["object"]["status"].get("containerStatuses")]  # fmt: skip
    real = next(t for t in terminated if t and t["exitCode"] != TERM and t["exitCode"])
    assert (state["exitCode"], state["reason"]) == (real["exitCode"], real["reason"])


def test_a_workload_that_waits_says_why_as_recorded(store):
    def quota(obj: Object) -> Any:
        return [c for c in conditions(obj) if c[0] in ("QuotaReserved", "Admitted")]

    with Controllers(store, until_told, gpus=4) as cluster:
        cluster.free = 0
        store.create(TRAINJOBS, NS, train_job("svd-c"))
        wait_for(lambda: store.objects(WORKLOADS) and quota(store.objects(WORKLOADS)[0]))
        cluster.free = 4
        wait_for(lambda: len(cluster.pods("svd-c")) == 2)
    own = history(seen(store, WORKLOADS), "Workload", "trainjob-svd-c", quota)
    assert own == history(recorded("trainjob_quota_wait"), "Workload", "trainjob-svd-c", quota)


def end_of(obj: Object) -> Any:
    status = {
        k: v for k, v in obj["status"].items() if k in ("completedIndexes", "failedIndexes", "succeeded", "failed")
    }
    final = [c for c in conditions(obj) if c[0] != "Suspended"]
    return status, final


def fails_at(*indexes: int, **how: Any) -> Any:
    return lambda c: Ending(**{"exit_code": 1, **how}) if c.index in indexes else 0


@pytest.mark.parametrize(
    ("recording", "behaviour", "spec"),
    [
        ("indexed_job_complete", succeed, {"parallelism": 3}),
        ("indexed_job_partial", fails_at(3), {"backoffLimitPerIndex": 1, "maxFailedIndexes": 2}),
        ("indexed_job_oomkilled", fails_at(1, exit_code=137, reason="OOMKilled"), None),
    ],
)
def test_an_indexed_job_ends_with_the_recorded_status(store, recording, behaviour, spec):
    events = [e for e in recorded(recording) if e["object"]["kind"] == "Job"]
    real = events[-1]["object"]
    given = spec or {
        key: real["spec"][key] for key in ("backoffLimitPerIndex", "maxFailedIndexes") if key in real["spec"]
    }
    if real["spec"].get("backoffLimitPerIndex") is not None:
        given = {**given, "backoffLimitPerIndex": real["spec"]["backoffLimitPerIndex"]}
    with Controllers(store, behaviour, second=0.002):
        store.create(JOBS, NS, job("j", real["spec"]["completions"], **given))
        own = ended(store, JOBS, "j")
    assert end_of(own) == end_of(real)


def test_policies_of_a_job_tell_failures_apart(store):
    rules = [
        {"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [42]}},
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [43]}},
    ]
    tried: list[int] = []

    def behaviour(container: Container) -> int:
        tried.append(container.index)
        if container.index == 1:
            return 42
        return until_told(container) if container.index == 2 and tried.count(2) == 1 else 0

    with Controllers(store, behaviour, second=0.002) as cluster:
        given = {"backoffLimitPerIndex": 1, "maxFailedIndexes": 2, "podFailurePolicy": {"rules": rules}}
        store.create(JOBS, NS, job("j", 3, **given))
        pod = wait_for(lambda: [p for p in cluster.pods("j") if p["metadata"]["labels"][
            "batch.kubernetes.io/job-completion-index"] == "2" and p["status"]["phase"] == "Running"])[0]  # fmt: skip
        cluster.evict(pod)
        own = ended(store, JOBS, "j")
    assert own["status"]["completedIndexes"] == "0,2" and own["status"]["failedIndexes"] == "1"
    assert (tried.count(1), tried.count(2)) == (1, 2), "FailIndex is not tried again, an eviction is"
    with Controllers(store, lambda c: 43, second=0.002):
        store.create(JOBS, NS, job("k", 3, **given))
        assert ("Failed", "True", "PodFailurePolicy") in conditions(ended(store, JOBS, "k"))


def test_a_deleted_job_takes_its_pods_along_and_a_preempted_train_job_comes_back(store):
    with Controllers(store, until_told) as cluster:
        store.create(TRAINJOBS, NS, train_job("t"))
        running = lambda: [p for p in cluster.pods("t") if p["status"]["phase"] == "Running"]  # noqa: E731
        wait_for(lambda: len(running()) == 2)
        before = {p["metadata"]["uid"] for p in running()}
        cluster.preempt(store.get(TRAINJOBS, NS, "t"))
        wait_for(lambda: len(running()) == 2 and not before & {p["metadata"]["uid"] for p in running()})
        store.delete(TRAINJOBS, NS, "t")
        wait_for(lambda: not store.objects(PODS) and cluster.free == cluster.gpus)


def test_index_ranges_are_written_as_a_job_writes_them():
    assert ranges({0, 1, 2, 4, 5, 7}) == "0-2,4,5,7"
    assert ranges(set()) == ""
