"""What pods of a fan-out say about their end, in words for a report."""

from __future__ import annotations

from .cluster.kinds import Object
from .cluster.pods import read_pod


def why_failed(pod: Object, memory: str) -> str:
    """Why a pod failed; "" when it does not say.

    Args:
        pod: as the API has it.
        memory: the limit of its memory, as its settings have it.
    """
    story = read_pod(pod)
    if story.disruption:
        return f"its pod was evicted ({': '.join(filter(None, story.disruption))})"
    if story.out_of_memory:
        return f"its pod took more than its {memory} of memory (OOMKilled)"
    if story.exit_code:
        said = last_words(pod)
        return f"its pod ended with status {story.exit_code}" + (f" ({said})" if said else "")
    if story.reason:  # the kubelet's own: Evicted, DeadlineExceeded
        return f"its pod failed ({story.reason}: {pod['status'].get('message', '')})"
    return ""


def last_words(pod: Object) -> str:
    """What its container left to be said when it ended: one line, at most 500 characters."""
    for container in pod.get("status", {}).get("containerStatuses", []):
        if message := (container.get("state", {}).get("terminated") or {}).get("message"):
            return " ".join(message.split())[-500:]
    return ""


def image_fault(pod: Object) -> str:
    """Why a pod's container cannot be made; "" when nothing is said against it."""
    story = read_pod(pod)
    return story.image_error or story.start_error
