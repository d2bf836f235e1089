"""`svdflow doctor --cluster` against an API server over HTTP: what is there, what lacks, what may not be read."""

from __future__ import annotations

import runpy
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

from svdflow.common.cluster.api import Cluster
from svdflow.pipelines.cluster_doctor import Row, _permissions, _version, checks, examine
from svdflow.pipelines.cluster_facts import Facts, kfp_answers
from svdflow.pipelines.cluster_needs import (
    APIS,
    CONFIG_MAPS,
    PRIORITIES,
    QUEUES,
    RUNTIMES,
    SECRETS,
    SERVICE_ACCOUNTS,
    STOPPING,
    VERBS,
)
from svdflow.pipelines.cluster_store import buckets
from tests.fakes.kube_api import KubeAPI
from tests.fakes.kube_rules import PODS, RESOURCES
from tests.fakes.kube_store import Object, Resource
from tests.train_job_site import role

INFRA = Path(__file__).resolve().parents[2] / "infra"
NAMESPACE = "svdflow"
REVIEW = "authorization.k8s.io"
MORE = (
    Resource("", "v1", "nodes", "Node", namespaced=False),
    Resource("", "v1", "namespaces", "Namespace", namespaced=False),
    Resource("storage.k8s.io", "v1", "storageclasses", "StorageClass", namespaced=False),
    Resource("kueue.x-k8s.io", "v1beta2", "clusterqueues", "ClusterQueue", True, False),
    Resource("kueue.x-k8s.io", "v1beta2", "resourceflavors", "ResourceFlavor", True, False),
    Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False),
    Resource("keda.sh", "v1alpha1", "scaledobjects", "ScaledObject", custom=True),
    Resource(REVIEW, "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview", namespaced=False),
    Resource(REVIEW, "v1", "subjectaccessreviews", "SubjectAccessReview", namespaced=False),
    Resource("authentication.k8s.io", "v1", "selfsubjectreviews", "SelfSubjectReview", namespaced=False),
)


class Site(KubeAPI):
    """A cluster as infra sets it up, which answers reviews of access by a Role's rules."""

    def __init__(self, without: tuple[str, ...] = ()) -> None:
        super().__init__(resources=tuple(r for r in (*RESOURCES, *MORE) if r.group not in without))
        self.rules = role("pipeline-runner")
        self.whoami = "system:admin"
        self.reviews: list[Object] = []
        self.others_may_be_asked_about = True

    def _admit(self, resource: Resource, new: Object, old: Object | None) -> None:
        if resource.kind == "SelfSubjectReview":
            new["metadata"]["name"], new["status"] = uuid.uuid4().hex, {"userInfo": {"username": self.whoami}}
            return
        if resource.group != REVIEW:
            if old is None or resource.kind not in ("Node", "Namespace"):
                super()._admit(resource, new, old)
            return
        asked = new["spec"]["resourceAttributes"]
        self.reviews.append(new["spec"])
        name = asked["resource"] + ("/" + asked["subresource"] if asked.get("subresource") else "")
        allowed = any(
            asked["group"] in rule["apiGroups"] and name in rule["resources"] and asked["verb"] in rule["verbs"]
            for rule in self.rules
        )
        new["metadata"]["name"], new["status"] = uuid.uuid4().hex, {"allowed": allowed}

    def put(self, obj: Object) -> None:
        """An object, status and all, as if its controllers had been at it."""
        resource = next(
            r for r in self.resources.values() if (r.api_version, r.kind) == (obj["apiVersion"], obj["kind"])
        )
        namespace = NAMESPACE if resource.namespaced else ""
        meta = {**obj["metadata"], "namespace": namespace, "uid": uuid.uuid4().hex}
        self.store.impose(resource, namespace, {**obj, "metadata": meta})

    def drop(self, kind: str, name: str) -> None:
        resource = next(r for r in self.resources.values() if r.kind == kind)
        self.store.drop(resource, NAMESPACE if resource.namespaced else "", name)

    def cluster(self) -> Cluster:
        return Cluster(self.configuration, NAMESPACE)

    def rows(self) -> dict[str, Row]:
        return {row.what: row for row in checks(Facts(self.cluster()))}


def documents(place: str) -> list[Object]:
    return [m for m in yaml.safe_load_all((INFRA / place).read_text()) if m]


def thing(version: str, kind: str, name: str, **more: Any) -> Object:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}, **more}


def furnish(site: Site) -> None:
    """What infra's manifests make, and two nodes."""
    for place in (
        "base/namespace.yaml", "base/service-accounts.yaml", "base/object-store.yaml", "base/work-volume.yaml",
        "components/queues/queues.yaml", "components/gpu-quotas/cluster-queues.yaml",
        "components/gpu-quotas/flavors.yaml", "components/training-runtime/runtime.yaml",
        "components/training-runtime/mpi-runtime.yaml",
    ):  # fmt: skip
        for obj in documents(place):
            if obj["kind"] in ("LocalQueue", "ClusterQueue"):
                obj["status"] = {"conditions": [{"type": "Active", "status": "True"}], "pendingWorkloads": 2}
            if obj["kind"] == "PersistentVolumeClaim":
                obj["status"] = {"phase": "Bound"}
            site.put(obj)
    for name in SECRETS:
        site.put(thing("v1", "Secret", name, data={"AWS_SECRET_ACCESS_KEY": "dmVyeSBzZWNyZXQ="}))
    spec = {"properties": {"spec": {"properties": {"runtimePatches": {}}}}}
    crd = {"versions": [{"name": "v1alpha1", "schema": {"openAPIV3Schema": spec}}]}
    site.put(thing("apiextensions.k8s.io/v1", "CustomResourceDefinition", "trainjobs.trainer.kubeflow.org", spec=crd))
    for flavor, gpus in (("h100", 8), ("none", 0)):
        labels = {"svdflow/gpu": flavor, "svdflow/capacity": "on-demand" if gpus else "spot"}
        status = {"allocatable": {"nvidia.com/gpu": str(gpus)}, "conditions": [{"type": "Ready", "status": "True"}]}
        node = thing("v1", "Node", f"node-{flavor}", status=status)
        node["metadata"]["labels"] = labels
        site.put(node)


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as api:
        furnish(api)
        yield api


def test_a_cluster_set_up_by_infra_has_all_that_is_needed(site, capsys):
    assert examine(cluster=site.cluster()) == 0
    shown = capsys.readouterr().out
    assert "nothing needed is missing" in shown and "very secret" not in shown and "dmVye" not in shown
    rows = site.rows()
    assert {row.state for row in rows.values() if row.what != "object store"} <= {"there", "absent"}
    assert "1 of 1 nodes ready, 8 GPUs" in rows["nodes of svdflow-h100-on-demand"].found
    assert rows["nodes of svdflow-a100-spot"].state == "absent"
    assert rows["queue research"].found == "→ svdflow-research, 2 waiting"
    assert rows["quota of research"].found.startswith("nvidia.com/gpu 16+8, cpu 192+96")
    assert rows["KEDA"].state == "there" and rows["KServe"].state == "absent"


@pytest.mark.parametrize(
    ("kind", "name", "what", "remedy"),
    [
        ("LocalQueue", "fan-out", "queue fan-out", "components/queues"),
        ("ClusterQueue", "svdflow-research", "quota of research", "give ClusterQueue svdflow-research a quota"),
        ("ClusterTrainingRuntime", "svdflow-torch", "ClusterTrainingRuntime svdflow-torch", "training-runtime"),
        ("WorkloadPriorityClass", "svdflow-normal", "priority svdflow-normal", "components/queues"),
        ("ConfigMap", "svdflow-object-store", "configmap svdflow-object-store", "where the object store is"),
        ("ServiceAccount", "fan-out", "service account fan-out", "base"),
        ("PersistentVolumeClaim", "svdflow-work", "work volume svdflow-work", "ReadWriteMany"),
        ("Namespace", "svdflow", "namespace svdflow, PodSecurity restricted", "kubectl create namespace svdflow"),
    ],
)
def test_what_is_needed_and_lacks_is_named_with_its_remedy(site, capsys, kind, name, what, remedy):
    site.drop(kind, name)
    rows = site.rows()
    assert [row.what for row in rows.values() if row.state == "missing"] == [what]
    assert remedy in rows[what].remedy
    assert examine(cluster=site.cluster()) == 1 and "1 missing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("group", "what"),
    [("kueue.x-k8s.io", "Kueue"), ("trainer.kubeflow.org", "Kubeflow Trainer"), ("jobset.x-k8s.io", "JobSet")],
)
def test_an_api_that_is_not_installed_is_named(group, what):
    with Site(without=(group,)) as site:
        rows = site.rows()
    assert rows[what].state == "missing" and "install" in rows[what].remedy


def test_an_older_trainer_is_told_by_its_schema(site):
    crd = thing("apiextensions.k8s.io/v1", "CustomResourceDefinition", "trainjobs.trainer.kubeflow.org", spec={})
    site.put(crd)
    assert site.rows()["TrainJobs with runtimePatches"].state == "missing"


def test_a_permission_that_lacks_is_named_by_its_verb(site):
    for rule in site.rules:
        if rule["resources"] == ["jobs"]:
            rule["verbs"].remove("patch")
    (row,) = [row for row in site.rows().values() if row.state == "missing"]
    assert "jobs" in row.what and row.found == "not patch"


def test_in_a_pod_one_s_own_access_is_reviewed_and_outside_the_runner_s(site, monkeypatch):
    site.rows()
    assert {review.get("user") for review in site.reviews} == {"system:serviceaccount:svdflow:pipeline-runner"}
    site.reviews.clear()
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    site.rows()
    assert {review.get("user") for review in site.reviews} == {None}
    asked = {(r["resourceAttributes"]["group"], r["resourceAttributes"]["resource"]) for r in site.reviews}
    assert asked == {(group, resource.partition("/")[0]) for group, resource in VERBS}


def test_what_only_an_option_uses_is_told_and_not_missing(site):
    site.drop("ClusterTrainingRuntime", "svdflow-mpi")
    row = site.rows()["ClusterTrainingRuntime svdflow-mpi"]
    assert row.state == "absent" and "starter: mpirun" in row.remedy
    assert examine(cluster=site.cluster()) == 0


def test_at_the_console_it_is_what_stopping_takes_that_is_reviewed(site, monkeypatch):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    site.whoami, site.rules = "system:serviceaccount:svdflow:console", role("run-stopper")
    states = {what: row.state for what, row in site.rows().items() if what.startswith("the console may")}
    assert states == {f"the console may get, list, patch, delete {what}": "there" for what in ("trainjobs", "jobs")}
    site.rules = role("pipeline-submitter")
    row = site.rows()["the console may get, list, patch, delete jobs"]
    assert row.state == "missing" and "run-stopper" in row.remedy


def test_what_may_not_be_read_is_unknown_and_not_missing(site, capsys):
    reviews = {"apiGroups": [REVIEW], "resources": ["selfsubjectaccessreviews"], "verbs": ["create"]}
    site.grants["system:admin"] = {"": [reviews]}
    states = {row.what: row.state for row in site.rows().values()}
    assert states["queue research"] == states["ResourceFlavors"] == states["secret svdflow-object-store"] == "unknown"
    assert states["you may get workflows"] == "there"
    assert examine(cluster=site.cluster()) == 0
    assert "could not be told" in capsys.readouterr().out


def test_an_image_that_cannot_be_had_is_shown(site):
    waiting = {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "svdflow/training:0.1.0"'}
    status = {"phase": "Pending", "containerStatuses": [{"name": "node", "image": "a", "state": {"waiting": waiting}}]}
    site.store.impose(PODS, NAMESPACE, thing("v1", "Pod", "train-0", spec={}, status=status) | {
        "metadata": {"name": "train-0", "namespace": NAMESPACE, "uid": "1"}
    })  # fmt: skip
    row = site.rows()["images"]
    assert row.state == "missing" and "train-0: ImagePullBackOff" in row.found and "pull secret" in row.remedy


def test_an_account_of_pods_that_decode_footage_mounts_no_token(site):
    site.put(thing("v1", "ServiceAccount", "fan-out"))
    assert site.rows()["service account fan-out"].found == "mounts a token"


def test_nodes_that_offer_no_gpu_are_told_apart_from_no_nodes(site):
    node = thing("v1", "Node", "bare", status={"conditions": [{"type": "Ready", "status": "True"}]})
    node["metadata"]["labels"] = {"svdflow/gpu": "a100", "svdflow/capacity": "spot"}
    site.put(node)
    row = site.rows()["nodes of svdflow-a100-spot"]
    assert row.state == "missing" and "device plugin" in row.remedy


def test_no_cluster_is_one_line(monkeypatch, tmp_path):
    with Site() as site:
        gone = site.cluster()
    done = [examine(cluster=gone)]
    environment = {"PATH": "/usr/bin", "HOME": str(tmp_path), "KUBECONFIG": str(tmp_path / "none")}
    command = [sys.executable, "-m", "svdflow.pipelines.cli", "doctor", "--cluster"]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done == [1] and told.returncode == 1
    assert told.stdout.startswith("no cluster is reachable: ") and len(told.stdout.splitlines()) == 1
    assert told.stderr == ""


def test_a_refused_token_is_one_line(site, capsys):
    site.expire("token")
    assert examine(cluster=site.cluster()) == 1
    assert capsys.readouterr().out.count("\n") == 1


@pytest.mark.parametrize(("status", "works"), [(200, True), (302, True), (401, True), (404, False), (503, False)])
def test_kubeflow_pipelines_is_tried_where_it_is_said_to_be(status, works):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            found = self.path == "/apis/v2beta1/healthz"
            self.send_response(status if found else 500)
            self.end_headers()
            self.wfile.write(b'{"multi_user": true}')

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    assert kfp_answers(url + "/")[0] is works
    server.shutdown()
    server.server_close()
    assert kfp_answers(url) == (False, "no answer (NewConnectionError)")


EVERYTHING = (
    [("LocalQueue", name) for name in QUEUES]
    + [("ClusterQueue", f"svdflow-{name}") for name in QUEUES]
    + [("ClusterTrainingRuntime", name) for name in RUNTIMES]
    + [("WorkloadPriorityClass", name) for name in PRIORITIES]
    + [("Secret", name) for name in SECRETS]
    + [("ConfigMap", "svdflow-object-store"), ("PersistentVolumeClaim", "svdflow-work"), ("Namespace", NAMESPACE)]
    + [("ServiceAccount", name) for name in SERVICE_ACCOUNTS]
)


def test_whatever_is_taken_away_is_told_by_its_name_and_with_a_remedy(site):
    """One thing after the other, and then all of a kind."""
    before = site.rows()
    for kind, name in EVERYTHING:
        resource = next(r for r in site.resources.values() if r.kind == kind)
        place = NAMESPACE if resource.namespaced else ""
        kept = next(o for o in site.store.objects(resource) if o["metadata"]["name"] == name)
        site.drop(kind, name)
        told = [row for what, row in site.rows().items() if row.state != before[what].state]
        assert told and all(row.state in ("missing", "absent") and row.remedy for row in told), (kind, name)
        assert any(name.removeprefix("svdflow-") in row.what for row in told), (kind, name)
        site.store.impose(resource, place, kept)
    assert site.rows() == before
    for flavor in site.store.objects(next(r for r in site.resources.values() if r.kind == "ResourceFlavor")):
        site.drop("ResourceFlavor", flavor["metadata"]["name"])
    assert site.rows()["ResourceFlavors"].state == "missing" and site.rows()["ResourceFlavors"].remedy


@pytest.mark.parametrize("group", sorted({api.group for api in APIS}))
def test_whichever_api_is_not_installed_is_told_with_what_to_install(group):
    (what,) = [api.what for api in APIS if api.group == group]
    with Site(without=(group,)) as site:
        row = site.rows()[what]
    needed = next(api.needed for api in APIS if api.group == group)
    assert row.state == ("missing" if needed else "absent") and row.remedy


def test_every_permission_is_told_by_its_verb(site):
    for (group, resource), verbs in VERBS.items():
        for verb in verbs:
            site.rules = [
                {**rule, "verbs": [v for v in rule["verbs"] if v != verb]}
                if group in rule["apiGroups"] and resource in rule["resources"] else rule
                for rule in role("pipeline-runner")
            ]  # fmt: skip
            rows = [row for row in _permissions(Facts(site.cluster())) if row.state != "there"]
            told = [(row.state, row.found, row.remedy) for row in rows if row.what.endswith(f" {resource}")]
            assert told == [("missing", f"not {verb}", "Role pipeline-runner, infra/base/roles.yaml")]


def test_an_old_kubernetes_and_a_volume_that_no_class_can_make_are_told(site, monkeypatch):
    claim = {"spec": {"accessModes": ["ReadWriteMany"]}, "status": {"phase": "Pending"}}
    site.put(thing("v1", "PersistentVolumeClaim", "svdflow-work", **claim))
    row = site.rows()["work volume svdflow-work"]
    assert row.state == "missing" and "no storage class is the default" in row.remedy
    facts = Facts(site.cluster())
    monkeypatch.setattr(facts, "get", lambda path: {"major": "1", "minor": "29+", "gitVersion": "v1.29.3"})
    row = _version(facts)
    assert row.state == "missing" and "upgrade" in row.remedy and row.found == "v1.29.3"


def test_the_object_store_is_asked_where_its_address_is(object_store, monkeypatch):
    store = replace(object_store, bucket="doctor")
    store.minio().make_bucket(bucket_name="doctor")
    assert [(what, there) for what, there, _, _ in buckets()] == [("object store", None)]
    for name, value in store.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SVDFLOW_RELEASES_BUCKET", "releases")
    rows = {what: (there, found, remedy) for what, there, found, remedy in buckets()}
    assert rows[f"bucket {store.bucket}"][0] is False and "versioning off" in rows[f"bucket {store.bucket}"][1]
    assert rows["bucket releases"][0] is False and "components/buckets" in rows["bucket releases"][2]
    runpy.run_path(str(INFRA / "components/buckets/prepare_buckets.py"), run_name="__main__")
    assert all(there for _, there, _, _ in buckets())
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    told = list(buckets())
    assert all(there is False and "svdflow-object-store" in remedy for _, there, _, remedy in told)
    assert "another" not in str(told)
    monkeypatch.setenv("SVDFLOW_S3_ENDPOINT", "http://127.0.0.1:9")
    assert all(there is False and "no answer" in found for _, there, found, _ in buckets())


def test_what_is_looked_for_is_what_infra_makes_and_what_the_launchers_do():
    queues = {m["metadata"]["name"]: m["kind"] for m in documents("components/queues/queues.yaml")}
    assert set(QUEUES) <= {n for n, kind in queues.items() if kind == "LocalQueue"}
    assert set(PRIORITIES) == {n for n, kind in queues.items() if kind == "WorkloadPriorityClass"}
    accounts = {
        m["metadata"]["name"]: m["automountServiceAccountToken"] for m in documents("base/service-accounts.yaml")
    }
    assert accounts.items() >= SERVICE_ACCOUNTS.items()
    for name, needed in (("pipeline-runner", VERBS), ("run-stopper", STOPPING)):
        for (group, resource), verbs in needed.items():
            rules = [r for r in role(name) if group in r["apiGroups"] and resource in r["resources"]]
            assert any(set(verbs) <= set(rule["verbs"]) for rule in rules), f"{name}: {resource}"
    told = (INFRA / "README.md").read_text()
    assert all(f"`{name}`" in told for name in [*SECRETS, *CONFIG_MAPS])
    assert len({api.path for api in APIS}) == len(APIS)
    monitored = next(api for api in APIS if api.group == "monitoring.coreos.com")
    kinds = {
        m["kind"].lower() + "s"
        for name in ("monitors", "alerts")
        for m in documents(f"components/monitoring/{name}.yaml")
    }
    assert set(monitored.plurals) == kinds
