"""What the API server and the webhooks of Trainer and Kueue fill in, and what they refuse, kind by kind.

Only what svdflow's jobs come near. The messages have the recorded form.
"""

from __future__ import annotations

import copy
import json
import re
from typing import Any

from .kube_store import Object, Refused, Resource, bad_request

POD_FIELDS = ("status.phase", "spec.nodeName", "spec.restartPolicy", "spec.serviceAccountName", "status.podIP")
EVENT_FIELDS = (
    "involvedObject.name", "involvedObject.namespace", "involvedObject.kind", "involvedObject.uid", "reason", "type",
    "source", "reportingComponent",
)  # fmt: skip
PODS = Resource("", "v1", "pods", "Pod", fields=POD_FIELDS)
EVENTS = Resource("", "v1", "events", "Event", fields=EVENT_FIELDS)
JOBS = Resource("batch", "v1", "jobs", "Job", fields=("status.successful",))
TRAINJOBS = Resource("trainer.kubeflow.org", "v1alpha1", "trainjobs", "TrainJob", custom=True)
RUNTIMES = Resource(
    "trainer.kubeflow.org", "v1alpha1", "clustertrainingruntimes", "ClusterTrainingRuntime", True, False
)
WORKLOADS = Resource("kueue.x-k8s.io", "v1beta2", "workloads", "Workload", custom=True)
WORKFLOWS = Resource("argoproj.io", "v1alpha1", "workflows", "Workflow", custom=True)
RESOURCES = (
    PODS, EVENTS, JOBS, TRAINJOBS, RUNTIMES, WORKLOADS, WORKFLOWS,
    Resource("", "v1", "configmaps", "ConfigMap"),
    Resource("", "v1", "secrets", "Secret"),
    Resource("", "v1", "services", "Service"),
    Resource("", "v1", "serviceaccounts", "ServiceAccount"),
    Resource("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim"),
    Resource("jobset.x-k8s.io", "v1alpha2", "jobsets", "JobSet", custom=True),
    Resource("kueue.x-k8s.io", "v1beta2", "localqueues", "LocalQueue", custom=True),
    Resource("kueue.x-k8s.io", "v1beta2", "workloadpriorityclasses", "WorkloadPriorityClass", True, False),
)  # fmt: skip
QUEUE = "kueue.x-k8s.io/queue-name"
_SUBDOMAIN = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
_VALUE = r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?"
_SUBDOMAIN_SAID = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and "
    f"end with an alphanumeric character (e.g. 'example.com', regex used for validation is '{_SUBDOMAIN}')"
)
_VALUE_SAID = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and "
    f"end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
    f"'{_VALUE}')"
)
_TRAINJOB_SPEC = {
    "spec": {"runtimeRef", "initializer", "trainer", "runtimePatches", "suspend", "managedBy", "activeDeadlineSeconds"},
    "spec.trainer": {"image", "command", "args", "env", "numNodes", "numProcPerNode", "resourcesPerNode"},
    "spec.runtimeRef": {"name", "apiGroup", "kind"},
}
_JOB_SPEC = {
    "spec": {
        "parallelism", "completions", "activeDeadlineSeconds", "podFailurePolicy", "successPolicy", "backoffLimit",
        "backoffLimitPerIndex", "maxFailedIndexes", "selector", "manualSelector", "template", "completionMode",
        "suspend", "ttlSecondsAfterFinished", "podReplacementPolicy", "managedBy",
    }
}  # fmt: skip

Causes = list[tuple[str, str, str]]  # reason, field, message


def unknown_fields(resource: Resource, obj: Object) -> list[str]:
    """Fields of a spec that the kind does not have, where the kind is one of ours."""
    known = {"TrainJob": _TRAINJOB_SPEC, "Job": _JOB_SPEC}.get(resource.kind, {})
    out = []
    for path, names in known.items():
        part: Any = obj
        for key in path.split("."):
            part = part.get(key) if isinstance(part, dict) else None
        out += [f"{path}.{name}" for name in part or {} if name not in names]
    return sorted(out)


def admit(resource: Resource, new: Object, old: Object | None, runtimes: set[str] | None = None) -> None:
    """Fill in defaults, then refuse what cannot be. ``runtimes``: the names that there are."""
    causes: Causes = []
    _names(resource, new, causes)
    if old is not None and "deletionTimestamp" in old["metadata"]:
        added = set(new["metadata"].get("finalizers", [])) - set(old["metadata"].get("finalizers", []))
        if added:
            listed = ", ".join(json.dumps(name) for name in sorted(added))
            told = "no new finalizers can be added if the object is being deleted, found new finalizers []string"
            causes.append(("FieldValueForbidden", "metadata.finalizers", f"Forbidden: {told}{{{listed}}}"))
    if resource.kind == "TrainJob":
        _trainjob(new, old, causes, runtimes)
    elif resource.kind == "Job":
        _job(new, old, causes)
    elif resource.kind == "Pod" and old is None:
        new["status"] = {"phase": "Pending"}
    if causes:
        raise invalid(resource, new["metadata"].get("name", ""), causes)


def invalid(resource: Resource, name: str, causes: Causes) -> Refused:
    lines = [f"{field}: {message}" for _, field, message in causes]
    shown = lines[0] if len(lines) == 1 else f"[{', '.join(lines)}]"
    details = resource.details(name, kind=True)
    details["causes"] = [{"reason": reason, "message": message, "field": field} for reason, field, message in causes]
    kind = f"{resource.kind}.{resource.group}" if resource.group else resource.kind
    return Refused(422, "Invalid", f'{kind} "{name}" is invalid: {shown}', details)


def denied(webhook: str, message: str, code: int = 403, reason: str = "Forbidden") -> Refused:
    return Refused(code, reason, f'admission webhook "{webhook}" denied the request: {message}')


def _names(resource: Resource, new: Object, causes: Causes) -> None:
    meta = new["metadata"]
    name = meta.get("name", "")
    if not name:
        causes.append(("FieldValueRequired", "metadata.name", "Required value: name or generateName is required"))
    elif not re.fullmatch(_SUBDOMAIN, name):
        causes.append(("FieldValueInvalid", "metadata.name", f'Invalid value: "{name}": {_SUBDOMAIN_SAID}'))
    for value in (meta.get("labels") or {}).values():
        if not re.fullmatch(_VALUE, value):
            causes.append(("FieldValueInvalid", "metadata.labels", f'Invalid value: "{value}": {_VALUE_SAID}'))
    if sum(len(k) + len(v) for k, v in (meta.get("annotations") or {}).items()) > 262144:
        told = "Too long: may not be more than 262144 bytes"
        causes.append(("FieldValueTooLong", "metadata.annotations", told))
    queue = (meta.get("labels") or {}).get(QUEUE)
    if queue and not causes and not re.fullmatch(_SUBDOMAIN, queue):
        webhook = "vjob.kb.io" if resource.kind == "Job" else "vtrainjob.kb.io"
        raise denied(webhook, f'metadata.labels[{QUEUE}]: Invalid value: "{queue}": {_SUBDOMAIN_SAID}')


def _trainjob(new: Object, old: Object | None, causes: Causes, runtimes: set[str] | None) -> None:
    spec, name = new.get("spec") or {}, new["metadata"].get("name", "")
    trainer = spec.get("trainer") or {}
    if not isinstance(trainer.get("numNodes", 0), int):
        told = "json: cannot unmarshal string into Go struct field Trainer.spec.trainer.numNodes of type int32"
        raise denied("mtrainjob.kb.io", told, 400, "")
    if "runtimeRef" not in spec:
        causes.append(("FieldValueRequired", "spec.runtimeRef", "Required value"))
    if name and not re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name):
        told = "Invalid value: metadata.name must match RFC 1035 DNS label format"
        causes.append(("FieldValueInvalid", "<nil>", told))
    if len(name) > 63:
        told = "Invalid value: metadata.name must be no more than 63 characters"
        causes.append(("FieldValueInvalid", "<nil>", told))
    if trainer.get("numNodes", 0) < 0:
        told = (
            f"Invalid value: {trainer['numNodes']}: spec.trainer.numNodes in body should be greater than or equal to 0"
        )
        causes.append(("FieldValueInvalid", "spec.trainer.numNodes", told))
    managed = ("trainer.kubeflow.org/trainjob-controller", "kueue.x-k8s.io/multikueue")
    if spec.get("managedBy", managed[0]) not in managed:
        told = f'Invalid value: "{spec["managedBy"]}": ManagedBy must be {managed[0]} or {managed[1]} if set'
        causes.append(("FieldValueInvalid", "spec.managedBy", told))
    if old is not None:
        for field in ("runtimeRef", "trainer", "initializer", "activeDeadlineSeconds", "managedBy"):
            if spec.get(field) != old["spec"].get(field):
                shown = f'"{spec.get(field)}": ' if field == "managedBy" else ""
                told = f"Invalid value: {shown}field is immutable"
                causes.append(("FieldValueInvalid", f"spec.{field}", told))
        return
    if causes:
        return
    wanted = spec["runtimeRef"]
    wanted.setdefault("apiGroup", "trainer.kubeflow.org")
    wanted.setdefault("kind", "ClusterTrainingRuntime")
    webhook = "validator.trainjob.trainer.kubeflow.org"
    if runtimes is not None and wanted["name"] not in runtimes:
        shown = json.dumps({key: wanted[key] for key in ("name", "apiGroup", "kind")}, separators=(",", ":"))
        missing = f'ClusterTrainingRuntime.trainer.kubeflow.org "{wanted["name"]}" not found'
        told = f"{missing}: specified clusterTrainingRuntime must be created before the TrainJob is created"
        raise denied(webhook, f"spec.RuntimeRef: Invalid value: {shown}: {told}")
    reserved = [v["name"] for v in trainer.get("env", []) if v["name"].startswith("PET_")]
    if reserved:
        shown = json.dumps(trainer["env"], separators=(",", ":"))
        told = f"must not have reserved envs, invalid envs configured: [{' '.join(reserved)}]"
        raise denied(webhook, f"spec.trainer.env: Invalid value: {shown}: {told}")
    spec.setdefault("managedBy", managed[0])
    if QUEUE in (new["metadata"].get("labels") or {}):
        spec["suspend"] = True
        spec.setdefault("runtimePatches", []).append(
            {"manager": "kueue.x-k8s.io/manager", "trainingRuntimeSpec": {"template": {"spec": {}}}}
        )
    spec.setdefault("suspend", False)


def _job(new: Object, old: Object | None, causes: Causes) -> None:
    spec = new.get("spec") or {}
    pod = (spec.get("template") or {}).get("spec") or {}

    def fault(field: str, message: str, reason: str = "FieldValueInvalid") -> None:
        causes.append((reason, f"spec.{field}", message))

    if not isinstance(spec.get("completions", 0), int):
        told = "json: cannot unmarshal string into Go struct field JobSpec.spec.completions of type int32"
        raise bad_request(f'Job in version "v1" cannot be handled as a Job: {told}')
    indexed = spec.get("completionMode") == "Indexed"
    if indexed and spec.get("completions") is None:
        fault("completions", "Required value: when completion mode is Indexed", "FieldValueRequired")
    if spec.get("parallelism", 1) < 0:
        fault("parallelism", f"Invalid value: {spec['parallelism']}: must be greater than or equal to 0")
    if "maxFailedIndexes" in spec and "backoffLimitPerIndex" not in spec:
        fault("backoffLimitPerIndex", "Required value: when maxFailedIndexes is specified", "FieldValueRequired")
    for field in ("backoffLimitPerIndex", "maxFailedIndexes"):
        if field in spec and not indexed:
            fault(field, f"Invalid value: {spec[field]}: requires indexed completion mode")
    if indexed and spec.get("maxFailedIndexes", 0) > (spec.get("completions") or spec.get("maxFailedIndexes", 0)):
        fault(
            "maxFailedIndexes", f"Invalid value: {spec['maxFailedIndexes']}: must be less than or equal to completions"
        )
    for at, rule in enumerate((spec.get("podFailurePolicy") or {}).get("rules", [])):
        where = f"podFailurePolicy.rules[{at}]"
        if rule["action"] == "FailIndex" and "backoffLimitPerIndex" not in spec:
            fault(f"{where}.action", 'Invalid value: "FailIndex": requires the backoffLimitPerIndex to be set')
        for place, code in enumerate((rule.get("onExitCodes") or {}).get("values", [])):
            if code == 0:
                fault(f"{where}.onExitCodes.values[{place}]", "Invalid value: 0: must not be 0 for the In operator")
    if not pod.get("containers"):
        fault("template.spec.containers", "Required value", "FieldValueRequired")
    if pod.get("restartPolicy") not in ("Never", "OnFailure"):
        told = 'Required value: valid values: "OnFailure", "Never"'
        fault("template.spec.restartPolicy", told, "FieldValueRequired")
    if old is not None:
        _job_change(spec, old["spec"], fault)
        return
    name, uid = new["metadata"].get("name", ""), new["metadata"]["uid"]
    if len(name) > 63:
        fault("template.labels", f'Invalid value: "{name}": must be no more than 63 bytes')
    if len(name) + len(str((spec.get("completions") or 1) - 1)) + 1 > 63 and indexed:
        told = f'Invalid value: "{name}": will not able to create pod with invalid DNS label: {name}'
        causes.append(("FieldValueInvalid", "metadata.name", f"{told}-{spec['completions'] - 1}"))
    if causes:
        return
    labels = {"batch.kubernetes.io/controller-uid": uid, "batch.kubernetes.io/job-name": name}
    labels |= {"controller-uid": uid, "job-name": name}
    template = copy.deepcopy(spec["template"])
    meta = template.setdefault("metadata", {})
    meta["labels"] = {**meta.get("labels", {}), **labels}
    new["metadata"].setdefault("labels", dict(meta["labels"]))
    _pod_defaults(template["spec"])
    spec["template"] = template
    spec["selector"] = {"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}
    spec.setdefault("parallelism", 1)
    spec.setdefault("backoffLimit", 2147483647 if "backoffLimitPerIndex" in spec else 6)
    spec.setdefault("completionMode", "NonIndexed")
    spec.setdefault("manualSelector", False)
    spec.setdefault("podReplacementPolicy", "Failed" if "podFailurePolicy" in spec else "TerminatingOrFailed")
    spec["suspend"] = True if QUEUE in (new["metadata"].get("labels") or {}) else spec.get("suspend", False)
    new["status"] = {}


def _pod_defaults(pod: Object) -> None:
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        tag = container.get("image", "").rpartition("/")[2].partition(":")[2]
        container.setdefault("resources", {})
        container.setdefault("terminationMessagePath", "/dev/termination-log")
        container.setdefault("terminationMessagePolicy", "File")
        container.setdefault("imagePullPolicy", "Always" if tag in ("", "latest") else "IfNotPresent")
    defaults = {"terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst", "securityContext": {}}
    for key, value in {**defaults, "schedulerName": "default-scheduler"}.items():
        pod.setdefault(key, value)


def _job_change(spec: Object, before: Object, fault: Any) -> None:
    for field in ("backoffLimitPerIndex", "podFailurePolicy", "completionMode", "selector"):
        if spec.get(field) != before.get(field):
            shown = spec.get(field)
            fault(field, f"Invalid value: {json.dumps(shown)}: field is immutable")
    if spec.get("completions") != before.get("completions") and spec.get("completions") != spec.get("parallelism"):
        fault("completions", f"Invalid value: {spec.get('completions')}: can only be modified in tandem with "
                             "spec.parallelism")  # fmt: skip

    def fixed(part: Object) -> Object:  # what Kueue sets when it admits may change while the Job is suspended
        pod = {k: v for k, v in part["template"].get("spec", {}).items() if k not in _SCHEDULING}
        return pod if before.get("suspend") else part["template"]

    if fixed(spec) != fixed(before):
        fault("template.spec", "Invalid value: {}: field is immutable")


_SCHEDULING = ("nodeSelector", "tolerations", "affinity", "schedulingGates")
