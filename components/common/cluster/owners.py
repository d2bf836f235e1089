"""Whose a job is: every run that waits for it is one of its owners, and the last one to leave takes it along.

A run is an Argo Workflow. Kubernetes deletes a job when the last Workflow that owns it is deleted; stopping a run does
not delete its Workflow, so whoever stops one calls ``release_all``.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .api import Cluster
from .errors import Changed, ClusterError, NotThere
from .kinds import JOBS, MANAGED_LABEL, MANAGER, PODS, TRAINJOBS, WORKFLOWS, Kind, Object

Left = Literal["deleted", "kept", "gone"]


@dataclass(frozen=True)
class Workflow:
    """A run's Workflow."""

    name: str
    uid: str

    def reference(self) -> Object:
        """As an owner that controls nothing and holds up no deletion: a job may have several."""
        return {"apiVersion": WORKFLOWS.api_version, "kind": WORKFLOWS.name, "name": self.name, "uid": self.uid}


def this_workflow(cluster: Cluster) -> Workflow | None:
    """The Workflow of the step in whose pod this runs, told by the pod's owner; None where there is no such pod.

    The pod's name comes from ``KFP_POD_NAME``, which Kubeflow Pipelines sets, or is the host's.
    """
    name = os.environ.get("KFP_POD_NAME") or socket.gethostname()
    try:
        pod = cluster.get(PODS, name)
    except NotThere:
        return None
    owners = pod["metadata"].get("ownerReferences", [])
    return next((Workflow(o["name"], o["uid"]) for o in owners if o["kind"] == WORKFLOWS.name), None)


def is_stopped(cluster: Cluster, workflow: Workflow) -> bool:
    """Whether the run was told to end, and not just one of its pods."""
    try:
        found = cluster.get(WORKFLOWS, workflow.name)
    except NotThere:
        return True
    spec = found.get("spec", {})
    # Kubeflow Pipelines stops a run by a deadline of zero, Argo's own clients by "shutdown".
    ended = spec.get("activeDeadlineSeconds") == 0 or bool(spec.get("shutdown"))
    return ended or "deletionTimestamp" in found["metadata"] or found["metadata"]["uid"] != workflow.uid


def owners(obj: Object) -> list[Object]:
    """The Workflows that own an object."""
    return [o for o in obj["metadata"].get("ownerReferences", []) if o["kind"] == WORKFLOWS.name]


def adopt(cluster: Cluster, kind: Kind, obj: Object, workflow: Workflow) -> Object:
    """Add a Workflow to an object's owners; returns the object as it is then.

    Raises:
        NotThere: it has gone meanwhile.
    """
    while workflow.uid not in [owner["uid"] for owner in owners(obj)]:
        given = obj["metadata"].get("ownerReferences", [])
        try:
            return _set_owners(cluster, kind, obj, [*given, workflow.reference()])
        except Changed:
            obj = cluster.get(kind, obj["metadata"]["name"])
    return obj


def release(cluster: Cluster, kind: Kind, obj: Object, workflow: Workflow | None) -> Left:
    """Leave an object: it is deleted if no other run owns it.

    Args:
        cluster: a connection.
        kind: of the object.
        obj: as it was last read; read anew when it has changed.
        workflow: the run that leaves; None for a step that has none.
    """
    while True:
        rest = [owner for owner in owners(obj) if workflow is None or owner["uid"] != workflow.uid]
        try:
            if not rest:
                cluster.delete(kind, obj, exactly=True)
                return "deleted"
            if len(rest) < len(owners(obj)):
                others = [o for o in obj["metadata"]["ownerReferences"] if o["kind"] != WORKFLOWS.name]
                _set_owners(cluster, kind, obj, [*others, *rest])
            return "kept"
        except NotThere:
            return "gone"
        except ClusterError as error:
            if error.status != 409:
                raise
            try:  # somebody has adopted or left it: looked at again
                found = cluster.get(kind, obj["metadata"]["name"])
            except NotThere:
                return "gone"
            if found["metadata"]["uid"] != obj["metadata"]["uid"]:
                return "gone"
            obj = found


def release_all(
    cluster: Cluster, workflow_name: str, when_gone: Callable[[Object], object] = lambda obj: None
) -> dict[str, Left]:
    """Leave every job that a run owns: what stopping a run has to do, beside telling Kubeflow Pipelines.

    Args:
        cluster: a connection to the run's namespace.
        workflow_name: of the run's Workflow.
        when_gone: takes each job that nobody owns any more, as it was last read.

    Returns:
        What became of each job, by "TrainJob name" or "Job name".
    """
    outcome: dict[str, Left] = {}
    for kind in (TRAINJOBS, JOBS):
        for obj in cluster.list(kind, labels=f"{MANAGED_LABEL}={MANAGER}"):
            mine = [owner for owner in owners(obj) if owner["name"] == workflow_name]
            if mine:
                workflow = Workflow(mine[0]["name"], mine[0]["uid"])
                left = release(cluster, kind, obj, workflow)
                outcome[f"{kind.name} {obj['metadata']['name']}"] = left
                if left != "kept":
                    when_gone(obj)
    return outcome


def _set_owners(cluster: Cluster, kind: Kind, obj: Object, references: list[Object]) -> Object:
    meta = obj["metadata"]
    # The version makes it a change of what was read: two runs that adopt at once do not lose one another.
    change = {"metadata": {"resourceVersion": meta["resourceVersion"], "ownerReferences": references}}
    return cluster.patch(kind, meta["name"], change)
