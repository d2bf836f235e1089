"""A data root, a fake API server and pods over it: what tests of fan-out jobs share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from svdflow.common.cluster.api import Cluster
from svdflow.common.fanout import Outcome, map_units
from svdflow.common.fanout_jobs import IndexedJobs
from svdflow.common.fanout_manifest import FanoutSettings
from svdflow.common.fanout_plan import read_plan
from svdflow.common.fanout_worker import run_index
from svdflow.common.storage import DataRoot
from tests.fakes.kube_api import KubeAPI
from tests.fakes.kube_controllers import Controllers
from tests.fakes.kube_kubelet import Container, until_told
from tests.fakes.kube_rules import JOBS, PODS
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
        return Cluster(self.api.configuration, NAMESPACE, patience_s=120)

    def tasks(self, *names: str) -> list[Task]:
        place = self.folder / "tries"
        place.mkdir(exist_ok=True)
        return [Task(number, name, str(place)) for number, name in enumerate(names)]

    def run(self, names: tuple[str, ...], **how: Any) -> dict[int, Outcome]:
        outcomes = list(map_units(square, self.tasks(*names), "tasks", timeout_s=300, executor=self.executor(**how)))
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


def first_only(container: Container) -> Any:
    """The pod of the first index does its work; others work until they are told to end."""
    return at_once(container) if container.index == 0 else until_told(container)


def good(outcome: Outcome) -> bool:
    return outcome.ok and outcome.value.square == outcome.unit.number**2


def limits() -> Any:
    from svdflow.common.fanout import Limits

    return Limits(300.0)


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
