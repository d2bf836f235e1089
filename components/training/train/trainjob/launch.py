"""Training as a TrainJob: found or created under a name derived from its inputs, watched to its end, shared by runs.

Whatever happens to the step, its pod or the connection, the job goes on; another step of equal inputs adopts it. Only
whoever is its last owner ends it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ....common.cluster.api import Cluster, connect
from ....common.cluster.errors import AlreadyThere, Changed, ClusterError, NotThere
from ....common.cluster.kinds import EVENTS, PODS, TRAINJOBS, WORKLOADS, Object, holds
from ....common.cluster.names import ATTEMPT_LABEL, KEY_LABEL, short_key
from ....common.cluster.owners import Workflow, adopt, is_stopped, owners, release, this_workflow
from ....common.cluster.watch import Watches
from ....common.storage import write_atomic
from ..endings import TrainingFailed, TrainingInterrupted
from ..heartbeat import Watch
from ..job import Job
from ..signals import on_signals
from .budget import Budget
from .inputs import shared
from .log import LogFollower
from .manifest import SHAPE, Shape, attempt_name, shape_of, train_job
from .settings import TrainJobSettings
from .state import GO_ON, Cause, Ending, Known, Phase

_TICK_S = 1.0
_RESULT_S = 60.0  # a shared volume may show a file to others a while after it was written
_LOG_S = 10.0
_CAUSE_S, _QUIET_S = 5.0, 0.5
_STOP_S = 15.0  # of the half minute that a pod has to end
_LATER: tuple[Cause, ...] = ("eviction", "node_lost", "interrupted", "deadline")  # no fault: running it again helps
_JOBSET_LABEL = "jobset.sigs.k8s.io/jobset-name"


def launch(job: Job, folder: Path, key: str, settings: TrainJobSettings) -> dict[str, Any]:
    """Run a training job on the cluster; see ``launcher.launch``."""
    with connect(settings.namespace, settings.patience_s) as cluster:
        return run(job, folder, key, settings, cluster)


def run(
    job: Job,
    folder: Path,
    key: str,
    settings: TrainJobSettings,
    cluster: Cluster,
    tell: Callable[[str], None] = lambda line: print(line, flush=True),
    tick_s: float = _TICK_S,
) -> dict[str, Any]:
    """See a training job through on a cluster that is connected to.

    Args:
        job: what is to be trained.
        folder: of the run, on the work volume.
        key: the run's identity.
        settings: where it runs.
        cluster: the connection.
        tell: takes a line about what goes on, and node 0's log.
        tick_s: how often clocks are looked at while nothing happens.

    Returns:
        What rank 0 reports.

    Raises:
        ConfigError: it cannot be run so.
        TrainingInterrupted: evicted, out of time, or the step was told to end.
        TrainingFailed: any other end; the line says which.
        ClusterError: the API refused something, or was away for too long.
    """
    if (result := finished(folder)) is not None:
        return result
    shape = shape_of(job.stage, job.settings, settings)
    job = shared(job, folder, settings.work)
    workflow = this_workflow(cluster)
    if workflow is None:
        tell("this is no step of a run: nobody owns the TrainJob, so it stays until it ends or is deleted")
    told: list[str] = []
    checkpoint = lambda: tell("a checkpoint cannot be asked for on a cluster; they are written as the settings say")  # noqa: E731
    with on_signals(told, checkpoint):
        budget = Budget(folder, settings.gpu_hours)
        found = take(job, folder, key, shape, settings, cluster, workflow, budget, told, tell)
        return _see_through(found, folder, job, shape, settings, cluster, workflow, budget, told, tell, tick_s)


def finished(folder: Path) -> dict[str, Any] | None:
    """The result that an earlier attempt has left; None while there is none."""
    for path in sorted((folder / "attempts").glob("*/result.json")):
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError):
            continue
    return None


def take(
    job: Job,
    folder: Path,
    key: str,
    shape: Shape,
    settings: TrainJobSettings,
    cluster: Cluster,
    workflow: Workflow | None,
    budget: Budget,
    told: list[str],
    tell: Callable[[str], None],
) -> Object:
    """The run's TrainJob: one that runs or is complete is adopted, after one that failed a new attempt is made."""
    while True:
        jobs = cluster.list(TRAINJOBS, labels=f"{KEY_LABEL}={short_key(key)}")
        newest = max(jobs, key=_attempt, default=None)
        attempt = _attempt(newest) + 1 if newest else 1
        if newest and "deletionTimestamp" not in newest["metadata"]:
            name, theirs = newest["metadata"]["name"], newest["metadata"].get("annotations", {}).get(SHAPE)
            if (
                holds(newest, "Complete") and (folder / "attempts" / name).is_dir()
            ):  # else what it made has been removed
                tell(f"TrainJob {name} has trained this already")
                return newest
            over = holds(newest, "Complete") or holds(newest, "Failed")
            others = [owner for owner in owners(newest) if workflow is None or owner["uid"] != workflow.uid]
            if not over and (theirs == str(shape) or others):
                if theirs != str(shape):
                    tell(f"TrainJob {name} trains this as {theirs}, not as {shape}: it is another run's, and kept so")
                try:
                    found = adopt(cluster, TRAINJOBS, newest, workflow) if workflow else newest
                except NotThere:
                    continue
                if "deletionTimestamp" not in found["metadata"]:
                    tell(f"TrainJob {name} trains this already: adopted")
                    return found
                continue
            if not over:
                tell(f"TrainJob {name} trains this as {theirs}: it is ended, and begun anew as {shape}")
                try:
                    cluster.delete(TRAINJOBS, newest, exactly=True)
                except Changed:  # another run has adopted it, or it has ended
                    continue
        _wait_for_pods(cluster, job.stage, key, attempt, told, tell)
        made = _create(job, folder, key, attempt, shape, settings, cluster, workflow, budget)
        if made is not None:
            tell(f"TrainJob {made['metadata']['name']} created: {shape} processes, queue {settings.queue}")
            return made


def _create(
    job: Job,
    folder: Path,
    key: str,
    attempt: int,
    shape: Shape,
    settings: TrainJobSettings,
    cluster: Cluster,
    workflow: Workflow | None,
    budget: Budget,
) -> Object | None:
    """Create an attempt; None where another step was faster."""
    place = folder / "attempts" / attempt_name(job.stage, key, attempt)
    place.mkdir(parents=True, exist_ok=True)
    content = job.to_json()
    job_file = place / f"job-{hashlib.sha256(content).hexdigest()[:12]}.json"  # no two steps write the same file anew
    write_atomic(job_file, content)
    deadline_s = min(job.settings.timeout_s, budget.seconds_left(shape.all_gpus))
    manifest = train_job(job.stage, key, attempt, shape, job_file, deadline_s, settings, workflow)
    try:
        return cluster.create(TRAINJOBS, manifest)
    except AlreadyThere:
        cluster.pause(0.2)  # or the one of that name is still being deleted
        return None


def _attempt(job: Object) -> int:
    return int(job["metadata"].get("labels", {}).get(ATTEMPT_LABEL, 1))


def _wait_for_pods(
    cluster: Cluster, stage: str, key: str, attempt: int, told: list[str], tell: Callable[[str], None]
) -> None:
    """Two attempts must not write checkpoints at once: those of earlier ones that still end are waited for."""
    names = ",".join(attempt_name(stage, key, number) for number in range(1, attempt + 1))
    said = False
    while True:
        pods = cluster.list(PODS, labels=f"{_JOBSET_LABEL} in ({names})")
        ending = [p["metadata"]["name"] for p in pods if p["status"].get("phase") in ("Pending", "Running")]
        if not ending or cluster.closed:
            return
        if told:
            raise TrainingInterrupted(f"the step was told to end ({told[0]}) before it had started training")
        if not said:
            tell(f"waiting for pods of an earlier attempt to end: {', '.join(ending[:4])}")
            said = True
        cluster.pause(1.0)


def _see_through(
    found: Object,
    folder: Path,
    job: Job,
    shape: Shape,
    settings: TrainJobSettings,
    cluster: Cluster,
    workflow: Workflow | None,
    budget: Budget,
    told: list[str],
    tell: Callable[[str], None],
    tick_s: float,
) -> dict[str, Any]:
    """Watch a TrainJob until it ends."""
    meta = found["metadata"]
    name, place = meta["name"], folder / "attempts" / meta["name"]
    place.mkdir(parents=True, exist_ok=True)
    shape = Shape(int(found["spec"]["trainer"].get("numNodes", 1)), shape.processes, _gpus(found, settings))
    known = Known(name, meta["uid"], shape.nodes, found)
    watched = (
        (TRAINJOBS, "", f"metadata.name={name}"),
        (PODS, f"{_JOBSET_LABEL}={name}", ""),
        (WORKLOADS, f"kueue.x-k8s.io/job-uid={meta['uid']}", ""),
    )
    log = LogFollower(cluster, place / "train.log", "node", tell)
    teller = _Teller(name, tell)
    since: tuple[Phase, float] = ("queued", time.monotonic())
    hang: Watch | None = None
    reading = "launcher" if settings.starter == "mpirun" else "node"
    ending: Ending | None = None
    try:
        with Watches(cluster, *watched) as watches:
            while ending is None and known.phase not in ("complete", "failed", "deleted"):
                event = watches.next(tick_s)
                if event is not None:
                    known.apply(event)
                phase = known.phase
                if phase != since[0]:
                    since = (phase, time.monotonic())
                teller.look(known)
                _follow_log(log, known, reading)
                if phase == "running":
                    budget.count(name, shape.all_gpus)
                    hang = hang or Watch(place, shape.nodes * shape.processes, job.settings.hang_timeout_s)
                elif phase != "running":
                    budget.pause(name)
                    hang = None
                if told:
                    raise _left(told[0], found, cluster, workflow)
                ending = _overdue(cluster, known, since, settings, budget, shape, hang)
            if known.phase == "failed":
                _hear_out(watches, known, log, reading)
    finally:
        log.close(_LOG_S if known.phase in ("complete", "failed") else 0.0)
        budget.pause(name)
    if known.phase == "complete" or (known.phase == "deleted" and ending is None and finished(folder)):
        result = _await_result(folder, place)
        if settings.keep != "always":
            _release(cluster, name, workflow)
        return result
    if ending is not None:
        where = _release(cluster, name, workflow) if ending.cause != "hanging" else _end(cluster, found)
        line = f"TrainJob {name}: {ending.line}; it was {where}"
    else:
        ending = known.ending(place, place / "train.log")
        line = f"TrainJob {name}: {ending.line}"
        if settings.keep == "never":
            _release(cluster, name, workflow)
    raise (TrainingInterrupted if ending.cause in _LATER else TrainingFailed)(line)


def _overdue(
    cluster: Cluster,
    known: Known,
    since: tuple[Phase, float],
    settings: TrainJobSettings,
    budget: Budget,
    shape: Shape,
    hang: Watch | None,
) -> Ending | None:
    """What is not borne any longer, while the job itself has not ended."""
    phase, waited_s = since[0], time.monotonic() - since[1]
    if phase == "queued" and waited_s > settings.quota_wait_s:
        return Ending("quota", f"queue {settings.queue} has not admitted it for {settings.quota_wait_s:g} s "
                               f"({known.waiting_for})")  # fmt: skip
    if phase == "starting" and waited_s > settings.start_wait_s:
        reason = known.not_starting()
        said = "" if known.pods else _warning(cluster, known.name)
        return Ending(reason.cause, f"{reason.line}{said}; waited for {settings.start_wait_s:g} s")
    if phase == "running" and budget.seconds_left(shape.all_gpus) <= 0:
        return Ending("budget", f"the budget of {settings.gpu_hours:g} GPU-hours is used up; raise gpu_hours; {GO_ON}")
    if phase == "running" and hang and (line := hang.hanging()):
        return Ending("hanging", f"{line}; {GO_ON}")
    return None


def _warning(cluster: Cluster, name: str) -> str:
    """The last warning that a controller has given about the TrainJob, in brackets."""
    events = cluster.list(EVENTS, fields=f"involvedObject.name={name},type=Warning")
    newest = max(events, key=lambda event: int(event["metadata"].get("resourceVersion", 0)), default=None)
    return f" ({newest.get('reason', '')}: {newest.get('message', '')[:500]})" if newest else ""


def _hear_out(watches: Watches, known: Known, log: LogFollower, reading: str) -> None:
    """A failure may be told before its cause, which only the pods know: what is on its way is waited for."""
    deadline = time.monotonic() + _CAUSE_S
    while time.monotonic() < deadline:
        event = watches.next(_QUIET_S)
        if event is not None:
            known.apply(event)
            _follow_log(log, known, reading)
        elif "Pod" in known.listed:
            return


def _follow_log(log: LogFollower, known: Known, job: str) -> None:
    for pod in known.pods.values():
        if pod.index or pod.labels.get("jobset.sigs.k8s.io/replicatedjob-name", "node") != job:
            continue
        if pod.phase in ("Running", "Succeeded", "Failed"):
            log.follow(pod.name)
        if pod.phase in ("Succeeded", "Failed") or pod.deleted:
            log.ended(pod.name)


def _left(signal: str, found: Object, cluster: Cluster, workflow: Workflow | None) -> TrainingInterrupted:
    """The step was told to end: was its run stopped, or only its pod evicted?"""
    name = found["metadata"]["name"]
    cluster.patience_s = _STOP_S
    try:
        if workflow and is_stopped(cluster, workflow):
            where = _release(cluster, name, workflow)
            return TrainingInterrupted(f"the run was stopped ({signal}): TrainJob {name} was {where}; {GO_ON}")
    except ClusterError as error:
        return TrainingInterrupted(f"the step was told to end ({signal}), and could not look at its run: {error}")
    return TrainingInterrupted(
        f"the step was told to end ({signal}); TrainJob {name} goes on: run the step again and it is adopted"
    )


def _release(cluster: Cluster, name: str, workflow: Workflow | None) -> str:
    try:
        outcome = release(cluster, TRAINJOBS, cluster.get(TRAINJOBS, name), workflow)
    except NotThere:
        outcome = "gone"
    return {"deleted": "deleted", "kept": "left to another run", "gone": "gone already"}[outcome]


def _end(cluster: Cluster, found: Object) -> str:
    cluster.delete(TRAINJOBS, found)
    return "ended"


def _gpus(found: Object, settings: TrainJobSettings) -> int:
    limits = found["spec"]["trainer"].get("resourcesPerNode", {}).get("limits", {})
    return int(limits.get(settings.gpu_resource, 0)) if settings.gpu_resource else 0


def _await_result(folder: Path, place: Path) -> dict[str, Any]:
    deadline = time.monotonic() + _RESULT_S
    while (result := finished(folder)) is None:
        if time.monotonic() > deadline or not place.is_dir():
            raise TrainingFailed(
                f"TrainJob {place.name} is complete, but left no result in {place}: "
                "do the step and the training pods mount the same volume?"
            )
        time.sleep(0.2)
    return result


class _Teller:
    """Says once what has changed, for the step's log."""

    def __init__(self, name: str, tell: Callable[[str], None]) -> None:
        self.name, self.tell, self._said = name, tell, ""

    def look(self, known: Known) -> None:
        if known.phase == "queued":
            line = f"waits for its queue ({known.waiting_for})" if known.workload else "waits for its queue"
        elif known.phase == "starting":
            reason = known.not_starting() if known.pods else None
            line = f"admitted; {reason.line}" if reason and reason.cause != "not_started" else "admitted; starting"
        elif known.phase == "running":
            line = "runs on " + ", ".join(sorted({pod.node for pod in known.started}))
        else:
            return
        if line != self._said:
            self._said = line
            self.tell(f"TrainJob {self.name} {line}")
