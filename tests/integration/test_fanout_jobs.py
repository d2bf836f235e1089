"""Fan-out over pods, end to end: a real client, a fake API server with a Job controller, pods that are processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from svdflow.common.cluster.api import Cluster
from svdflow.common.errors import ConfigError, ServiceError, StorageError
from svdflow.common.fanout import Outcome, map_units
from svdflow.common.fanout_files import remove_files
from svdflow.common.fanout_jobs import IndexedJobs
from svdflow.common.fanout_manifest import FanoutSettings
from svdflow.common.fanout_plan import read_part, read_plan, write_plan
from svdflow.common.fanout_worker import run_index
from svdflow.common.storage import DataRoot
from tests.fakes.kube_api import KubeAPI
from tests.fakes.kube_controllers import Controllers
from tests.fakes.kube_kubelet import Container, Ending, as_process, until_told
from tests.fakes.kube_rules import JOBS, PODS
from tests.fakes.kube_store import wait_for
from tests.fanout_work import Task, square, squares_together

NAMESPACE = "svdflow"


class Lab:
    """A data root, an API server and what a step needs to use both."""

    def __init__(self, api: KubeAPI, folder: Path) -> None:
        self.api, self.folder = api, folder
        self.root = DataRoot.open(folder / "data")

    def executor(self, key: str = "key", together: Any = squares_together, **settings: Any) -> IndexedJobs:
        given = {"image": "registry.example/curation:1", "units": 3, "cpu": 2, "retries": 1, "claim": "work"}
        given |= {"claim_path": str(self.folder)} | settings
        return IndexedJobs(self.root, "squares", key, FanoutSettings(**given), together, self.connect, look_s=0.05)

    def connect(self) -> Cluster:
        return Cluster(self.api.configuration, NAMESPACE, patience_s=20)

    def tasks(self, *names: str) -> list[Task]:
        place = self.folder / "tries"
        place.mkdir(exist_ok=True)
        return [Task(number, name, str(place)) for number, name in enumerate(names)]

    def run(self, names: tuple[str, ...], **how: Any) -> dict[int, Outcome]:
        outcomes = list(map_units(square, self.tasks(*names), "tasks", timeout_s=30, executor=self.executor(**how)))
        found = {outcome.unit.number: outcome for outcome in outcomes}
        assert len(found) == len(outcomes) == len(names)
        return found

    def tries(self, number: int) -> int:
        path = self.folder / "tries" / f"{number}.tries"
        return len(path.read_text()) if path.exists() else 0

    def jobs(self) -> list[dict[str, Any]]:
        return self.api.store.objects(JOBS)

    def files(self) -> list[str]:
        return list(self.root.list("fanout"))


@pytest.fixture
def lab(tmp_path, monkeypatch) -> Iterator[Lab]:
    monkeypatch.setenv("SVDFLOW_FANOUT_PACKAGES", "tests")
    monkeypatch.setenv("KFP_POD_NAME", "of-no-run")
    with KubeAPI() as api:
        yield Lab(api, tmp_path)


@contextmanager
def pods_do(lab: Lab, behaviour: Callable[[Container], Any]) -> Iterator[Controllers]:
    with Controllers(lab.api.store, behaviour) as cluster:
        yield cluster


def at_once(container: Container) -> int:
    """What a pod does, without the time that processes take to start: for units that leave their process alone."""
    values = {v["name"]: v["value"] for v in container.spec["env"] if "value" in v}
    root = DataRoot.open(values["SVDFLOW_DATA_ROOT"])
    plan = read_plan(root, container.spec["args"][0])
    assert plan is not None
    run_index(root, plan, container.index)
    return 0


def good(outcome: Outcome) -> bool:
    return outcome.ok and outcome.value.square == outcome.unit.number**2


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


def test_a_step_that_was_killed_finds_its_job_and_takes_what_is_done(lab):
    ready = threading.Event()

    def held_back(container: Container) -> Any:
        if container.index == 1:
            ready.wait(30)
        return at_once(container)

    with pods_do(lab, held_back):
        killed = lab.executor().run(square, lab.tasks(*"abcdef"), None, limits())
        assert {next(killed).unit.number for _ in range(3)} == {0, 1, 2}
        # the step is gone without a word: nothing of it is closed. The first three were recorded, three are wanted
        threading.Timer(0.3, ready.set).start()
        found = list(map_units(square, lab.tasks(*"abcdef")[2:], "tasks", executor=lab.executor()))
        assert sorted(outcome.unit.number for outcome in found) == [2, 3, 4, 5] and all(map(good, found))
        assert len(lab.jobs()) == 1 and all(lab.tries(n) == 1 for n in range(6))


def test_two_runs_with_equal_inputs_share_one_job(lab):
    ready = threading.Event()
    workflow = [workflow_of(lab, "run-1"), workflow_of(lab, "run-2")]

    def held_back(container: Container) -> Any:
        ready.wait(30)
        return at_once(container)

    with pods_do(lab, held_back):
        results: list[list[Outcome]] = [[], []]
        first = as_step(lab, "run-1", workflow[0])
        stopped = first.run(square, lab.tasks(*"abcdef"), None, limits())
        threading.Thread(target=lambda: results[0].extend(stopped), daemon=True).start()
        wait_for(lambda: lab.jobs())
        second = as_step(lab, "run-2", workflow[1])
        other = threading.Thread(
            target=lambda: results[1].extend(second.run(square, lab.tasks(*"abcdef"), None, limits())), daemon=True
        )
        other.start()
        wait_for(lambda: len(lab.jobs()[0]["metadata"].get("ownerReferences", [])) == 2)
        ready.set()
        other.join(60)
        wait_for(lambda: len(results[0]) == 6, 30)
        assert len(results[1]) == 6 and all(map(good, [*results[0], *results[1]]))
        assert all(lab.tries(n) == 1 for n in range(6)) and wait_for(lambda: not lab.files())
        assert [request.status for request in lab.api.asked("POST")].count(201) == 1


def test_a_step_that_gives_up_takes_its_job_along_and_leaves_it_when_another_run_owns_it(lab):
    mine, other = workflow_of(lab, "run-1"), workflow_of(lab, "run-2")

    def first_only(container: Container) -> Any:
        return at_once(container) if container.index == 0 else until_told(container)

    with pods_do(lab, first_only):
        outcomes = as_step(lab, "run-1", mine).run(square, lab.tasks(*"abcdef"), None, limits())
        next(outcomes)
        shared = as_step(lab, "run-2", other).run(square, lab.tasks(*"abcdef"), None, limits())
        next(shared)
        outcomes.close()
        (job,) = lab.jobs()
        assert [o["name"] for o in job["metadata"]["ownerReferences"]] == ["run-2"] and lab.files()
        shared.close()
        wait_for(lambda: not lab.jobs())
        assert lab.files() == []


@pytest.mark.parametrize("stopped", [False, True])
def test_a_step_s_pod_that_is_evicted_leaves_its_job_and_one_of_a_stopped_run_takes_it_along(lab, stopped):
    from tests.fakes.kube_rules import WORKFLOWS

    run = workflow_of(lab, "run-1")

    def first_only(container: Container) -> Any:
        return at_once(container) if container.index == 0 else until_told(container)

    with pods_do(lab, first_only):
        executor = as_step(lab, "run-1", run)
        with pytest.raises(SystemExit):
            for _ in executor.run(square, lab.tasks(*"abcdef"), None, limits()):
                if stopped:  # as Kubeflow Pipelines does it
                    change = lambda o: {**o, "spec": {"activeDeadlineSeconds": 0}}  # noqa: E731
                    lab.api.store.update(WORKFLOWS, NAMESPACE, "run-1", change)
                signal.raise_signal(signal.SIGTERM)
        assert bool(lab.jobs()) is not stopped and bool(lab.files()) is not stopped
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@contextmanager
def left_by_a_killed_step(lab: Lab, tmp_path: Path, monkeypatch, *others: str) -> Iterator[Any]:
    """A run whose step is gone without a word while pods work, one of three done; how it is stopped from elsewhere."""
    from svdflow.pipelines.cluster.jobs import release_jobs
    from svdflow.pipelines.cluster.release import Stopped
    from tests.train_job_site import kubeconfig

    def first_only(container: Container) -> Any:
        return at_once(container) if container.index == 0 else until_told(container)

    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(lab.api, tmp_path / "kubeconfig")))
    with pods_do(lab, first_only):
        steps = [as_step(lab, name, workflow_of(lab, name)) for name in ("run-1", *others)]
        killed = []
        for name, step in zip(("run-1", *others), steps, strict=True):
            os.environ["KFP_POD_NAME"] = f"{name}-step"
            killed.append(step.run(square, lab.tasks(*"abcdefghi"), None, limits()))
            next(killed[-1])
        yield lambda: release_jobs(Stopped("id", "run-1", NAMESPACE))
        for step in steps:
            step._told_to_end = True  # it is gone: nothing of it is to clear up after the test


def test_stopping_a_run_whose_step_is_gone_takes_the_job_and_its_files_along(lab, tmp_path, monkeypatch):
    monkeypatch.setenv("SVDFLOW_DATA_ROOT", lab.root.location)
    with left_by_a_killed_step(lab, tmp_path, monkeypatch) as stop:
        (job,) = lab.jobs()
        name = job["metadata"]["annotations"]["svdflow/fan-out"]
        assert lab.files()
        assert stop() == [
            f"Job {job['metadata']['name']}: deleted",
            f"{lab.root.location}: fan-out {name} removed",
        ]
        assert lab.files() == [] and wait_for(lambda: not lab.jobs())


def test_stopping_a_run_leaves_files_that_another_run_reads(lab, tmp_path, monkeypatch):
    monkeypatch.setenv("SVDFLOW_DATA_ROOT", lab.root.location)
    with left_by_a_killed_step(lab, tmp_path, monkeypatch, "run-2") as stop:
        (told,) = stop()
        assert told.endswith("left to another run") and lab.files() and len(lab.jobs()) == 1


def test_files_of_a_run_stopped_elsewhere_go_with_the_next_fan_out_once_they_rest(lab, tmp_path, monkeypatch, capsys):
    with left_by_a_killed_step(lab, tmp_path, monkeypatch) as stop:
        (job,) = lab.jobs()
        assert [line.split(": ")[1] for line in stop()] == ["deleted"]
        wait_for(lambda: not lab.jobs())
    os.environ["KFP_POD_NAME"] = "of-no-run"
    left = set(lab.files())
    with pods_do(lab, at_once):
        lab.run(("a",), key="another")
        assert set(lab.files()) == left, "somebody may have just begun it"
        rests(lab, left)
        lab.run(("a",), key="a third")
    assert lab.files() == []
    assert f"removed the files of {job['metadata']['annotations']['svdflow/fan-out']}" in capsys.readouterr().err


def test_files_that_rest_stay_as_long_as_there_is_a_job(lab):
    """Its queue has not let it run for days."""
    with pods_do(lab, at_once) as cluster:
        cluster.jobs.hold = True
        waiting = lab.executor().run(square, lab.tasks("a"), None, limits())
        threading.Thread(target=lambda: next(waiting), daemon=True).start()
        wait_for(lab.jobs)
        left = set(lab.files())
        rests(lab, left)
        cluster.jobs.hold = False
        assert good(lab.run(("b",), key="another")[0])
        assert left <= set(lab.files())


def rests(lab: Lab, uris: set[str]) -> None:
    """Nothing was written for four days."""
    for uri in uris:
        os.utime(lab.root.fetch(uri), (0, time.time() - 4 * 86_400))


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
    def first_only(container: Container) -> Any:
        return at_once(container) if container.index == 0 else until_told(container)

    with pods_do(lab, first_only):
        found = lab.run(tuple("abcdef"), deadline_s=400)  # a hundredth of a second each, here
    assert sorted(number for number, o in found.items() if good(o)) == [0, 1, 2]
    assert {o.error for o in found.values() if not o.ok} == {"the fan-out's deadline was over"}


def test_quota_that_is_never_granted_ends_with_the_queue_s_own_words(lab, capsys):
    with pods_do(lab, at_once) as cluster:
        cluster.jobs.hold = True
        workload(lab)
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
        reader.join(60)
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
        reader.join(60)
    assert len(found) == 2 and all(map(good, found))


def test_credentials_that_expire_half_way_are_read_anew(lab):
    renewed = threading.Event()

    def held_back(container: Container) -> Any:
        renewed.wait(30)
        return at_once(container)

    def connect() -> Cluster:
        return Cluster(lambda: lab.api.configuration("new" if renewed.is_set() else "token"), NAMESPACE, patience_s=20)

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
        reader.join(60)
    assert len(found) == 4 and all(map(good, found))


def test_a_step_killed_right_after_it_created_its_job_goes_on_in_the_next_one(lab):
    go = threading.Event()

    def held_back(container: Container) -> Any:
        go.wait(60)
        return at_once(container)

    command = [sys.executable, "-m", "tests.benchmarks.fanout_step", lab.api.url, str(lab.folder), "2", "2"]
    with pods_do(lab, held_back):
        step = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_for(lab.jobs, 60)
        step.kill()
        step.wait()
        go.set()
        again = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["found"] == {"done": 4}
    assert [request.status for request in lab.api.asked("POST")].count(201) == 1 and not lab.files()


def test_the_api_server_may_be_away_for_a_while(lab):
    ready = threading.Event()

    def held_back(container: Container) -> Any:
        ready.wait(30)
        return at_once(container)

    with pods_do(lab, held_back):
        found: list[Outcome] = []
        outcomes = lab.executor().run(square, lab.tasks(*"abcd"), None, limits())
        reader = threading.Thread(target=lambda: found.extend(outcomes), daemon=True)
        reader.start()
        wait_for(lambda: lab.api.store.objects(PODS))
        with lab.api.away():
            ready.set()
            wait_for(lambda: lab.jobs()[0].get("status", {}).get("succeeded") == 2, 30)
        reader.join(60)
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
    plan, _ = write_plan(lab.root, "squares", square, None, lab.tasks("a", *["slow"] * 40), 41, 1, limits())
    environment = {**os.environ, "JOB_COMPLETION_INDEX": "0", "SVDFLOW_DATA_ROOT": lab.root.location}
    command = [sys.executable, "-m", "svdflow.common.fanout_worker", plan.name]
    worker = subprocess.Popen(command, env=environment)
    wait_for(lambda: lab.tries(3), 30)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 75
    kept = read_part(lab.root, plan, 0)
    assert kept.begun == 1 and not kept.done and 1 <= len(kept.outcomes) < 41


def test_a_worker_of_a_fan_out_that_was_stopped_writes_nothing_more(lab):
    plan, _ = write_plan(lab.root, "squares", square, None, lab.tasks("a", *["slow"] * 40), 41, 1, limits())
    environment = {**os.environ, "JOB_COMPLETION_INDEX": "0", "SVDFLOW_DATA_ROOT": lab.root.location}
    worker = subprocess.Popen([sys.executable, "-m", "svdflow.common.fanout_worker", plan.name], env=environment)
    wait_for(lambda: lab.tries(1), 30)
    remove_files(lab.root, plan.name)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 75
    assert lab.files() == []


def limits() -> Any:
    from svdflow.common.fanout import Limits

    return Limits(30.0)


def workflow_of(lab: Lab, name: str) -> dict[str, Any]:
    from tests.fakes.kube_rules import WORKFLOWS

    return lab.api.store.create(WORKFLOWS, NAMESPACE, {"metadata": {"name": name}, "spec": {}})


def as_step(lab: Lab, name: str, workflow: dict[str, Any]) -> IndexedJobs:
    """An executor of a step whose pod belongs to a run."""
    meta = workflow["metadata"]
    owner = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": meta["name"], "uid": meta["uid"]}
    pod = {"metadata": {"name": f"{name}-step", "ownerReferences": [owner]}, "spec": {"containers": [{"name": "main"}]}}
    lab.api.store.create(PODS, NAMESPACE, pod)
    os.environ["KFP_POD_NAME"] = f"{name}-step"
    return lab.executor()


def workload(lab: Lab) -> None:
    """Kueue's account of why the next Job waits."""
    from tests.fakes.kube_rules import WORKLOADS

    told = "couldn't assign flavors to pod set main: insufficient unused quota for cpu in flavor svdflow-cpu-spot"

    def write() -> None:
        (job,) = wait_for(lab.jobs)
        labels = {"kueue.x-k8s.io/job-uid": job["metadata"]["uid"]}
        made = {"metadata": {"name": "job-squares", "labels": labels}, "spec": {"active": True}}
        lab.api.store.create(WORKLOADS, NAMESPACE, made)
        waits = {"type": "QuotaReserved", "status": "False", "reason": "WaitingForQuota", "message": told}
        lab.api.store.set_status(WORKLOADS, NAMESPACE, "job-squares", conditions=[waits])

    threading.Thread(target=write, daemon=True).start()
