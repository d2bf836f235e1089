"""The Indexed Job of a fan-out: what a strict schema, PodSecurity and the manifests in infra ask of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from svdflow.common.errors import ConfigError
from svdflow.common.fanout_manifest import FanoutSettings, indexed_job
from svdflow.common.fanout_plan import MAX_INDEXES, Plan
from tests import core_kinds

INFRA = Path(__file__).resolve().parents[2] / "infra"


def job(indexes: int = 20, data_root: str = "s3://svdflow/data", **settings: Any) -> dict[str, Any]:
    plan = Plan("split-1", "svdflow.a:b", None, 16 * indexes, indexes, 2, {}, "0.1.0")
    owner = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "run", "uid": "1"}
    made = indexed_job(FanoutSettings(image="a@sha256:0", **settings), plan, "split-1", "k" * 32, 1, data_root, owner)
    return {"apiVersion": "batch/v1", "kind": "Job", **made}


def manifests(place: str) -> list[dict[str, Any]]:
    return [m for path in sorted((INFRA / place).glob("*.yaml")) for m in yaml.safe_load_all(path.read_text()) if m]


@pytest.mark.parametrize(
    "settings", [{}, {"gpus": 1, "node_selector": {"a": "b"}, "image_pull_secrets": ("p",), "claim": "work"}]
)
def test_it_holds_the_strict_schema(settings):
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    validate.validate(job(**settings), validate.latest_version(), strict=True)


def test_it_has_no_field_that_kubernetes_lacks_and_lacks_none_that_it_asks_for():
    for settings in ({}, {"gpus": 1, "node_selector": {"a": "b"}, "image_pull_secrets": ("p",), "claim": "work"}):
        assert core_kinds.errors(job(**settings)) == []
    wrong = job()
    wrong["spec"]["template"]["spec"]["containers"][0]["enviroment"] = []
    wrong["spec"]["podFailurePolicy"]["rules"][0].pop("action")
    wrong["spec"]["parallelism"] = "2"
    assert [line.rpartition(": ")[2] for line in core_kinds.errors(wrong)] == [
        "'2' is no int", "is missing", "no such field"
    ]  # fmt: skip


def test_pod_security_restricted_lets_it_in():
    pod = job(gpus=1, claim="work")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 1000
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert {next(iter(set(v) - {"name"})) for v in pod["volumes"]} <= {"emptyDir", "persistentVolumeClaim"}
    for container in pod["containers"]:
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False and security["capabilities"] == {"drop": ["ALL"]}
        assert security["readOnlyRootFilesystem"] is True


def test_it_names_what_infra_has():
    made = job()
    pod, labels = made["spec"]["template"], made["metadata"]["labels"]
    accounts = {m["metadata"]["name"]: m for m in manifests("base") if m["kind"] == "ServiceAccount"}
    assert accounts[pod["spec"]["serviceAccountName"]]["automountServiceAccountToken"] is False
    assert pod["spec"]["automountServiceAccountToken"] is False
    queues = {m["metadata"]["name"] for m in manifests("components/queues") if m["kind"] == "LocalQueue"}
    priorities = {m["metadata"]["name"] for m in manifests("components/queues") if "Priority" in m["kind"]}
    assert labels["kueue.x-k8s.io/queue-name"] in queues and labels["kueue.x-k8s.io/priority-class"] in priorities
    assert pod["metadata"]["labels"]["app.kubernetes.io/component"] == "fan-out"  # by which policies know it
    assert {"configMapRef": {"name": "svdflow-object-store", "optional": True}} in pod["spec"]["containers"][0][
        "envFrom"
    ]


def test_its_size_does_not_grow_with_its_pods():
    sizes = [len(json.dumps(job(indexes))) for indexes in (100, MAX_INDEXES)]
    assert sizes[1] - sizes[0] < 20 and sizes[1] < 8000


def test_some_pods_may_fail_and_at_least_one():
    assert job(indexes=200, max_failed_percent=5)["spec"]["maxFailedIndexes"] == 10
    assert job(indexes=2)["spec"]["maxFailedIndexes"] == 1


def test_no_secret_of_the_step_is_written_into_it(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very secret")
    monkeypatch.setenv("SVDFLOW_CAPTION_KEY", "very secret")
    assert "very secret" not in json.dumps(job())


def test_a_data_root_that_pods_do_not_see_is_refused_before_anything_is_created():
    with pytest.raises(ConfigError, match="a directory that pods of a fan-out do not see"):
        job(data_root="/work/data")
    assert job(data_root="/work/data", claim="svdflow-work")
    with pytest.raises(ConfigError):
        job(data_root="/workshop/data", claim="svdflow-work")


def test_a_volume_is_for_reading_alone_where_the_data_root_is_a_store():
    def mount(data_root: str) -> dict[str, Any]:
        (container,) = job(data_root=data_root, claim="svdflow-work")["spec"]["template"]["spec"]["containers"]
        return next(mount for mount in container["volumeMounts"] if mount["name"] == "claim")

    assert mount("s3://svdflow/data")["readOnly"] is True
    assert "readOnly" not in mount("/work/data")
