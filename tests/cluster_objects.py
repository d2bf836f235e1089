"""Objects of a cluster that tests make in the fake API server."""

from svdflow.common.cluster.owners import Workflow
from tests.fakes import kube_rules
from tests.fakes.kube_api import KubeAPI
from tests.fakes.kube_store import Object

NS = "svdflow"


def pod(name: str, **labels: str) -> Object:
    return {"metadata": {"name": name, "labels": labels}, "spec": {"containers": [{"name": "main"}]}}


def train_job(name: str, *references: Object, **labels: str) -> Object:
    given = {"app.kubernetes.io/managed-by": "svdflow", **labels}
    meta = {"name": name, "labels": given, "ownerReferences": list(references)}
    return {"metadata": meta, "spec": {"runtimeRef": {"name": "svdflow-torch"}, "trainer": {"numNodes": 1}}}


def workflow(api: KubeAPI, name: str) -> Workflow:
    made = api.store.create(kube_rules.WORKFLOWS, NS, {"metadata": {"name": name}, "spec": {}})
    return Workflow(name, made["metadata"]["uid"])
