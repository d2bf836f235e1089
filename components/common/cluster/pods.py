"""What a pod tells of itself: why it does not start, and why it ended."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from .kinds import Object

INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
_IMAGE_REASONS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
_BAD_CONTAINER = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError", "CrashLoopBackOff")


@dataclass(frozen=True)
class PodStory:
    """What is known of a pod, also after it has gone: a failed set's other pods are deleted at once.

    Attributes:
        name: of the pod.
        index: of its Job.
        node: where it was placed; empty before that.
        phase: Pending, Running, Succeeded, Failed or Unknown.
        exit_code: of its container; None while that has not ended.
        reason: of the container's end (OOMKilled, Error, Completed) or of the pod's (Evicted, NodeLost).
        started_at: of the container, as the API writes times.
        finished_at: of the container.
        disruption: why the cluster took the pod away: reason and message of the condition DisruptionTarget.
        waiting: why its container does not start: reason and message.
        unschedulable: the scheduler's words why no node takes it.
        deleted: it was told to go, or has gone.
        created_at: as the API writes times.
        labels: of the pod.
    """

    name: str
    index: int = 0
    node: str = ""
    phase: str = "Pending"
    exit_code: int | None = None
    reason: str = ""
    started_at: str = ""
    finished_at: str = ""
    disruption: tuple[str, str] | None = None
    waiting: tuple[str, str] | None = None
    unschedulable: str = ""
    deleted: bool = False
    created_at: str = ""
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def image_error(self) -> str:
        """Why its image cannot be had, or an empty string."""
        return _said(self.waiting) if self.waiting and self.waiting[0] in _IMAGE_REASONS else ""

    @property
    def start_error(self) -> str:
        """Why its container cannot be made, or an empty string."""
        return _said(self.waiting) if self.waiting and self.waiting[0] in _BAD_CONTAINER else ""

    @property
    def failed_by_itself(self) -> bool:
        """Its container ended badly, and nobody had told it to end."""
        return bool(self.exit_code) and not self.disruption and not self.deleted

    @property
    def out_of_memory(self) -> bool:
        """Its container took more memory than it may."""
        return self.reason == "OOMKilled"


def read_pod(pod: Object, before: PodStory | None = None) -> PodStory:
    """A pod's story after an event.

    Args:
        pod: as it is now; of one noticed to be gone only its name may be left.
        before: what was known. What a pod has once told of its end stays: later events may not say it again.
    """
    meta, status = pod["metadata"], pod.get("status") or {}
    story = before or PodStory(meta["name"])
    if not status:
        return replace(story, deleted=True)
    labels = meta.get("labels") or {}
    made_at = meta.get("creationTimestamp", story.created_at)
    story = replace(story, labels=labels, created_at=made_at, index=int(labels.get(INDEX_LABEL, story.index)))
    # A container that failed and was told to end afterwards failed by itself: what was told first counts.
    ended = next((c["state"]["terminated"] for c in status.get("containerStatuses") or []
                  if c.get("state", {}).get("terminated")), None)  # fmt: skip
    waits = next((c["state"]["waiting"] for c in status.get("containerStatuses") or []
                  if c.get("state", {}).get("waiting")), None)  # fmt: skip
    if ended and story.exit_code is None:
        story = replace(story, exit_code=int(ended["exitCode"]), reason=ended.get("reason", ""),
                        finished_at=ended.get("finishedAt", ""))  # fmt: skip
    runs = next((c["state"]["running"] for c in status.get("containerStatuses") or []
                 if c.get("state", {}).get("running")), None)  # fmt: skip
    if runs:
        story = replace(story, started_at=runs.get("startedAt", ""))
    told = {c["type"]: c for c in status.get("conditions") or []}
    target, placed = told.get("DisruptionTarget", {}), told.get("PodScheduled", {})
    if target.get("status") == "True":
        story = replace(story, disruption=(target.get("reason", ""), target.get("message", "")))
    if status.get("reason") and not story.reason:  # a kubelet's own eviction, a lost node
        story = replace(story, reason=status["reason"])
    refused = placed.get("status") == "False" and placed.get("reason") == "Unschedulable"
    gone_now = "deletionTimestamp" in meta
    return replace(
        story,
        node=(pod.get("spec") or {}).get("nodeName") or story.node,
        phase=status.get("phase", story.phase),
        waiting=(waits.get("reason", ""), waits.get("message", "")) if waits else None,
        unschedulable=placed.get("message", "") if refused else "",
        # one that had failed before it was deleted is not excused by that
        deleted=story.deleted or (gone_now and (before is None or before.exit_code is None)),
    )


def _said(pair: tuple[str, str]) -> str:
    return f"{pair[0]}: {pair[1]}" if pair[1] else pair[0]
