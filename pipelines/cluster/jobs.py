"""What a stopped run leaves: its TrainJobs and Indexed Jobs, as far as no other run owns them."""

from __future__ import annotations

from svdflow.common.cluster.api import connect
from svdflow.common.cluster.errors import ClusterError
from svdflow.common.cluster.owners import release_all
from svdflow.common.errors import ConfigError

from .release import Stopped

_PATIENCE_S = 30.0  # somebody waits at a terminal


def release_jobs(run: Stopped) -> list[str]:
    """Delete the jobs of a run, or leave them to the other runs that own them; one line each on what became of it."""
    if not run.workflow:
        return []
    try:
        with connect(run.namespace, _PATIENCE_S) as cluster:
            left = release_all(cluster, run.workflow)
    except (ConfigError, ClusterError) as error:
        return [f"its jobs were not looked at ({error}); they end when the Workflow {run.workflow} is deleted"]
    return [f"{job}: {'left to another run' if end == 'kept' else end}" for job, end in left.items()]
