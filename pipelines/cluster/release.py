"""What is freed when a run is stopped, beyond what its workflow's end frees by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..registry import load_object

Release = Callable[[str, str], Sequence[str]]  # a run's id and namespace to what was released, in words

RELEASES: tuple[str, ...] = ()  # ``module:function`` of each


def release_all(run_id: str, namespace: str) -> list[str]:
    """Release what the run's steps started elsewhere; each says nothing when it has no access to the cluster."""
    told: list[str] = []
    for place in RELEASES:
        release: Release = load_object(place)
        told += release(run_id, namespace)
    return told
