"""What is freed when a run is stopped, beyond what its workflow's end frees by itself.

Kubernetes takes a job along when the last Workflow that owns it is deleted; a stopped Workflow stays for an hour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..registry import load_object


@dataclass(frozen=True)
class Stopped:
    """A run that was told to end; ``workflow`` is empty when it never had one."""

    run_id: str
    workflow: str
    namespace: str


Release = Callable[[Stopped], Sequence[str]]  # tells what became of what the run held, one line each

RELEASES = ("svdflow.pipelines.cluster.jobs:release_jobs",)  # ``module:function``, loaded when a run is stopped


def release_all(run: Stopped) -> list[str]:
    """Let every registered release do its part."""
    told: list[str] = []
    for place in RELEASES:
        release: Release = load_object(place)
        told += release(run)
    return told
