"""The Indexed Job of a fan-out, and its settings: ``SVDFLOW_FANOUT`` of the step's own pod, a mapping in YAML or JSON.

They say where and with what, never what is computed: nothing of them is part of a result's identity. Without the
variable units are worked on by processes of the step's own machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

from pydantic import Field

from .cluster.kinds import MANAGED_LABEL, MANAGER, PRIORITY_LABEL, QUEUE_LABEL
from .cluster.names import ATTEMPT_LABEL, KEY_LABEL, Labels, Name, short_key
from .config import Settings, settings_of_variable
from .errors import ConfigError
from .fanout_plan import Plan
from .fanout_worker import FAIL_INDEX, UNUSABLE

VARIABLE = "SVDFLOW_FANOUT"
PLAN_NOTE = "svdflow/fan-out"  # annotation of the Job: its plan's name
MIN_PARALLELISM_NOTE = "kueue.x-k8s.io/job-min-parallelism"
CONTAINER = "worker"
ROOT_VARIABLE = "SVDFLOW_DATA_ROOT"
_STORE = "svdflow-object-store"  # ConfigMap and secret of that name, see infra/README.md
_PASSED_ON = ("SVDFLOW_FANOUT_PACKAGES", "SVDFLOW_S3_PATIENCE_S", "SVDFLOW_CACHE_GIB")


class FanoutSettings(Settings):
    """Pods of a fan-out, and how long is waited for them."""

    image: str | None = Field(None, min_length=1)  # with the step's own svdflow in it; the step's own image
    namespace: str | None = None  # the step's own
    queue: Name = "fan-out"  # Kueue's LocalQueue; it has processors only: name another one for GPUs
    priority: str = "svdflow-normal"  # Kueue's WorkloadPriorityClass
    service_account: Name = "fan-out"

    cpu: int = Field(2, ge=1)  # processors of a pod, and processes in it
    memory: str = Field("8Gi", pattern=r"^[1-9][0-9]*(Mi|Gi)$")  # request and limit
    scratch: str = Field("20Gi", pattern=r"^[1-9][0-9]*(Mi|Gi)$")  # of a pod: downloads, clips before they are stored
    gpus: int = Field(0, ge=0)  # of a pod; its queue has to have a quota for them
    node_selector: Labels = Field(default_factory=dict)  # as svdflow/gpu: a100
    labels: Labels = Field(default_factory=dict)  # of the Job and its pods, as a cost centre
    image_pull_secrets: tuple[Name, ...] = ()
    secrets: tuple[Name, ...] = ()  # whose keys become variables, beside the store's: as svdflow-captioning
    claim: str = ""  # a volume with the data root (a directory then), or with models, for reading; none when empty
    claim_path: str = Field("/work", pattern=r"^/[^.]*$")

    parallelism: int = Field(64, ge=1, le=10_000)  # pods at once, at most; Kueue starts with fewer if it must
    units: int = Field(16, ge=1)  # of one pod; more where there would be over 10,000 pods
    retries: int = Field(2, ge=0, le=10)  # of a pod that failed; lost machines are not counted
    max_failed_percent: float = Field(10.0, ge=0, le=100)  # pods; above it, and above one, the step fails
    deadline_s: int = Field(86_400, ge=1)  # for the whole fan-out, from when it first runs
    quota_wait_s: float = Field(43_200.0, gt=0)  # for Kueue to admit it
    image_wait_s: float = Field(600.0, gt=0)  # while an image cannot be had
    ttl_s: int = Field(3600, ge=60)  # an ended Job, its pods and logs stay so long; a step has to see its end
    patience_s: float = Field(600.0, gt=0)  # with an API server that is away

    @staticmethod
    def from_environment() -> FanoutSettings | None:
        """What ``SVDFLOW_FANOUT`` says, or None without it.

        Raises:
            ConfigError: names the field.
        """
        return settings_of_variable(FanoutSettings, VARIABLE, "{cpu: 4, memory: 16Gi}")

    def max_failed(self, indexes: int) -> int:
        """How many of so many pods may fail."""
        return max(1, int(indexes * self.max_failed_percent / 100))


def indexed_job(
    settings: FanoutSettings,
    plan: Plan,
    name: str,
    key: str,
    attempt: int,
    data_root: str,
    owner: dict[str, Any] | None,
) -> dict[str, Any]:
    """The Job that works on a plan: one object however many pods it has.

    Args:
        settings: of its pods.
        plan: what they are to do.
        name: of the Job.
        key: identity of the inputs, told by a label.
        attempt: told by a label.
        data_root: where they find the plan: an S3 prefix, or a directory below ``settings.claim_path``.
        owner: the run's Workflow, as a reference.

    Raises:
        ConfigError: pods cannot reach the data root.
    """
    _require_reachable(data_root, settings)
    common = {"app.kubernetes.io/part-of": "svdflow", "app.kubernetes.io/component": "fan-out", MANAGED_LABEL: MANAGER}
    common = {**settings.labels, **common}
    labels = {**common, KEY_LABEL: short_key(key), ATTEMPT_LABEL: str(attempt), QUEUE_LABEL: settings.queue}
    if settings.priority:
        labels[PRIORITY_LABEL] = settings.priority
    template = {"metadata": {"labels": common}, "spec": _pod(settings, plan, data_root)}
    spec = {
        "completionMode": "Indexed",
        "completions": plan.indexes,
        "parallelism": min(settings.parallelism, plan.indexes),
        "backoffLimitPerIndex": settings.retries,
        "maxFailedIndexes": settings.max_failed(plan.indexes),
        "activeDeadlineSeconds": settings.deadline_s,
        "ttlSecondsAfterFinished": settings.ttl_s,
        "podFailurePolicy": {
            "rules": [
                # a drained node or a reclaimed spot machine: the pod is replaced, uncounted
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                _on_exit("FailJob", UNUSABLE),
                _on_exit("FailIndex", FAIL_INDEX),
            ]
        },
        "template": template,
    }
    # Kueue lets it begin with fewer pods when there is not quota for all: they are all alike
    notes = {PLAN_NOTE: plan.name, MIN_PARALLELISM_NOTE: "1"}
    owners = {"ownerReferences": [owner]} if owner else {}
    return {"metadata": {"name": name, "labels": labels, "annotations": notes, **owners}, "spec": spec}


def files_of(jobs: Iterable[dict[str, Any]]) -> list[tuple[str, str]]:
    """Data root and plan's name of each fan-out among Jobs."""
    found = []
    for job in jobs:
        name = job["metadata"].get("annotations", {}).get(PLAN_NOTE)
        for container in job["spec"]["template"]["spec"]["containers"] if name else ():
            values = {variable["name"]: variable.get("value") for variable in container.get("env", [])}
            if container["name"] == CONTAINER and values.get(ROOT_VARIABLE):
                found.append((values[ROOT_VARIABLE], name))
    return found


def _on_exit(action: str, status: int) -> dict[str, Any]:
    codes = {"containerName": CONTAINER, "operator": "In", "values": [status]}
    return {"action": action, "onExitCodes": codes}


def _pod(settings: FanoutSettings, plan: Plan, data_root: str) -> dict[str, Any]:
    resources: dict[str, Any] = {"cpu": str(settings.cpu), "memory": settings.memory}
    if settings.gpus:
        resources["nvidia.com/gpu"] = str(settings.gpus)
    mounts: list[dict[str, Any]] = [
        {"name": "scratch", "mountPath": "/scratch"},
        {"name": "temporary", "mountPath": "/tmp"},
    ]
    volumes: list[dict[str, Any]] = [
        {"name": "scratch", "emptyDir": {"sizeLimit": settings.scratch}},
        {"name": "temporary", "emptyDir": {"sizeLimit": settings.scratch}},
    ]
    if settings.claim:
        for_reading = {"readOnly": True} if data_root.startswith("s3://") else {}  # models: nothing is written there
        mounts.append({"name": "claim", "mountPath": settings.claim_path, **for_reading})
        volumes.append({"name": "claim", "persistentVolumeClaim": {"claimName": settings.claim}})
    environment = {
        ROOT_VARIABLE: data_root,
        "HOME": "/scratch/home",
        "TMPDIR": "/scratch",
        "SVDFLOW_CACHE_DIR": "/scratch/cache",
        **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
    }
    container = {
        "name": CONTAINER,
        "image": settings.image,
        "command": ["python", "-m", "svdflow.common.fanout_worker"],
        "args": [plan.name],
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "envFrom": [
            {"configMapRef": {"name": _STORE, "optional": True}},
            {"secretRef": {"name": _STORE, "optional": True}},
            *({"secretRef": {"name": name}} for name in settings.secrets),
        ],
        "resources": {"requests": resources, "limits": dict(resources)},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }
    pod: dict[str, Any] = {
        "serviceAccountName": settings.service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 60,  # outcomes are kept on SIGTERM
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "runAsGroup": 1000,
            "fsGroup": 1000,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": volumes,
    }
    if settings.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in settings.image_pull_secrets]
    if settings.node_selector:
        pod["nodeSelector"] = settings.node_selector
    if settings.gpus:
        pod["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    return pod


def _require_reachable(data_root: str, settings: FanoutSettings) -> None:
    if data_root.startswith("s3://"):
        return
    if settings.claim and PurePosixPath(data_root).is_relative_to(settings.claim_path):
        return
    raise ConfigError(
        f"the data root {data_root} is a directory that pods of a fan-out do not see: set SVDFLOW_DATA_ROOT to an "
        f"s3://bucket/prefix, or name the volume it lies on in {VARIABLE} (claim, claim_path)"
    )
