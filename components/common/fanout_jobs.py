"""Fan-out over a cluster: an Executor whose units are worked on by the pods of one Indexed Job.

The step writes the units into the data root, creates one Job, follows it through one watch and reads the outcomes of
each index as it completes. Objects in the API, and what the step holds in memory, do not grow with the number of
indexes, but for some ten bytes of each unit.

The Job's name derives from the inputs. A step that was restarted, or another run with the same inputs, finds the Job,
becomes one of its owners and takes what it has done; the last owner to leave before its end takes it along. Units that
a Job lost with its pods come back as failed outcomes with the reason; above a share of pods the fan-out fails.
"""

from __future__ import annotations

import re
import sys
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .cluster.api import Cluster, connect
from .cluster.errors import AlreadyThere, NotThere
from .cluster.kinds import JOBS, PODS, WORKLOADS, Object, conditions
from .cluster.names import job_name
from .cluster.owners import Workflow, adopt, owners, release, this_workflow
from .cluster.pods import INDEX_LABEL
from .cluster.watch import Watches
from .errors import BadInputError, ConfigError, ServiceError, StorageError
from .fanout import Limits, Outcome
from .fanout_manifest import PLAN_NOTE, FanoutSettings, indexed_job
from .fanout_plan import ID_BYTES, Part, Plan, read_part, read_plan, remove_plan, write_plan
from .fanout_pods import image_fault, last_words, why_failed
from .identity import identity
from .storage import DataRoot

_LOOK_S = 15.0  # between looks at what holds a Job up
_MOST_LOST = 5  # Jobs that somebody else deleted
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_ASKED_TOGETHER = 100  # failed indexes in one list of pods: the selector is part of the URL


class _Gone(Exception):
    """The Job, or its plan, was removed by somebody else."""


class IndexedJobs:
    """An Executor: pods of an Indexed Job, each with a part of the units.

    Args:
        root: takes units and outcomes; pods reach it as they do the rest of the data.
        what: kind of work, for names: "split".
        key: identity of all inputs, the same whenever the step is run on them, however much of it is done.
        settings: of the pods; what the environment says by default.
        together: works on a pod's units in place of processes with one function; ``in_pods`` as the function itself.
        cluster: makes a connection.
        look_s: how often to look at what holds the Job up.
    """

    def __init__(
        self,
        root: DataRoot,
        what: str,
        key: str,
        settings: FanoutSettings | None = None,
        together: Callable[..., Any] | None = None,
        cluster: Callable[[], Cluster] | None = None,
        look_s: float = _LOOK_S,
    ) -> None:
        self.root, self.what, self.together, self.look_s = root, what, together, look_s
        chosen = settings or FanoutSettings.from_environment()
        if chosen is None:
            raise ConfigError("SVDFLOW_FANOUT is not set: it has to name the image of the pods at least")
        self.settings = chosen
        self._cluster = cluster or (lambda: connect(chosen.namespace, chosen.patience_s))
        pods = self.settings.model_dump(mode="json", include={"image", "cpu", "memory", "gpus", "scratch"})
        self.key = identity(what=what, key=key, pods=pods, root=root.location)

    def run(
        self, function: Callable[[Any], Any], units: Sequence[Any], workers: int | None, limits: Limits
    ) -> Iterator[Outcome]:
        """See ``Executor``; ``workers`` is of this machine and not of pods, which have as many as processors.

        Raises:
            ConfigError: a setting is missing, or pods say that they cannot do this work.
            ServiceError: the cluster does not answer or refuses, no quota was granted in time, the image cannot be
                had, or too many pods failed. What was done is kept.
            StorageError: the data root cannot be read or written, here or in pods.
        """
        missing = _Missing(len(units))
        with self._cluster() as cluster:
            me = this_workflow(cluster)
            attempt = lost = 0
            while missing.count:
                attempt += 1
                begun = self._begin(cluster, me, attempt, function, units, missing, limits)
                if begun is None:
                    continue
                job, plan, places = begun
                following = _Following(self, cluster, job, plan)
                try:
                    for place, value, error, seconds in following.outcomes():
                        at = places[place]
                        if at >= 0 and missing.take(at):
                            yield Outcome(units[at], value, error, seconds)
                except _Gone as gone:
                    lost += 1
                    if lost > _MOST_LOST:
                        raise ServiceError(f"{gone}; that was the {lost}th time") from None
                    print(f"svdflow: {gone}; what is missing is begun anew", file=sys.stderr, flush=True)
                    continue
                except BaseException:  # also when the caller stops asking
                    self._leave(cluster, me, following, plan)
                    raise
                self._leave(cluster, me, following, plan)

    def _begin(
        self,
        cluster: Cluster,
        me: Workflow | None,
        attempt: int,
        function: Callable[[Any], Any],
        units: Sequence[Any],
        missing: _Missing,
        limits: Limits,
    ) -> tuple[Object, Plan, array[int]] | None:
        """The attempt's Job, found or created, its plan, and where its units stand among ours (-1: nowhere).

        None when the attempt is spent: its outcomes were taken, or it has none of what is missing.
        """
        name = job_name(self.what, self.key, attempt)
        written: tuple[Plan, bytes] | None = None
        ours = missing.places()
        while True:
            try:
                job = cluster.get(JOBS, name)
            except NotThere:
                written = written or self._write(name, function, units, ours, limits)
                owner = me.reference() if me else None
                wanted = indexed_job(self.settings, written[0], name, self.key, attempt, self.root.location, owner)
                try:
                    return cluster.create(JOBS, wanted), written[0], ours
                except AlreadyThere:
                    continue
            plan = self._plan_of(job)
            if plan is None or "deletionTimestamp" in job["metadata"]:
                return None
            if written is None or written[0] != plan:
                known = self.root.read(plan.uri("ids"))
                written = written or self._write(name, function, units, ours, limits)
                places = _places(known, written[1], ours)
            else:
                places = ours
            if all(place < 0 for place in places):
                return None
            try:
                return (adopt(cluster, JOBS, job, me) if me else job), plan, places
            except NotThere:
                continue

    def _write(
        self, name: str, function: Callable[[Any], Any], units: Sequence[Any], ours: array[int], limits: Limits
    ) -> tuple[Plan, bytes]:
        chosen = units if len(ours) == len(units) else _Chosen(units, ours)
        # a pod's memory is shared among its own processes, whatever this machine has
        limits = Limits(limits.timeout_s, None, limits.tries)
        return write_plan(
            self.root, name, function, self.together, chosen, self.settings.units, self.settings.cpu, limits
        )

    def _plan_of(self, job: Object) -> Plan | None:
        meta = job["metadata"]
        try:
            return read_plan(self.root, meta.get("annotations", {}).get(PLAN_NOTE, ""))
        except ConfigError:
            if ended(job):
                return None
            raise

    def _leave(self, cluster: Cluster, me: Workflow | None, following: _Following, plan: Plan) -> None:
        """Take the files along unless another run still reads them; and the Job, if it has not ended."""
        try:
            job = cluster.get(JOBS, following.job["metadata"]["name"])
        except NotThere:
            remove_plan(self.root, plan)
            return
        others = [owner for owner in owners(job) if me is None or owner["uid"] != me.uid]
        if others or not ended(job):
            if release(cluster, JOBS, job, me) == "kept":
                return
        remove_plan(self.root, plan)  # a Job that has ended stays for its time to live, its logs with it


class _Following:
    """One Job, from now to its end."""

    def __init__(self, parent: IndexedJobs, cluster: Cluster, job: Object, plan: Plan) -> None:
        self.root, self.settings, self.look_s = parent.root, parent.settings, parent.look_s
        self.cluster, self.job, self.plan = cluster, job, plan
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
            _Gone: the Job or its files were removed. ConfigError, ServiceError, StorageError: see ``IndexedJobs.run``.
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

    def _gone(self) -> _Gone:
        return _Gone(f"Job {self.name} was deleted by somebody else")

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
            raise _Gone(f"the files of Job {self.name} were removed by another run")
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


class _Missing:
    """Which units have no outcome yet."""

    def __init__(self, units: int) -> None:
        self._there, self.count = bytearray(b"\1") * units, units

    def take(self, at: int) -> bool:
        """Whether it was missing; from now on it is not."""
        was = bool(self._there[at])
        self._there[at] = 0
        self.count -= was
        return was

    def places(self) -> array[int]:
        """All that are missing, in order."""
        return array("q", (at for at, there in enumerate(self._there) if there))


class _Chosen(Sequence[Any]):
    """Some of a sequence's items."""

    def __init__(self, items: Sequence[Any], places: array[int]) -> None:
        self._items, self._places = items, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, at: Any) -> Any:
        return self._items[self._places[at]]


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


def _places(known: bytes, wanted: bytes, ours: array[int]) -> array[int]:
    """Where the units of a plan stand among the caller's; -1 for those that it does not ask for.

    Args:
        known: ids of the plan's units.
        wanted: ids of the units in ``ours``.
        ours: places among the caller's units.
    """
    at = {wanted[i : i + ID_BYTES]: ours[i // ID_BYTES] for i in range(0, len(wanted), ID_BYTES)}
    return array("q", (at.get(known[i : i + ID_BYTES], -1) for i in range(0, len(known), ID_BYTES)))
