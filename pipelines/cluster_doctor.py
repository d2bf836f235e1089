"""`svdflow doctor --cluster`: what a cluster has and lacks of what runs need there, with the remedy for each.

It reads, and asks for reviews of access; it creates nothing. Of secrets it asks the server for names alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from svdflow.common.cluster.api import Cluster, connect
from svdflow.common.errors import ConfigError

from .cluster_facts import Access, Facts, Unreachable, kfp_answers
from .cluster_needs import (
    APIS,
    CONFIG_MAPS,
    PRIORITIES,
    QUEUES,
    RUNTIME,
    RUNTIMES,
    SECRETS,
    SERVICE_ACCOUNTS,
    STOPPING,
    VERBS,
)
from .cluster_store import buckets

State = Literal["there", "missing", "absent", "unknown"]  # missing: needed; absent: only wanted by some
_SIGNS = {"there": "[green]✓", "missing": "[red]✗", "absent": "[yellow]-", "unknown": "[yellow]?"}
_KUBERNETES = (1, 31)
_GPU = "nvidia.com/gpu"
_SHOWN_PODS = 3


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    state: State
    found: str = ""
    remedy: str = ""


def examine(namespace: str | None = None, endpoint: str | None = None, cluster: Cluster | None = None) -> int:
    """Print a table of checks.

    Args:
        namespace: of runs; the pod's own or the kubeconfig's by default.
        endpoint: of Kubeflow Pipelines' API, if it is to be tried.
        cluster: a connection; made from the surroundings by default.

    Returns:
        Exit status: 0 when all that is needed is there, as far as it can be told.
    """
    from rich.console import Console
    from rich.table import Table

    try:
        connection = cluster or connect(namespace, patience_s=0)
        facts = Facts(connection)
        rows = list(checks(facts, endpoint))
    except (ConfigError, Unreachable) as error:
        print(f"no cluster is reachable: {error}")
        return 1
    table = Table("", "what", "found", "remedy", box=None, header_style="bold")
    for row in rows:
        table.add_row(_SIGNS[row.state], row.what, row.found, "" if row.state == "there" else row.remedy)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    count = {state: sum(row.state == state for row in rows) for state in _SIGNS}
    print(
        f"namespace {connection.namespace}: "
        + (f"{count['missing']} missing" if count["missing"] else "nothing needed is missing"),
        end="",
    )
    print(f", {count['absent']} not used here, {count['unknown']} could not be told")
    return 1 if count["missing"] else 0


def checks(facts: Facts, endpoint: str | None = None) -> Iterator[Row]:
    """All checks, one after the other."""
    yield _version(facts)
    yield from _apis(facts)
    yield _pod_security(facts)
    yield from _runtimes(facts)
    yield from _queues(facts)
    yield from _flavors(facts)
    yield from _priorities(facts)
    yield from _named(facts)
    yield _work_volume(facts)
    yield from _buckets()
    yield from _accounts(facts)
    yield from _permissions(facts)
    yield _images(facts)
    if endpoint:
        yield _kfp(endpoint)


def _version(facts: Facts) -> Row:
    what = f"Kubernetes {'.'.join(map(str, _KUBERNETES))} or newer"
    told = facts.get("/version")
    if isinstance(told, Access):
        return Row(what, "unknown", _denied(told))
    number = tuple(int("".join(filter(str.isdigit, told.get(part, "0"))) or 0) for part in ("major", "minor"))
    remedy = "upgrade the cluster: Jobs with a limit of failed indexes and pod failure policies need it"
    return Row(what, "there" if number >= _KUBERNETES else "missing", told.get("gitVersion", "?"), remedy)


def _apis(facts: Facts) -> Iterator[Row]:
    for api in APIS:
        listed = facts.get(api.path)
        state: State = "missing" if api.needed else "absent"
        if isinstance(listed, Access):
            yield Row(api.what, state if listed is Access.ABSENT else "unknown", _denied(listed), api.remedy)
            continue
        plurals = {resource["name"] for resource in listed.get("resources", [])}
        lacking = [plural for plural in api.plurals if plural not in plurals]
        found = f"lacks {', '.join(lacking)}" if lacking else f"{api.version}: {', '.join(api.plurals)}"
        yield Row(api.what, state if lacking else "there", found, api.remedy)
    crd = facts.get("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/trainjobs.trainer.kubeflow.org")
    if not isinstance(crd, Access):
        spec = _dig(crd, "spec", "versions", 0, "schema", "openAPIV3Schema", "properties", "spec", "properties") or {}
        has = "runtimePatches" in spec
        yield Row("TrainJobs with runtimePatches", "there" if has else "missing", "" if has else "an older Trainer",
                  "upgrade Kubeflow Trainer to 2.2 or newer")  # fmt: skip


def _pod_security(facts: Facts) -> Row:
    name = facts.namespace
    what = f"namespace {name}, PodSecurity restricted"
    found = facts.get(f"/api/v1/namespaces/{name}")
    if isinstance(found, Access):
        return _not_read(what, found, f"kubectl create namespace {name}, or name another one with --namespace")
    level = found["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce", "not enforced")
    remedy = f"kubectl label namespace {name} pod-security.kubernetes.io/enforce=restricted: footage is decoded there"
    return Row(what, "there" if level == "restricted" else "missing", level, remedy)


def _runtimes(facts: Facts) -> Iterator[Row]:
    for name, use in RUNTIMES.items():
        what = f"ClusterTrainingRuntime {name}"
        remedy = f"kubectl apply -k infra/overlays/… (components/training-runtime): {use}"
        found = facts.get(f"/apis/trainer.kubeflow.org/v1alpha1/clustertrainingruntimes/{name}")
        if isinstance(found, Access):
            yield _not_read(what, found, remedy, needed=name == RUNTIME)
            continue
        job = _dig(found, "spec", "template", "spec", "replicatedJobs", 0, "template", "spec", "template", "spec")
        yield Row(what, "there", (_dig(job, "containers", 0) or {}).get("image", ""))


def _queues(facts: Facts) -> Iterator[Row]:
    for name, use in QUEUES.items():
        what, remedy = f"queue {name}", f"kubectl apply -k infra/overlays/… (components/queues): {use}"
        local = facts.get(f"/apis/kueue.x-k8s.io/v1beta2/namespaces/{facts.namespace}/localqueues/{name}")
        if isinstance(local, Access):
            yield _not_read(what, local, remedy)
            continue
        active = _condition(local, "Active")
        waiting = local.get("status", {}).get("pendingWorkloads", 0)
        told = f"→ {local['spec']['clusterQueue']}, {waiting} waiting"
        if active and active["status"] != "True":
            yield Row(
                what,
                "missing",
                f"{told}: {active.get('message', 'not active')}",
                f"see kubectl -n {facts.namespace} describe localqueue {name}",
            )
            continue
        yield Row(what, "there", told)
        quota = facts.get(f"/apis/kueue.x-k8s.io/v1beta2/clusterqueues/{local['spec']['clusterQueue']}")
        yield _quota(f"quota of {name}", quota, local["spec"]["clusterQueue"])


def _quota(what: str, queue: dict[str, Any] | Access, name: str) -> Row:
    remedy = f"give ClusterQueue {name} a quota (infra/components/gpu-quotas)"
    if isinstance(queue, Access):
        return _not_read(what, queue, remedy)
    active = _condition(queue, "Active")
    if active and active["status"] != "True":
        return Row(what, "missing", active.get("message", "not active"), f"see kubectl describe clusterqueue {name}")
    totals: dict[str, list[str]] = {}
    for group in queue["spec"].get("resourceGroups", []):
        for flavor in group["flavors"]:
            for resource in flavor["resources"]:
                if str(resource["nominalQuota"]) != "0":
                    totals.setdefault(resource["name"], []).append(str(resource["nominalQuota"]))
    cohort = queue["spec"].get("cohortName", "")
    told = ", ".join(f"{name} {'+'.join(values)}" for name, values in totals.items())
    shared = f"; borrows from cohort {cohort}" if cohort else ""
    return Row(what, "there" if totals or cohort else "missing", (told or "none") + shared, remedy)


def _flavors(facts: Facts) -> Iterator[Row]:
    flavors = facts.list("/apis/kueue.x-k8s.io/v1beta2/resourceflavors")
    if isinstance(flavors, Access):
        yield _not_read("ResourceFlavors", flavors, "kubectl apply -k infra/overlays/… (components/gpu-quotas)")
        return
    if not flavors:
        yield Row("ResourceFlavors", "missing", "none", "kubectl apply -k infra/overlays/… (components/gpu-quotas)")
        return
    nodes = facts.list("/api/v1/nodes")
    if isinstance(nodes, Access):
        yield _not_read("nodes", nodes, "run this as somebody who may list nodes")
        return
    for flavor in flavors:
        labels = flavor["spec"].get("nodeLabels", {})
        fitting = [n for n in nodes if labels.items() <= n["metadata"].get("labels", {}).items()]
        ready = [n for n in fitting if (_condition(n, "Ready") or {}).get("status") == "True"]
        gpus = sum(int(n["status"].get("allocatable", {}).get(_GPU, 0)) for n in ready)
        shown = ", ".join(f"{key}={value}" for key, value in labels.items()) or "any label"
        bare = ready and not gpus and any("gpu" in key and value != "none" for key, value in labels.items())
        told = f"{len(ready)} of {len(fitting)} nodes ready, {gpus} GPUs ({shown})"
        if bare:
            yield Row(
                f"nodes of {flavor['metadata']['name']}",
                "missing",
                told,
                "install NVIDIA's device plugin: the nodes offer no GPU",
            )
        else:
            yield Row(f"nodes of {flavor['metadata']['name']}", "there" if ready else "absent", told,
                      "none now: an autoscaler has to make them, or label the nodes")  # fmt: skip


def _priorities(facts: Facts) -> Iterator[Row]:
    for name in PRIORITIES:
        found = facts.get(f"/apis/kueue.x-k8s.io/v1beta2/workloadpriorityclasses/{name}")
        yield _present(f"priority {name}", found, "kubectl apply -k infra/overlays/… (components/queues)")


def _named(facts: Facts) -> Iterator[Row]:
    for kind, wanted in (("secret", SECRETS), ("configmap", CONFIG_MAPS)):
        names = facts.names(f"/api/v1/namespaces/{facts.namespace}/{kind}s")
        for name, (needed, remedy) in wanted.items():
            what = f"{kind} {name}"
            if isinstance(names, Access):
                yield _not_read(what, names, remedy, needed)
            else:
                state: State = "there" if name in names else "missing" if needed else "absent"
                yield Row(what, state, "", remedy)


def _work_volume(facts: Facts) -> Row:
    what, remedy = (
        "work volume svdflow-work",
        "kubectl apply -k infra/overlays/… (base); it needs a ReadWriteMany class",
    )
    found = facts.get(f"/api/v1/namespaces/{facts.namespace}/persistentvolumeclaims/svdflow-work")
    classes = facts.list("/apis/storage.k8s.io/v1/storageclasses")
    default = "storageclass.kubernetes.io/is-default-class"
    if isinstance(found, Access):
        return _not_read(what, found, remedy)
    phase, modes = found.get("status", {}).get("phase", "?"), ", ".join(found["spec"].get("accessModes", []))
    chosen = found["spec"].get("storageClassName", "")
    if phase == "Bound":
        return Row(what, "there", f"{phase}, {modes}, class {chosen or 'default'}")
    why = "look at kubectl describe pvc svdflow-work"
    if not isinstance(classes, Access):
        names = {c["metadata"]["name"] for c in classes}
        defaults = [c for c in classes if c["metadata"].get("annotations", {}).get(default) == "true"]
        if chosen and chosen not in names:
            why = f"there is no storage class {chosen}: there are {', '.join(sorted(names)) or 'none'}"
        elif not chosen and not defaults:
            why = "no storage class is the default: mark one, or name one in the claim"
        elif any(c.get("volumeBindingMode") == "WaitForFirstConsumer" for c in classes):
            return Row(what, "absent", f"{phase}: bound when a pod first uses it", why)
    return Row(what, "missing", phase, why)


def _buckets() -> Iterator[Row]:
    for what, there, found, remedy in buckets():
        yield Row(what, "unknown" if there is None else "there" if there else "missing", found, remedy)


def _accounts(facts: Facts) -> Iterator[Row]:
    for name, mounts in SERVICE_ACCOUNTS.items():
        what = f"service account {name}"
        found = facts.get(f"/api/v1/namespaces/{facts.namespace}/serviceaccounts/{name}")
        if isinstance(found, Access):
            yield _not_read(what, found, "kubectl apply -k infra/overlays/… (base)")
            continue
        told = [s["name"] for s in found.get("imagePullSecrets", [])]
        shown = f"pull secrets {', '.join(told)}" if told else "no pull secret"
        if not mounts and found.get("automountServiceAccountToken", True):
            yield Row(
                what,
                "missing",
                "mounts a token",
                "its pods need none: set automountServiceAccountToken: false, as infra/base/service-accounts.yaml",
            )
        else:
            yield Row(what, "there", shown)


def _permissions(facts: Facts) -> Iterator[Row]:
    who, role = facts.reviewed(), "pipeline-runner"
    asked: Mapping[tuple[str, str], tuple[str, ...]] = VERBS
    if who == "you" and facts.user() == f"system:serviceaccount:{facts.namespace}:console":
        who, asked, role = "the console", STOPPING, "run-stopper"
    for (group, resource), verbs in asked.items():
        what = f"{who} may {', '.join(verbs)} {resource}"
        answers = {verb: facts.may(group, resource, verb) for verb in verbs}
        refused = [verb for verb, may in answers.items() if may is False]
        if any(isinstance(may, Access) for may in answers.values()):
            yield Row(what, "unknown", "not told", "")
        else:
            told = f"not {', '.join(refused)}" if refused else ""
            yield Row(what, "missing" if refused else "there", told, f"Role {role}, infra/base/roles.yaml")


def _images(facts: Facts) -> Row:
    from svdflow.common.cluster.pods import read_pod

    what = "images"
    pods = facts.list(f"/api/v1/namespaces/{facts.namespace}/pods", fieldSelector="status.phase=Pending")
    if isinstance(pods, Access):
        return _not_read(what, pods, "run this as somebody who may list pods")
    faults = {pod["metadata"]["name"]: fault for pod in pods if (fault := read_pod(pod).image_error)}
    shown = "; ".join(f"{name}: {fault[:200]}" for name, fault in list(faults.items())[:_SHOWN_PODS])
    remedy = "push them (make images), name them in components/images, give the service account its pull secret"
    return Row(
        what, "missing" if faults else "there", shown or "no pod waits for one; none was pulled for this", remedy
    )


def _kfp(endpoint: str) -> Row:
    works, told = kfp_answers(endpoint)
    remedy = "kubectl -n kubeflow port-forward svc/ml-pipeline 8888, or the gateway's address"
    return Row(f"Kubeflow Pipelines at {endpoint}", "there" if works else "missing", told, remedy)


def _present(what: str, found: dict[str, Any] | Access, remedy: str) -> Row:
    return _not_read(what, found, remedy) if isinstance(found, Access) else Row(what, "there")


def _not_read(what: str, access: Access, remedy: str, needed: bool = True) -> Row:
    if access is Access.ABSENT:
        return Row(what, "missing" if needed else "absent", "", remedy)
    return Row(what, "unknown", _denied(access), "run this as somebody who may")


def _denied(access: Access) -> str:
    return "" if access is Access.ABSENT else "you may not read it"


def _condition(obj: dict[str, Any], kind: str) -> dict[str, Any] | None:
    return next((c for c in obj.get("status", {}).get("conditions", []) if c["type"] == kind), None)


def _dig(value: Any, *path: str | int) -> Any:
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value
