"""Starts the training processes and sees them through, on this machine or as a TrainJob.

The environment of the step decides: with ``SVDFLOW_TRAINJOB`` training runs on the cluster (see ``trainjob.settings``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...common.storage import DataRoot
from . import launcher_local
from .job import Job
from .trainjob.settings import TrainJobSettings


def workspace(root: DataRoot, key: str) -> Path:
    """The folder of a training run, which the step and all training processes see.

    Args:
        root: the data root.
        key: the run's identity.
    """
    cluster = TrainJobSettings.from_environment()
    folder = root.scratch("training", key)
    if cluster is None or folder.resolve().is_relative_to(cluster.work.resolve()):
        return folder
    shared = cluster.work / "training" / key  # scratch space of an object store's root is this pod's own disk
    shared.mkdir(parents=True, exist_ok=True)
    return shared


def launch(job: Job, folder: Path, key: str) -> dict[str, Any]:
    """Run a job to its end and return what rank 0 reports.

    Args:
        job: what is to be trained.
        folder: of the run, see ``workspace``.
        key: the run's identity: on a cluster it names the TrainJob.

    Raises:
        ConfigError: it cannot be run so.
        TrainingInterrupted: told to end, evicted, or out of time; a checkpoint is kept.
        TrainingFailed: anything else; carries one line.
    """
    cluster = TrainJobSettings.from_environment()
    if cluster is None:
        return launcher_local.launch(job, folder)
    from .trainjob.launch import launch as launch_train_job

    return launch_train_job(job, folder, key, cluster)
