"""The kinds that svdflow's jobs meet, and where the API has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

Object = dict[str, Any]  # as the API sends it: never turned into typed objects, which is twenty times slower


@dataclass(frozen=True)
class Kind:
    """A kind of object; ``comes_with`` says what to install where the API does not know it."""

    group: str
    version: str
    plural: str
    name: str
    comes_with: str = "Kubernetes"

    @property
    def api_version(self) -> str:
        """As in an object's ``apiVersion``."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str, name: str = "", part: str = "") -> str:
        """The path of the kind's objects in a namespace, of one of them, or of a part of one (``log``)."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        rest = [quote(word, safe="") for word in (name, part) if word]
        return "/".join([root, "namespaces", quote(namespace, safe=""), self.plural, *rest])


PODS = Kind("", "v1", "pods", "Pod")
EVENTS = Kind("", "v1", "events", "Event")
JOBS = Kind("batch", "v1", "jobs", "Job")
TRAINJOBS = Kind("trainer.kubeflow.org", "v1alpha1", "trainjobs", "TrainJob", "Kubeflow Trainer 2.2 or newer")
WORKLOADS = Kind("kueue.x-k8s.io", "v1beta2", "workloads", "Workload", "a Kueue that serves v1beta2")
WORKFLOWS = Kind("argoproj.io", "v1alpha1", "workflows", "Workflow", "Kubeflow Pipelines")

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
MANAGED_LABEL = "app.kubernetes.io/managed-by"  # with the value svdflow, on every object that svdflow creates
MANAGER = "svdflow"


def conditions(obj: Object) -> dict[str, Object]:
    """The conditions in an object's status, by type."""
    return {c["type"]: c for c in obj.get("status", {}).get("conditions") or []}


def holds(obj: Object, condition: str) -> bool:
    """Whether a condition is there and true: one that turned false stays in the list."""
    return conditions(obj).get(condition, {}).get("status") == "True"
