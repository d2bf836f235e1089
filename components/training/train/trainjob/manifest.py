"""The TrainJob of a training run: what it asks for, as plain values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....common.cluster.kinds import MANAGED_LABEL, MANAGER, PRIORITY_LABEL, QUEUE_LABEL, Object
from ....common.cluster.names import ATTEMPT_LABEL, KEY_LABEL, job_name, short_key
from ....common.cluster.owners import Workflow
from ....common.errors import ConfigError
from ..settings import StageSettings
from .settings import TrainJobSettings

SHAPE = "svdflow/shape"  # annotation: nodes x processes of a node
IDENTITY = "svdflow/identity"  # annotation: the inputs' identity in full
WORKER = "svdflow.training.train.worker"
MPI = "svdflow.training.train.mpi"
_PORT = 29500


@dataclass(frozen=True)
class Shape:
    """Over what a job is spread."""

    nodes: int
    processes: int  # of a node
    gpus: int  # of a node

    @property
    def all_gpus(self) -> int:
        """Of the job."""
        return self.nodes * self.gpus

    def __str__(self) -> str:
        return f"{self.nodes}x{self.processes}"


def shape_of(stage: str, settings: StageSettings, cluster: TrainJobSettings) -> Shape:
    """How a stage's processes lie on nodes: all on one where they fit, otherwise on nodes that are full.

    Raises:
        ConfigError: they would leave a node half empty.
    """
    processes, most = settings.processes, cluster.processes_per_node
    each = min(processes, most)
    if processes % each:
        raise ConfigError(
            f"train_{stage}.processes: {processes} processes do not fill nodes of {most}; take a multiple of {most}, "
            f"or at most {most}"
        )
    return Shape(processes // each, each, each if cluster.gpu_resource else 0)


def by_mpirun(shape: Shape, cluster: TrainJobSettings) -> bool:
    """Whether mpirun starts the processes: on one node Trainer's MPI policy would start a second one for nothing."""
    return cluster.starter == "mpirun" and shape.nodes > 1


def leader(job: Object) -> str:
    """Of a TrainJob: the group of pods whose first one tells what goes on in all."""
    command = job["spec"].get("trainer", {}).get("command") or []
    return "launcher" if MPI in command else "node"


def attempt_name(stage: str, key: str, attempt: int) -> str:
    """The TrainJob's name."""
    return job_name(f"train-{stage}", key, attempt)


def train_job(
    stage: str,
    key: str,
    attempt: int,
    shape: Shape,
    job_file: Path,
    deadline_s: float,
    cluster: TrainJobSettings,
    workflow: Workflow | None,
) -> Object:
    """The TrainJob's manifest.

    Args:
        stage: of the model, for its name.
        key: the run's identity.
        attempt: from 1.
        shape: see ``shape_of``.
        job_file: for the workers, on the work volume.
        deadline_s: after so long without being suspended it is ended.
        cluster: where it runs.
        workflow: of the run that starts it, its first owner.
    """
    name, mpi = attempt_name(stage, key, attempt), by_mpirun(shape, cluster)
    own = {MANAGED_LABEL: MANAGER, "app.kubernetes.io/part-of": MANAGER, KEY_LABEL: short_key(key)}
    own |= {ATTEMPT_LABEL: str(attempt), "svdflow/stage": stage.replace("_", "-")}
    labels = {**cluster.labels, **own, QUEUE_LABEL: cluster.queue, PRIORITY_LABEL: cluster.priority}
    trainer: dict[str, Any] = {
        "numNodes": shape.nodes,
        "numProcPerNode": shape.processes,
        "args": [str(job_file)],
        "env": [{"name": key, "value": value} for key, value in sorted(_environment(name, mpi, cluster).items())],
    }
    if mpi:
        exported = [word for variable in trainer["env"] for word in ("-x", variable["name"])]
        count = str(shape.nodes * shape.processes)
        # Bound to a core each, processes would share it with their own readers of data.
        mpirun = ["mpirun", "-n", count, "--bind-to", "none", *exported, "python", "-m", WORKER]
        trainer["command"] = ["python", "-m", MPI, "launch", *mpirun]
    elif cluster.image:  # Trainer gives it to the launcher alone, not to the nodes
        trainer["image"] = cluster.image
    resources = {key: value for key, value in (("cpu", cluster.cpu), ("memory", cluster.memory)) if value}
    resources |= cluster.resources | ({cluster.gpu_resource: str(shape.gpus)} if shape.gpus else {})
    if resources:
        trainer["resourcesPerNode"] = {"requests": resources, "limits": resources}
    metadata: Object = {"name": name, "labels": labels, "annotations": {IDENTITY: key, SHAPE: str(shape)}}
    if workflow:
        metadata["ownerReferences"] = [workflow.reference()]
    runtime = cluster.mpi_runtime if mpi else cluster.runtime
    spec = {
        "runtimeRef": {"apiGroup": "trainer.kubeflow.org", "kind": "ClusterTrainingRuntime", "name": runtime},
        "activeDeadlineSeconds": max(1, math.ceil(deadline_s)),
        "trainer": trainer,
    }
    patch = _pod_patch(cluster, own, ["node", "launcher"] if mpi else ["node"])
    if patch:
        spec["runtimePatches"] = [{"manager": "svdflow/launcher", "trainingRuntimeSpec": patch}]
    return {"metadata": metadata, "spec": spec}


def _environment(name: str, mpi: bool, cluster: TrainJobSettings) -> dict[str, str]:
    environment = dict(cluster.environment)
    if not cluster.gpu_resource:
        environment |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": environment.get("OMP_NUM_THREADS", "1")}
    if mpi:  # it tells a process its rank, but not where rank 0 is: on its own host, wherever that stands in the list
        environment |= {"MASTER_ADDR": f"{name}-launcher-0-0.{name}", "MASTER_PORT": str(_PORT)}
    return environment


def _pod_patch(cluster: TrainJobSettings, own: dict[str, str], jobs: list[str]) -> Object:
    """What the pods get beside the runtime's own: labels, nodes, secrets for the image."""
    pod: Object = {}
    if cluster.node_selector:
        pod["nodeSelector"] = dict(cluster.node_selector)
    if cluster.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in cluster.image_pull_secrets]
    template: Object = {"metadata": {"labels": {**cluster.labels, KEY_LABEL: own[KEY_LABEL]}}}
    if pod:
        template["spec"] = pod
    patched = [{"name": name, "template": {"spec": {"template": template}}} for name in jobs]
    return {"template": {"spec": {"replicatedJobs": patched}}}
