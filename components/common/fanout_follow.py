"""One Indexed Job of a fan-out, followed to its end: outcomes as indexes complete, reasons of those that fail."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from .cluster.api import Cluster
from .cluster.errors import NotThere
from .cluster.kinds import JOBS, PODS, WORKLOADS, Object, conditions
from .cluster.pods import INDEX_LABEL
from .cluster.watch import Watches
from .errors import BadInputError, ConfigError, ServiceError, StorageError
from .fanout_manifest import FanoutSettings
from .fanout_plan import Part, Plan, read_part
from .fanout_pods import image_fault, last_words, why_failed
from .storage import DataRoot

_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_ASKED_TOGETHER = 100  # failed indexes in one list of pods: the selector is part of the URL


class JobGone(Exception):
    """The Job, or its files, were removed by somebody else."""


class FollowedJob:
    """One Job, from now to its end."""

    def __init__(
        self, cluster: Cluster, job: Object, plan: Plan, root: DataRoot, settings: FanoutSettings, look_s: float
    ) -> None:
        self.cluster, self.job, self.plan, self.root, self.settings = cluster, job, plan, root, settings
        self.look_s = look_s  # between looks at what holds it up
        self.name, self.uid = job["metadata"]["name"], job["metadata"]["uid"]
        self._seen = bytearray(plan.indexes)
        self._failed = 0
        self._told = self._why = ""
        self._waiting_since: float | None = None
        self._no_image_since: float | None = None
        self._looked_at = time.monotonic()

    def outcomes(self) -> Iterator[tuple[int, Any, str | None, float]]:
        """Place in the plan, value, error, seconds of each unit, as indexes end.

        Raises:
            JobGone: the Job or its files were removed.
            ConfigError, ServiceError, StorageError: see ``IndexedJobs.run``.
        """
        with Watches(self.cluster, (JOBS, "", f"metadata.name={self.name}")) as watches:
            while True:
                yield from self._news()
                if ended(self.job):
                    yield from self._rest()
                    return
                self._look()
                self._next(watches)

    def _next(self, watches: Watches) -> None:
        """The Job's latest state; returns after a while without one as well."""
        event = watches.next(self.look_s)
        while event is not None:
            if event.type == "LISTED":  # what the list did not show has gone
                try:
                    self.job = self._same(self.cluster.get(JOBS, self.name))
                except NotThere:
                    raise self._gone() from None
            elif event.type == "DELETED":
                if event.object["metadata"]["uid"] == self.uid:
                    raise self._gone()
            else:
                self.job = self._same(event.object)
            event = watches.next(0)  # those that came while outcomes were read: the last one tells all

    def _same(self, job: Object) -> Object:
        if job["metadata"]["uid"] != self.uid:
            raise self._gone()
        return job

    def _gone(self) -> JobGone:
        return JobGone(f"Job {self.name} was deleted by somebody else")

    # outcomes

    def _news(self) -> Iterator[tuple[int, Any, str | None, float]]:
        """Outcomes of the indexes that have ended since the last look."""
        status = self.job.get("status", {})
        for index in indexes(status.get("completedIndexes"), self.plan.indexes):
            if not self._seen[index]:
                self._seen[index] = 1
                yield from self._completed(index)
        failed = [i for i in indexes(status.get("failedIndexes"), self.plan.indexes) if not self._seen[i]]
        for at in range(0, len(failed), _ASKED_TOGETHER):
            yield from self._lost(failed[at : at + _ASKED_TOGETHER], "its pod failed")

    def _completed(self, index: int) -> Iterator[tuple[int, Any, str | None, float]]:
        part = self._part(index)
        if isinstance(part, str):
            yield from self._set_aside(index, {}, part)
            return
        if not part.done and not self.root.exists(self.plan.uri("plan.json")):
            raise JobGone(f"the files of Job {self.name} were removed by another run")
        yield from self._set_aside(index, part.outcomes, "its pod ended without an outcome for it")

    def _lost(self, failed: Sequence[int], otherwise: str) -> Iterator[tuple[int, Any, str | None, float]]:
        """What pods that failed had done, and why the rest is not."""
        reasons = self._reasons(failed)
        for index in failed:
            self._seen[index] = 1
            self._failed += 1
            part = self._part(index)
            reason = reasons.get(index, otherwise)
            if isinstance(part, str):
                yield from self._set_aside(index, {}, f"{reason}; {part}")
                continue
            if part.storage_error:
                raise StorageError(f"a pod of {self.name} says: {part.storage_error}")
            yield from self._set_aside(index, part.outcomes, reason)

    def _part(self, index: int) -> Part | str:
        try:
            return read_part(self.root, self.plan, index)
        except BadInputError as error:  # of a pod that was taken over: costs its own units
            return str(error)

    def _set_aside(
        self, index: int, outcomes: dict[int, tuple[Any, str | None, float]], reason: str
    ) -> Iterator[tuple[int, Any, str | None, float]]:
        for at, place in enumerate(self.plan.part(index)):
            yield place, *outcomes.get(at, (None, reason, 0.0))

    def _reasons(self, failed: Sequence[int]) -> dict[int, str]:
        chosen = ",".join(map(str, failed))
        labels = f"batch.kubernetes.io/job-name={self.name},{INDEX_LABEL} in ({chosen})"
        found: dict[int, str] = {}
        for pods, _ in self.cluster.pages(PODS, labels, "status.phase=Failed"):
            for pod in sorted(pods, key=lambda p: p["metadata"].get("creationTimestamp", "")):
                if reason := why_failed(pod, self.settings.memory):
                    found[int(pod["metadata"]["labels"][INDEX_LABEL])] = self._why = reason
        return found

    def _rest(self) -> Iterator[tuple[int, Any, str | None, float]]:
        """The Job has ended: what became of the indexes that did not."""
        told = conditions(self.job).get("Failed", {})
        reason, message = told.get("reason", ""), told.get("message", "")
        if reason == "PodFailurePolicy":
            raise ConfigError(f"pods of {self.name} cannot do this work: {self._last_words() or message}")
        left = [index for index in range(self.plan.indexes) if not self._seen[index]]
        limit = self.settings.max_failed(self.plan.indexes)
        failed = self._failed + len(left)
        if reason == "MaxFailedIndexesExceeded" or failed > limit:
            for index in left:  # what they had done is kept
                if not isinstance(part := self._part(index), str):
                    start = self.plan.part(index).start
                    yield from ((start + at, *found) for at, found in part.outcomes.items())
            words = "; ".join(filter(None, [message or reason, self._why]))
            raise ServiceError(
                f"Job {self.name}: {failed} of {self.plan.indexes} pods failed or were ended, and {limit} may fail "
                f"({words}). Its pods stay for {self.settings.ttl_s} s: kubectl logs -l "
                f"batch.kubernetes.io/job-name={self.name}. What was done is kept"
            )
        why = "the fan-out's deadline was over" if reason == "DeadlineExceeded" else message or "its pod never ended"
        for at in range(0, len(left), _ASKED_TOGETHER):
            yield from self._lost(left[at : at + _ASKED_TOGETHER], why)

    def _last_words(self) -> str:
        """What the pod says for whose sake the Job failed."""
        for pods, _ in self.cluster.pages(PODS, f"batch.kubernetes.io/job-name={self.name}", "status.phase=Failed"):
            if said := next(filter(None, map(last_words, pods)), ""):
                return said
        return ""

    # what holds it up

    def _look(self) -> None:
        """Now and then: does it wait for quota, can its image be had?

        Raises:
            ServiceError: it has waited too long.
        """
        now = time.monotonic()
        status = self.job.get("status", {})
        suspended = bool(self.job["spec"].get("suspend"))
        if not suspended:
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = now
        if now - self._looked_at < self.look_s:
            return
        self._looked_at = now
        if suspended:
            self._wait_for_quota(now)
        elif not status.get("ready") and status.get("active"):
            self._wait_for_image(now)

    def _wait_for_quota(self, now: float) -> None:
        assert self._waiting_since is not None
        why = ""
        for workload in self.cluster.list(WORKLOADS, f"kueue.x-k8s.io/job-uid={self.uid}"):
            told = conditions(workload).get("QuotaReserved", {})
            why = told.get("message", "") if told.get("status") == "False" else why
        queue = f"queue {self.settings.queue}"
        self._tell(f"Job {self.name} waits in {queue}{': ' + why if why else ''}")
        if now - self._waiting_since > self.settings.quota_wait_s:
            raise ServiceError(
                f"Job {self.name} was not let run within {self.settings.quota_wait_s:g} s by {queue}: "
                f"{why or 'it said nothing; is Kueue running, and is there such a queue?'}"
            )

    def _wait_for_image(self, now: float) -> None:
        labels = f"batch.kubernetes.io/job-name={self.name}"
        pods, _ = next(self.cluster.pages(PODS, labels, "status.phase=Pending"))
        fault = next(filter(None, map(image_fault, pods)), "")
        if not fault:
            self._no_image_since = None
            return
        self._no_image_since = self._no_image_since or now
        self._tell(f"Job {self.name}: {fault}")
        if now - self._no_image_since > self.settings.image_wait_s:
            raise ServiceError(
                f"pods of Job {self.name} do not start: {fault}; check the image in SVDFLOW_FANOUT, and the pull secret"
            )

    def _tell(self, line: str) -> None:
        if line != self._told:
            self._told = line
            print(f"svdflow: {line}", file=sys.stderr, flush=True)


def ended(job: Object) -> bool:
    """Whether a Job is at its end: targets come earlier, only these two are final."""
    return any(conditions(job).get(kind, {}).get("status") == "True" for kind in ("Complete", "Failed"))


def indexes(told: str | None, below: int) -> Iterator[int]:
    """The indexes that a Job's status names, as ``0-2,4,5``.

    Raises:
        ServiceError: it names none, or one that the Job does not have.
    """
    for part in filter(None, (told or "").split(",")):
        found = _RANGE.fullmatch(part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, -1)
        if not 0 <= first <= last < below:
            raise ServiceError(f"a Job of {below} indexes speaks of index {part!r}")
        yield from range(first, last + 1)
