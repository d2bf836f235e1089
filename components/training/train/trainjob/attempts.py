"""Which TrainJob is a run's: one that runs or is complete is adopted, after one that failed a new attempt is made."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ....common.cluster.api import Cluster
from ....common.cluster.errors import AlreadyThere, Changed, NotThere
from ....common.cluster.kinds import PODS, TRAINJOBS, Object, holds
from ....common.cluster.names import ATTEMPT_LABEL, KEY_LABEL, short_key
from ....common.cluster.owners import Workflow, adopt, owners
from ....common.files import write_atomic
from ..endings import TrainingFailed, TrainingInterrupted
from ..job import Job
from .budget import Budget
from .manifest import SHAPE, Shape, attempt_name, train_job
from .settings import TrainJobSettings

JOBSET_LABEL = "jobset.sigs.k8s.io/jobset-name"


@dataclass(frozen=True)
class Run:
    """What a step is to have trained, and where.

    Attributes:
        job: what is to be trained, with its inputs on the work volume.
        folder: of the run, on the work volume.
        key: the run's identity.
        shape: over what it is to be spread.
        settings: where it runs.
        cluster: the connection.
        workflow: the step's own, if it has one.
        budget: GPU time used and left.
        tell: takes a line about what goes on.
        told: names of the signals that told this step to end, so far.
        made: names of the TrainJobs that this step has created.
    """

    job: Job
    folder: Path
    key: str
    shape: Shape
    settings: TrainJobSettings
    cluster: Cluster
    workflow: Workflow | None
    budget: Budget
    tell: Callable[[str], None]
    told: list[str] = field(default_factory=list)
    made: list[str] = field(default_factory=list)

    def place(self, name: str) -> Path:
        """The folder of an attempt: job file, log, signs of life, error lines, result."""
        return self.folder / "attempts" / name

    def name(self, attempt: int) -> str:
        """Of an attempt's TrainJob."""
        return attempt_name(self.job.stage, self.key, attempt)


def finished(folder: Path) -> dict[str, Any] | None:
    """The result that an attempt has left; None while there is none."""
    for path in sorted((folder / "attempts").glob("*/result.json")):
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError):
            continue
    return None


def take(run: Run) -> Object:
    """The run's TrainJob, adopted or made.

    Raises:
        TrainingFailed: its name is taken by another, or pods of an earlier attempt do not end.
        TrainingInterrupted: told to end meanwhile.
    """
    while True:
        jobs = run.cluster.list(TRAINJOBS, labels=f"{KEY_LABEL}={short_key(run.key)}")
        newest = max(jobs, key=_attempt, default=None)
        attempt = _attempt(newest) + 1 if newest else 1
        if newest and "deletionTimestamp" not in newest["metadata"]:
            name = newest["metadata"]["name"]
            # A complete one whose folder has been removed is no proof that there is a model.
            if holds(newest, "Complete") and run.place(name).is_dir():
                run.tell(f"TrainJob {name} has trained this already")
                return newest
            if not holds(newest, "Complete") and not holds(newest, "Failed"):
                if _may_be_adopted(run, newest):
                    found = _adopt(run, newest)
                    if found is not None:
                        return found
                    continue
                if not _ended(run, newest):
                    continue
        if not _without_pods(run, attempt):
            continue
        made = _create(run, attempt)
        if made is not None:
            run.made.append(run.name(attempt))
            run.tell(f"TrainJob {run.name(attempt)} created: {run.shape} processes, queue {run.settings.queue}")
            return made


def _attempt(job: Object) -> int:
    return int(job["metadata"].get("labels", {}).get(ATTEMPT_LABEL, 1))


def _may_be_adopted(run: Run, job: Object) -> bool:
    """A size cannot be changed: another one is a new attempt, unless the job is another run's as well."""
    theirs = job["metadata"].get("annotations", {}).get(SHAPE)
    if theirs == str(run.shape):
        return True
    if all(run.workflow and owner["uid"] == run.workflow.uid for owner in owners(job)):
        return False
    name = job["metadata"]["name"]
    run.tell(f"TrainJob {name} trains this as {theirs}, not as {run.shape}: it is another run's, and kept so")
    return True


def _adopt(run: Run, job: Object) -> Object | None:
    try:
        found = adopt(run.cluster, TRAINJOBS, job, run.workflow) if run.workflow else job
    except NotThere:
        return None
    if "deletionTimestamp" in found["metadata"]:
        return None
    run.tell(f"TrainJob {job['metadata']['name']} trains this already: adopted")
    return found


def _ended(run: Run, job: Object) -> bool:
    """End one's own job of another size; False where it has changed meanwhile."""
    theirs = job["metadata"].get("annotations", {}).get(SHAPE)
    try:
        run.cluster.delete(TRAINJOBS, job, exactly=True)
    except Changed:  # another run has adopted it, or it has ended
        return False
    run.tell(f"TrainJob {job['metadata']['name']} trains this as {theirs}: ended, and begun anew as {run.shape}")
    return True


def _without_pods(run: Run, attempt: int) -> bool:
    """Two attempts must not write checkpoints at once: pods of earlier ones that still end are waited for.

    False where they are those of this very attempt, which another step has made since jobs were listed.
    """
    names = ",".join(run.name(number) for number in range(1, attempt + 1))
    wait_s = run.settings.start_wait_s
    said, deadline = False, time.monotonic() + wait_s
    while True:
        pods = run.cluster.list(PODS, labels=f"{JOBSET_LABEL} in ({names})")
        ending = [p["metadata"]["name"] for p in pods if p["status"].get("phase") in ("Pending", "Running")]
        if not ending or run.cluster.closed:
            return True
        if _is_made(run, attempt):
            return False
        if run.told:
            raise TrainingInterrupted(f"the step was told to end ({run.told[0]}) before it had started training")
        if time.monotonic() > deadline:
            raise TrainingFailed(
                f"pods of an earlier attempt have not ended for {wait_s:g} s ({', '.join(ending[:4])}): they could "
                "still write checkpoints; if their node is lost, delete them with --force"
            )
        if not said:
            run.tell(f"waiting for pods of an earlier attempt to end: {', '.join(ending[:4])}")
            said = True
        run.cluster.pause(1.0)


def _is_made(run: Run, attempt: int) -> bool:
    try:
        return "deletionTimestamp" not in run.cluster.get(TRAINJOBS, run.name(attempt))["metadata"]
    except NotThere:
        return False


def _create(run: Run, attempt: int) -> Object | None:
    """Create an attempt; None where another step was faster."""
    name = run.name(attempt)
    content = run.job.to_json()
    # Named by its content: two steps never write over the file that a running job reads.
    job_file = run.place(name) / f"job-{hashlib.sha256(content).hexdigest()[:12]}.json"
    write_atomic(job_file, content)
    deadline_s = min(run.job.settings.timeout_s, run.budget.seconds_left(run.shape.all_gpus))
    manifest = train_job(run.job.stage, run.key, attempt, run.shape, job_file, deadline_s, run.settings, run.workflow)
    try:
        return run.cluster.create(TRAINJOBS, manifest)
    except AlreadyThere:
        try:
            there = run.cluster.get(TRAINJOBS, name)
        except NotThere:
            return None
    if there["metadata"].get("labels", {}).get(KEY_LABEL) != short_key(run.key):
        raise TrainingFailed(f"a TrainJob {name} is there that svdflow has not made; rename or delete it")
    run.cluster.pause(0.2)  # it may be the one that is still being deleted
    return None
