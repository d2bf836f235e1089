"""Training as a TrainJob: found or created under a name derived from its inputs, watched to its end, shared by runs.

Whatever happens to the step, its pod or the connection, the job goes on; another step of equal inputs adopts it. Only
whoever is its last owner ends it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ....common.cluster.api import Cluster, connect
from ....common.cluster.errors import ClusterError, NotThere
from ....common.cluster.kinds import EVENTS, PODS, TRAINJOBS, WORKLOADS, Object
from ....common.cluster.owners import is_stopped, release, this_workflow
from ....common.cluster.watch import Watches
from ..endings import TrainingFailed, TrainingInterrupted
from ..heartbeat import Watch
from ..job import Job
from ..signals import on_signals
from .attempts import JOBSET_LABEL, Run, finished, take
from .budget import Budget
from .inputs import shared
from .log import LogFollower
from .manifest import Shape, leader, shape_of
from .settings import TrainJobSettings
from .state import GO_ON, JOB_LABEL, Cause, Ending, Known, Phase

_TICK_S = 1.0
_RESULT_S = 60.0  # a shared volume may show a file to others a while after it was written
_LOG_S = 10.0
_CAUSE_S, _QUIET_S = 5.0, 0.5
_STOP_S = 15.0  # of the half minute that a pod has to end
_STAYS = "left there, for it could not be deleted"
_LATER: tuple[Cause, ...] = ("eviction", "node_lost", "interrupted", "deadline")  # no fault: running it again helps


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
        tick_s: how often clocks are looked at.

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
    budget = Budget(folder, settings.gpu_hours)
    step = Run(job, folder, key, shape, settings, cluster, workflow, budget, tell)

    def checkpoint() -> None:
        tell("a checkpoint cannot be asked for on a cluster; they are written as the settings say")

    with on_signals(step.told, checkpoint):
        return _see_through(step, take(step), tick_s)


def _see_through(run: Run, found: Object, tick_s: float) -> dict[str, Any]:
    """Watch a TrainJob until it ends."""
    name, settings = found["metadata"]["name"], run.settings
    place = run.place(name)
    place.mkdir(parents=True, exist_ok=True)
    known = Known(name, found["metadata"]["uid"], _shape(found, run).nodes, found)
    log = LogFollower(run.cluster, place / "train.log", "node", run.tell)
    ending: Ending | None = None
    try:
        ending = _watch(run, found, known, log, tick_s)
    finally:
        log.close(_LOG_S if known.phase in ("complete", "failed") else 0.0)
        run.budget.pause(name)
    if known.phase == "complete" or (known.phase == "deleted" and ending is None and finished(run.folder)):
        result = _await_result(run.folder, place)
        if settings.keep != "always" and (where := _release(run, name)).startswith(_STAYS):
            run.tell(f"TrainJob {name} was {where}")
        return result
    if ending is not None:
        where = _end(run, found) if ending.cause == "hanging" else _release(run, name)
        line = f"TrainJob {name}: {ending.line}; it was {where}"
    else:
        ending = known.ending(place, place / "train.log")
        line = f"TrainJob {name}: {ending.line}"
        if settings.keep == "never":
            _release(run, name)
    raise (TrainingInterrupted if ending.cause in _LATER else TrainingFailed)(line)


def _watch(run: Run, found: Object, known: Known, log: LogFollower, tick_s: float) -> Ending | None:
    """Take in what happens to a job until it has ended; an ending where it is this step that gives it up."""
    shape, place = _shape(found, run), run.place(known.name)
    teller, leading = _Teller(known.name, run.tell), leader(found)
    since: tuple[Phase, float] = (known.phase, time.monotonic())
    hang: Watch | None = None
    looked_at = 0.0
    adopted = known.name not in run.made
    watched = (
        (TRAINJOBS, "", f"metadata.name={known.name}"),
        (PODS, f"{JOBSET_LABEL}={known.name}", ""),
        (WORKLOADS, f"kueue.x-k8s.io/job-uid={known.uid}", ""),
    )
    with Watches(run.cluster, *watched) as watches:
        while known.phase not in ("complete", "failed", "deleted"):
            event = watches.next(tick_s)
            if event is not None:
                known.apply(event)
            phase, now = known.phase, time.monotonic()
            if phase != since[0]:
                since = (phase, now)
            teller.look(known)
            _follow_log(log, known, leading)
            if phase == "running":
                if adopted:
                    run.budget.catch_up(known.name, shape.all_gpus, known.running_since)
                    adopted = False
                run.budget.count(known.name, shape.all_gpus)
                hang = hang or Watch(place, shape.nodes * shape.processes, run.job.settings.hang_timeout_s)
            else:
                run.budget.pause(known.name)
                hang = None
            if run.told:
                raise _left(run, known.name)
            if now - looked_at >= tick_s:  # every process's sign of life is a file: not at every event
                looked_at = now
                if ending := _overdue(run, known, since[0], now - since[1], shape, hang):
                    return ending
        if known.phase == "failed":
            _hear_out(watches, known, log, leading)
    return None


def _overdue(run: Run, known: Known, phase: Phase, waited_s: float, shape: Shape, hang: Watch | None) -> Ending | None:
    """What is not borne any longer, while the job itself has not ended."""
    settings = run.settings
    if phase == "queued" and waited_s > settings.quota_wait_s:
        waited = f"for {settings.quota_wait_s:g} s ({known.waiting_for})"
        return Ending("quota", f"queue {settings.queue} has not admitted it {waited}")
    if phase == "starting" and waited_s > settings.start_wait_s:
        reason = known.not_starting()
        said = "" if known.pods else _warning(run.cluster, known.name)
        return Ending(reason.cause, f"{reason.line}{said}; waited for {settings.start_wait_s:g} s")
    if phase == "running" and run.budget.seconds_left(shape.all_gpus) <= 0:
        return Ending("budget", f"the budget of {settings.gpu_hours:g} GPU-hours is used up; raise gpu_hours; {GO_ON}")
    if phase == "running" and hang and (line := hang.hanging()):
        return Ending("hanging", f"{line}; {GO_ON}")
    return None


def _warning(cluster: Cluster, name: str) -> str:
    """The last warning that a controller has given about the TrainJob, in brackets."""
    events = cluster.list(EVENTS, fields=f"involvedObject.name={name},type=Warning")
    newest = max(events, key=lambda event: int(event["metadata"].get("resourceVersion", 0)), default=None)
    return f" ({newest.get('reason', '')}: {newest.get('message', '')[:500]})" if newest else ""


def _hear_out(watches: Watches, known: Known, log: LogFollower, leading: str) -> None:
    """A failure may be told before its cause, which only the pods know: what is on its way is waited for."""
    deadline = time.monotonic() + _CAUSE_S
    while time.monotonic() < deadline:
        event = watches.next(_QUIET_S)
        if event is not None:
            known.apply(event)
            _follow_log(log, known, leading)
        elif "Pod" in known.listed:
            return


def _follow_log(log: LogFollower, known: Known, leading: str) -> None:
    for pod in known.pods.values():
        if pod.index or pod.labels.get(JOB_LABEL, "node") != leading:
            continue
        if pod.phase in ("Running", "Succeeded", "Failed"):
            log.follow(pod.name)
        if pod.phase in ("Succeeded", "Failed") or pod.deleted:
            log.ended(pod.name)


def _left(run: Run, name: str) -> TrainingInterrupted:
    """The step was told to end: was its run stopped, or only its pod evicted?"""
    signal = run.told[0]
    run.cluster.patience_s = _STOP_S
    try:
        if run.workflow and is_stopped(run.cluster, run.workflow):
            where = _release(run, name)
            return TrainingInterrupted(f"the run was stopped ({signal}): TrainJob {name} was {where}; {GO_ON}")
    except ClusterError as error:
        return TrainingInterrupted(f"the step was told to end ({signal}), and could not look at its run: {error}")
    return TrainingInterrupted(
        f"the step was told to end ({signal}); TrainJob {name} goes on: run the step again and it is adopted"
    )


def _release(run: Run, name: str) -> str:
    """What became of it, in words: what the step has to tell of its end is not lost to trouble with this."""
    try:
        outcome = release(run.cluster, TRAINJOBS, run.cluster.get(TRAINJOBS, name), run.workflow)
    except NotThere:
        outcome = "gone"
    except ClusterError as error:
        return f"{_STAYS} ({error})"
    return {"deleted": "deleted", "kept": "left to another run", "gone": "gone already"}[outcome]


def _end(run: Run, found: Object) -> str:
    try:
        run.cluster.delete(TRAINJOBS, found)
    except ClusterError as error:
        return f"{_STAYS} ({error})"
    return "ended"


def _shape(found: Object, run: Run) -> Shape:
    """As what the job runs: an adopted one may have been made by another run."""
    trainer = found["spec"].get("trainer", {})
    limits = trainer.get("resourcesPerNode", {}).get("limits", {})
    gpus = int(limits.get(run.settings.gpu_resource, 0)) if run.settings.gpu_resource else 0
    return Shape(int(trainer.get("numNodes", 1)), int(trainer.get("numProcPerNode", run.shape.processes)), gpus)


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
