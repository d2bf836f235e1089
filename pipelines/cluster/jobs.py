"""What a stopped run leaves: its TrainJobs and Indexed Jobs with their files, as far as no other run owns them."""

from __future__ import annotations

import os

from svdflow.common.cluster.api import connect
from svdflow.common.cluster.errors import ClusterError
from svdflow.common.cluster.kinds import Object
from svdflow.common.cluster.owners import release_all
from svdflow.common.errors import ConfigError, StorageError
from svdflow.common.fanout_files import remove_files
from svdflow.common.fanout_manifest import files_of
from svdflow.common.storage import DataRoot

from .release import Stopped

_PATIENCE_S = 30.0  # somebody waits at a terminal


def release_jobs(run: Stopped) -> list[str]:
    """Delete the jobs of a run, or leave them to the other runs that own them; one line each on what became of it."""
    if not run.workflow:
        return []
    gone: list[Object] = []
    try:
        with connect(run.namespace, _PATIENCE_S) as cluster:
            left = release_all(cluster, run.workflow, gone.append)
    except (ConfigError, ClusterError) as error:
        return [f"its jobs were not looked at ({error}); they end when the Workflow {run.workflow} is deleted"]
    lines = [f"{job}: {'left to another run' if end == 'kept' else end}" for job, end in left.items()]
    return lines + _remove_files(gone)


def _remove_files(jobs: list[Object]) -> list[str]:
    """Remove what fan-outs have written down, if this place has their data root; a later fan-out does it otherwise."""
    here = os.environ.get("SVDFLOW_DATA_ROOT", "").rstrip("/")
    names = [name for location, name in files_of(jobs) if here and location.rstrip("/") == here]
    if not names:
        return []
    try:
        root = DataRoot.open(here)
        for name in names:
            remove_files(root, name)
    except StorageError as error:
        return [f"what its fan-outs have written down stays for now ({error}); a later one removes it"]
    return [f"{here}: fan-out {name} removed" for name in names]
