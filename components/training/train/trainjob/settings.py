"""How training runs on a cluster: ``SVDFLOW_TRAINJOB`` of the step's pod, a mapping in YAML or JSON.

It says where and with what, never what is trained: nothing in it is part of a result's identity. An empty mapping
(``{}``) takes all defaults; without the variable training runs on the step's own machine.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from ....common.cluster.names import Labels, Name
from ....common.config import Settings, settings_of_variable

VARIABLE = "SVDFLOW_TRAINJOB"
_RESERVED = ("PET_", "MASTER_", "RANK", "WORLD_SIZE", "LOCAL_RANK")


class TrainJobSettings(Settings):
    """Where a TrainJob runs and how long is waited for it."""

    namespace: str | None = None  # the step's own
    queue: Name = "research"  # Kueue's LocalQueue
    priority: Name = "svdflow-normal"  # Kueue's WorkloadPriorityClass
    runtime: str = "svdflow-torch"  # ClusterTrainingRuntime
    starter: Literal["torchrun", "mpirun"] = "torchrun"  # of processes on several nodes; on one it is torchrun
    mpi_runtime: str = "svdflow-mpi"  # ClusterTrainingRuntime for mpirun, with Trainer's MPI policy
    image: str | None = None  # the runtime's; pin it by digest. Under mpirun always the runtime's

    processes_per_node: int = Field(8, ge=1)  # as many as a node has GPUs
    gpu_resource: str = "nvidia.com/gpu"  # what the device plugin calls a GPU; empty: training runs on processors
    cpu: str | None = None  # of a node, as Kubernetes writes quantities; the runtime's
    memory: str | None = None
    resources: dict[str, str] = Field(default_factory=dict)  # more of a node, as rdma/hca: "8"
    node_selector: Labels = Field(default_factory=dict)  # as svdflow/gpu: h100
    environment: dict[str, str] = Field(default_factory=dict)  # NCCL_*, UCX_* and the like
    labels: Labels = Field(default_factory=dict)  # of the job and its pods, as a cost centre
    image_pull_secrets: tuple[Name, ...] = ()

    work: Path = Path("/work")  # the volume that the step and the training pods share, under the same path
    gpu_hours: float | None = Field(None, gt=0)  # for all attempts of one run together
    quota_wait_s: float = Field(86400.0, gt=0)  # for Kueue to admit it
    start_wait_s: float = Field(3600.0, gt=0)  # from admission until all pods run: nodes are started, images pulled
    keep: Literal["failed", "always", "never"] = "failed"  # which ended TrainJobs stay, until their run's Workflow goes
    patience_s: float = Field(600.0, gt=0)  # with an API server that is away

    @field_validator("environment")
    @classmethod
    def _not_the_launchers_own(cls, value: dict[str, str]) -> dict[str, str]:
        wrong = [name for name in value if name.startswith(_RESERVED)]
        if wrong:
            raise ValueError(f"{', '.join(wrong)}: set by torchrun and Trainer, not to be given")
        secret = [name for name in value if re.search("SECRET|PASSWORD|TOKEN|KEY_ID|ACCESS_KEY", name)]
        if secret:
            raise ValueError(f"{', '.join(secret)}: come from the secrets that the runtime names, never in here")
        return value

    @field_validator("work")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        if not value.is_absolute():
            raise ValueError(f"{value} has to be an absolute path")
        return value

    @staticmethod
    def from_environment() -> TrainJobSettings | None:
        """What ``SVDFLOW_TRAINJOB`` says, or None without it.

        Raises:
            ConfigError: names the field.
        """
        return settings_of_variable(TrainJobSettings, VARIABLE, "{queue: research, processes_per_node: 8}")
