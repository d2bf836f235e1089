"""What is known of a TrainJob from the events about it, its pods and its Workload; and why it ended."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

from ....common.cluster.kinds import Object, conditions, holds
from ....common.cluster.pods import PodStory, read_pod
from ....common.cluster.watch import Event
from ..endings import INTERRUPTED, error_line, last_line

Phase = Literal["queued", "starting", "running", "complete", "failed", "deleted"]
Cause = Literal[
    "user_error", "out_of_memory", "eviction", "node_lost", "interrupted", "deadline", "deleted", "quota", "image",
    "unschedulable", "not_started", "hanging", "budget", "unknown",
]  # fmt: skip
GO_ON = "run it again and it goes on from its last checkpoint"
_LOST_NODE = ("DeletionByTaintManager", "DeletionByPodGC", "NodeLost", "NodeShutdown")
_NODE_DIED = {"DeletionByTaintManager", "DeletionByPodGC", "NodeLost"}
RESTART_LABEL = "jobset.sigs.k8s.io/restart-attempt"
JOB_LABEL = "jobset.sigs.k8s.io/replicatedjob-name"


@dataclass(frozen=True)
class Ending:
    """Why a TrainJob did not complete, and a line about it."""

    cause: Cause
    line: str


@dataclass
class Known:
    """Everything told so far. ``apply`` takes events in the order in which they come."""

    name: str
    uid: str
    nodes: int
    job: Object | None = None
    deleted: bool = False
    workload: Object | None = None
    pods: dict[str, PodStory] = field(default_factory=dict)  # by uid, of the present admission
    listed: set[str] = field(default_factory=set)  # kinds of which all that there was has been told
    _seen: bool = False
    _past: set[str] = field(default_factory=set)  # uids of pods from before it was last suspended

    def apply(self, event: Event) -> None:
        """Take in what an event says."""
        kind, obj = event.kind.name, event.object
        if event.type == "LISTED":
            self.listed.add(kind)
            self.deleted = self.deleted or (kind == "TrainJob" and not self._seen)
        elif kind == "TrainJob":
            if event.type == "DELETED" or obj["metadata"]["uid"] != self.uid:  # another of that name: ours has gone
                self.deleted = True
            else:
                went = (self.job or {}).get("spec", {}).get("suspend") is False and obj["spec"].get("suspend")
                self.job, self._seen = obj, True
                if went:
                    self._forget_pods(conditions(obj).get("Suspended", {}).get("lastTransitionTime"))
        elif kind == "Workload" and event.type != "DELETED":
            self.workload = obj
        elif kind == "Pod" and (uid := obj["metadata"]["uid"]) not in self._past:
            if event.type == "DELETED" and uid in self.pods and self.pods[uid].exit_code is None:
                obj = {**obj, "metadata": {**obj["metadata"], "deletionTimestamp": "now"}}
            self.pods[uid] = read_pod(obj, self.pods.get(uid))

    def _forget_pods(self, suspended_at: str | None) -> None:
        """Kueue took the quota back: that is not the end of it, and those pods' ends are no failures."""
        for uid, pod in list(self.pods.items()):
            if not suspended_at or pod.created_at <= suspended_at:  # the watches are not in step: some may be newer
                self._past.add(uid)
                del self.pods[uid]

    @property
    def phase(self) -> Phase:
        """Where it stands. Running means that all its pods run."""
        job = self.job or {}
        if holds(job, "Complete"):
            return "complete"
        if holds(job, "Failed"):
            return "failed"
        if self.deleted or "deletionTimestamp" in job.get("metadata", {}):
            return "deleted"
        if not job or job.get("spec", {}).get("suspend") or holds(job, "Suspended"):
            return "queued"
        return "running" if len(self.started) >= self.nodes else "starting"

    @property
    def started(self) -> list[PodStory]:
        """The pods that are there and have begun, the newest of every index."""
        newest = {(pod.labels.get(JOB_LABEL), pod.index): pod for pod in self.pods.values()}
        return [pod for pod in newest.values() if pod.phase != "Pending" and not pod.deleted]

    @property
    def running_since(self) -> float:
        """When the last of its pods began to run, in seconds since 1970; never (infinite) where they do not tell."""
        told = [pod.started_at for pod in self.started if pod.started_at]
        return max((datetime.fromisoformat(at).timestamp() for at in told), default=math.inf)

    @property
    def waiting_for(self) -> str:
        """What the queue says why it waits."""
        reserved = conditions(self.workload or {}).get("QuotaReserved", {})
        if reserved.get("status") == "False":
            return f"{reserved.get('reason', '')}: {reserved.get('message', '')}"
        return "Kueue has said nothing about it yet: is its TrainJob integration on?"

    def not_starting(self) -> Ending:
        """Why an admitted job does not run."""
        pending = [pod for pod in self.pods.values() if pod.phase == "Pending" and not pod.deleted]
        for pod in pending:
            if pod.image_error:
                line = f"the image of pod {pod.name} cannot be had ({pod.image_error}); name one that exists and that "
                return Ending("image", f"{line}the nodes may pull")
        for pod in pending:
            if pod.start_error:
                return Ending("not_started", f"the container of pod {pod.name} cannot be started ({pod.start_error})")
        for pod in pending:
            if pod.unschedulable:
                return Ending("unschedulable", f"no node takes pod {pod.name} ({pod.unschedulable})")
        if pending:
            return Ending("not_started", f"pod {pending[0].name} is still {pending[0].phase.lower()}")
        return Ending("not_started", "it was admitted, but Trainer has made no pods for it")

    def ending(self, folder: Path, log: Path) -> Ending:
        """Why a job that has failed, or is gone, ended.

        Args:
            folder: of the attempt, with the lines that its workers left.
            log: node 0's, as far as it was read.
        """
        if self.phase == "deleted":
            return Ending("deleted", f"somebody has deleted it; {GO_ON}")
        failed = conditions(self.job or {}).get("Failed", {})
        if failed.get("reason") == "DeadlineExceeded":
            return Ending("deadline", f"it took longer than it may ({failed.get('message', '')}); {GO_ON}")
        pods = self._last_pods()
        starved = [pod for pod in pods if pod.out_of_memory]
        if starved:
            place = f"pod {starved[0].name}" + (f" on node {starved[0].node}" if starved[0].node else "")
            advice = "give it more, or take more accumulation or gradient_checkpointing"
            return Ending("out_of_memory", f"{place} took more memory than it may and was killed; {advice}; {GO_ON}")
        own = sorted((pod for pod in pods if pod.failed_by_itself), key=lambda pod: (pod.finished_at, pod.index))
        disrupted = [pod for pod in pods if pod.disruption or pod.reason in ("Evicted", *_LOST_NODE)]
        if disrupted and not error_line(folder, echoes=False):  # peers of a pod that was taken away fail by its absence
            return _disrupted(disrupted[0])
        told = error_line(folder)
        if own and own[0].exit_code == INTERRUPTED:
            return Ending("interrupted", f"its processes were told to end; {GO_ON}")
        if own:
            told = told or f"{last_line(log)} (exit status {own[0].exit_code})"
            return Ending("user_error", f"{told} (pod {own[0].name}, log: {log})")
        if told:
            return Ending("user_error", f"{told} (log: {log})")
        # its pods had gone before anybody looked
        return Ending("unknown", f"{failed.get('reason', 'it failed')}: {failed.get('message', '')} (log: {log})")

    def _last_pods(self) -> list[PodStory]:
        """Of every index the last pod that ran, of the set's last start: what failed before was tried again."""
        attempts = [int(pod.labels.get(RESTART_LABEL, 0)) for pod in self.pods.values()]
        last = max(attempts, default=0)
        ran = [p for p in self.pods.values() if p.phase != "Pending" or p.exit_code is not None or p.disruption]
        of_last = [pod for pod in ran if int(pod.labels.get(RESTART_LABEL, 0)) == last]
        return list({(pod.labels.get(JOB_LABEL), pod.index): pod for pod in of_last}.values())


def _disrupted(pod: PodStory) -> Ending:
    reason, message = pod.disruption or (pod.reason, "")
    said = f"{reason}: {message}" if message else reason
    if reason in _NODE_DIED:
        return Ending("node_lost", f"node {pod.node or '(unknown)'} of pod {pod.name} was lost ({said}); {GO_ON}")
    return Ending("eviction", f"pod {pod.name} was evicted ({said}); {GO_ON}")
