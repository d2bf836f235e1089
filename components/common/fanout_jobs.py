"""Fan-out over a cluster: an Executor whose units are worked on by the pods of one Indexed Job.

The step writes the units into the data root, creates one Job, follows it through one watch and reads the outcomes of
each index as it completes. Objects in the API, and what the step holds in memory, do not grow with the number of
indexes, but for some ten bytes of each unit.

The Job's name derives from the inputs. A step that was restarted, or another run with the same inputs, finds the Job,
becomes one of its owners and takes what it has done; the last owner to leave before its end takes it along. Units that
a Job lost with its pods come back as failed outcomes with the reason; above a share of pods the fan-out fails.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .cluster.api import Cluster, connect
from .cluster.errors import AlreadyThere, ClusterError, NotThere
from .cluster.kinds import JOBS, MANAGED_LABEL, MANAGER, PODS, Object
from .cluster.names import job_name
from .cluster.owners import Workflow, adopt, is_stopped, owners, release, this_workflow
from .errors import ConfigError, ServiceError, StorageError
from .fanout import Limits, Outcome
from .fanout_files import remove_files, resting
from .fanout_follow import FollowedJob, JobGone, ended
from .fanout_manifest import PLAN_NOTE, FanoutSettings, files_of, indexed_job
from .fanout_plan import ID_BYTES, Plan, read_plan, unit_ids, write_plan
from .identity import identity
from .storage import DataRoot

_LOOK_S = 15.0  # between looks at what holds a Job up
_MOST_LOST = 5  # Jobs that somebody else deleted
_TERMINATED = 143  # exit status of a process that SIGTERM ended
_STOP_S = 15.0  # of the half minute that a pod has to end


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
            raise ConfigError("SVDFLOW_FANOUT is not set; {} takes all defaults")
        self.settings = chosen
        self._cluster = cluster or (lambda: connect(chosen.namespace, chosen.patience_s))
        self._told_to_end = False
        self._inputs = key
        self._key = ""

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
            if self.settings.image is None:
                self.settings = self.settings.model_copy(update={"image": _own_image(cluster)})
            pods = self.settings.model_dump(mode="json", include={"image", "cpu", "memory", "gpus", "scratch"})
            self._key = identity(what=self.what, key=self._inputs, pods=pods, root=self.root.location)
            attempt = lost = 0
            while missing.count:
                attempt += 1
                begun = self._begin(cluster, me, attempt, function, units, missing, limits)
                if begun is None:
                    continue
                job, plan, places = begun
                following = FollowedJob(cluster, job, plan, self.root, self.settings, self.look_s)
                try:
                    with self._when_told_to_end(me, following, plan):
                        for place, value, error, seconds in following.outcomes():
                            at = places[place]
                            if at >= 0 and missing.take(at):
                                yield Outcome(units[at], value, error, seconds)
                except JobGone as gone:
                    lost += 1
                    if lost > _MOST_LOST:
                        raise ServiceError(f"{gone}; that was the {lost}th time") from None
                    if me is not None and is_stopped(cluster, me):  # who stops a run deletes its jobs
                        remove_files(self.root, plan.name)
                        raise ServiceError(f"{gone}: the run was stopped") from None
                    print(f"svdflow: {gone}; what is missing is begun anew", file=sys.stderr, flush=True)
                    continue
                except BaseException:  # also when the caller stops asking
                    self._leave(cluster, me, following, plan)
                    raise
                self._leave(cluster, me, following, plan)
            self._tidy_up(cluster)

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
        name = job_name(self.what, self._key, attempt)
        written: tuple[Plan, bytes] | None = None
        ours = missing.places()
        while True:
            try:
                job = cluster.get(JOBS, name)
            except NotThere:
                written = written or self._write(name, function, units, ours, limits)
                owner = me.reference() if me else None
                wanted = indexed_job(self.settings, written[0], name, self._key, attempt, self.root.location, owner)
                try:
                    return cluster.create(JOBS, wanted), written[0], ours
                except AlreadyThere:
                    continue
            plan = self._plan_of(job)
            if plan is None or "deletionTimestamp" in job["metadata"]:
                return None
            if written is None or written[0] != plan:
                wanted_ids = written[1] if written else unit_ids(function, _Chosen(units, ours))
                places = _places(self.root.read(plan.uri("ids")), wanted_ids, ours)
                if written is not None:  # another run was faster, with more or fewer units
                    remove_files(self.root, written[0].name)
            else:
                places = ours
            if all(place < 0 for place in places):
                return None
            try:
                return (adopt(cluster, JOBS, job, me) if me else job), plan, places
            except NotThere:
                written = None
                continue

    def _write(
        self, name: str, function: Callable[[Any], Any], units: Sequence[Any], ours: array[int], limits: Limits
    ) -> tuple[Plan, bytes]:
        chosen = units if len(ours) == len(units) else _Chosen(units, ours)
        # a pod's memory is shared among its own processes, whatever this machine has
        limits = Limits(limits.timeout_s, None, limits.tries)
        pods = self.settings
        keep_s = pods.quota_wait_s + pods.deadline_s
        return write_plan(self.root, name, function, self.together, chosen, pods.units, pods.cpu, limits, keep_s)

    def _plan_of(self, job: Object) -> Plan | None:
        meta = job["metadata"]
        try:
            return read_plan(self.root, meta.get("annotations", {}).get(PLAN_NOTE, ""))
        except ConfigError:
            if ended(job):
                return None
            raise

    @contextmanager
    def _when_told_to_end(self, me: Workflow | None, following: FollowedJob, plan: Plan) -> Iterator[None]:
        """SIGTERM takes the Job along if the run was stopped; if only this pod has to go, a restarted one finds it."""
        mine = threading.current_thread() is threading.main_thread()
        if not mine or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            yield
            return

        def told(*_: object) -> None:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # this is being seen to
            try:
                if me is not None:
                    with self._cluster() as fresh:  # the other connection may be in the middle of something
                        fresh.patience_s = min(fresh.patience_s, _STOP_S)
                        if is_stopped(fresh, me):
                            self._leave(fresh, me, following, plan)
            except (ClusterError, ConfigError, StorageError) as error:  # then it may be an eviction: the Job goes on
                print(f"svdflow: told to end, and could not look at the run: {error}", file=sys.stderr, flush=True)
            self._told_to_end = True
            raise SystemExit(_TERMINATED)

        signal.signal(signal.SIGTERM, told)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _leave(self, cluster: Cluster, me: Workflow | None, following: FollowedJob, plan: Plan) -> None:
        """Take the files along unless another run still reads them; and the Job, if it has not ended."""
        if self._told_to_end:
            return  # done there
        name = following.job["metadata"]["name"]
        try:
            if not self._kept_by_others(cluster, me, name):
                remove_files(self.root, plan.name)  # a Job that has ended stays for its time to live, its logs with it
        except (ClusterError, StorageError) as error:  # outcomes, or why there are none, are not lost to this
            print(f"svdflow: Job {name} or its files were left there: {error}", file=sys.stderr, flush=True)

    def _kept_by_others(self, cluster: Cluster, me: Workflow | None, name: str) -> bool:
        try:
            job = cluster.get(JOBS, name)
        except NotThere:
            return False
        others = [owner for owner in owners(job) if me is None or owner["uid"] != me.uid]
        return bool(others or not ended(job)) and release(cluster, JOBS, job, me) == "kept"

    def _tidy_up(self, cluster: Cluster) -> None:
        """Remove what fan-outs that nobody waits for have left behind; it fails no step."""
        try:
            names = resting(self.root, time.time())
            jobs = cluster.list(JOBS, labels=f"{MANAGED_LABEL}={MANAGER}") if names else []
            for name in set(names).difference(name for _, name in files_of(jobs)):
                remove_files(self.root, name)
                print(f"svdflow: removed the files of {name}, which nobody waits for", file=sys.stderr, flush=True)
        except (ClusterError, StorageError) as error:
            print(f"svdflow: files of earlier fan-outs were not looked at: {error}", file=sys.stderr, flush=True)


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


def _own_image(cluster: Cluster) -> str:
    """The image of the step in whose pod this runs."""
    try:
        pod = cluster.get(PODS, os.environ.get("KFP_POD_NAME") or socket.gethostname())
    except NotThere:
        raise ConfigError("SVDFLOW_FANOUT: outside of a step's pod it has to name the image") from None
    containers = pod["spec"]["containers"]
    return next((c for c in containers if c["name"] == "main"), containers[0])["image"]  # Argo's name for the step


def _places(known: bytes, wanted: bytes, ours: array[int]) -> array[int]:
    """Where the units of a plan stand among the caller's; -1 for those that it does not ask for.

    Args:
        known: ids of the plan's units.
        wanted: ids of the units in ``ours``.
        ours: places among the caller's units.
    """
    at = {wanted[i : i + ID_BYTES]: ours[i // ID_BYTES] for i in range(0, len(wanted), ID_BYTES)}
    return array("q", (at.get(known[i : i + ID_BYTES], -1) for i in range(0, len(known), ID_BYTES)))
