"""Runs on a server: find, list, stop, try again, read their logs."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from svdflow.common.errors import BadInputError

from .client import Client, NoAnswer, Refused
from .graph import ENDED, TaskState, states_of, tasks_of, workflow_of
from .release import Release, Stopped, release_all

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
RECENT = 200
STOPPED_S = 60.0  # in which the GPUs of a stopped run are free


def list_runs(client: Client, count: int, experiment: str | None = None) -> list[Any]:
    """The newest runs, newest first."""
    scope: dict[str, Any] = {"namespace": client.access.namespace}
    if experiment:
        service = client.experiments.experiment_service_list_experiments
        found = client.first(service, "experiments", experiment, namespace=client.access.namespace)
        if found is None:
            raise BadInputError(f"--experiment {experiment}: there is none of that name")
        scope = {"experiment_id": found.experiment_id}
    newest = client.pages(client.runs.run_service_list_runs, "runs", sort_by="created_at desc", **scope)
    return list(islice(newest, count))


def find_run(client: Client, wanted: str) -> Any:
    """A run by its id, the beginning of its id, its name, or ``latest``.

    Raises:
        BadInputError: none has it, or more than one.
    """
    if _UUID.fullmatch(wanted):
        return get_run(client, wanted)
    recent = list_runs(client, 1 if wanted == "latest" else RECENT)
    found = [run for run in recent if wanted in ("latest", run.display_name) or run.run_id.startswith(wanted)]
    if len(found) != 1:
        what = "no run" if not found else f"{len(found)} runs"
        raise BadInputError(f"{wanted}: {what} of the newest {RECENT} have this id or name; see `svdflow runs list`")
    return get_run(client, found[0].run_id)


def get_run(client: Client, run_id: str) -> Any:
    """A run with the states of its tasks.

    Raises:
        BadInputError: there is none of that id.
    """
    try:
        return client.read(client.runs.run_service_get_run, run_id)
    except Refused as error:
        if error.status == 404:
            raise BadInputError(f"{run_id}: {client.access.endpoint} has no such run") from None
        raise


def spec_of(client: Client, run: Any) -> dict[str, Any]:
    """The pipeline that a run runs."""
    spec = run.pipeline_spec
    if not spec:
        reference = run.pipeline_version_reference
        if reference is None or not reference.pipeline_id:
            raise BadInputError(f"{run.run_id}: the server does not tell which pipeline version this run runs")
        version = client.read(
            client.pipelines.pipeline_service_get_pipeline_version,
            reference.pipeline_id,
            reference.pipeline_version_id,
        )
        spec = version.pipeline_spec
    return spec.get("pipeline_spec") or spec  # a platform's document makes it one of two


def task_states(client: Client, run: Any) -> list[TaskState]:
    """The states of a run's tasks, in order."""
    return states_of(tasks_of(spec_of(client, run)), run)


def stop(
    client: Client, run_id: str, *, wait_s: float = STOPPED_S, pause_s: float = 2.0, release: Release = release_all
) -> tuple[str, list[str]]:
    """End a run; returns the state it is in then, and what else was released.

    Its workflow's end takes the run's pods and, by ownership, the jobs that no other run has adopted.
    """
    run = get_run(client, run_id)
    stopped = Stopped(run_id, workflow_of(run), client.access.namespace)
    if run.state in ENDED:
        return run.state, list(release(stopped))
    try:
        client.read(client.runs.run_service_terminate_run, run_id)  # twice does no harm
    except Refused:
        if get_run(client, run_id).state not in ENDED:  # else it ended just now
            raise
    released = list(release(stopped))
    since = time.monotonic()
    while (run := get_run(client, run_id)).state not in ENDED and time.monotonic() - since < wait_s:
        time.sleep(pause_s)
    # A step that was not told to end yet may have started a job after the first look, or its Workflow was just made.
    again = Stopped(run_id, workflow_of(run) or stopped.workflow, client.access.namespace)
    return run.state, released + [line for line in release(again) if line not in released]


def retry(client: Client, run_id: str) -> None:
    """Run again what failed in a run; what succeeded is kept.

    Raises:
        BadInputError: the run has not failed.
    """
    state = get_run(client, run_id).state
    if state not in ("FAILED", "CANCELED"):
        raise BadInputError(f"{run_id}: is {state}; only a run that failed or was canceled is tried again")
    client.once(client.runs.run_service_retry_run, run_id)


def choose_task(states: Sequence[TaskState], wanted: str | None) -> TaskState:
    """The task whose log is wanted: the one named, else the one that failed, else the one at work.

    Raises:
        BadInputError: there is none of that name, or it has no pod.
    """
    if wanted:
        same = _plain(wanted)
        found = [state for state in states if same in (_plain(state.task.key), _plain(state.task.name))]
        if not found:
            names = ", ".join(state.task.name for state in states)
            raise BadInputError(f"{wanted}: the run has no such task; tasks are {names}")
        if not found[0].pods:
            raise BadInputError(f"{found[0].task.name}: is {found[0].state} and has no pod to read from")
        return found[0]
    for state in ("FAILED", "RUNNING", "CANCELED"):
        if found := [each for each in states if each.state == state and each.pods]:
            return found[0]
    raise BadInputError("no task failed or is at work; name the task whose log you want")


def read_log(client: Client, run_id: str, pod: str) -> Iterator[bytes]:
    """A pod's log so far.

    Raises:
        BadInputError: it is gone.
    """
    try:
        yield from client.log(run_id, pod)
    except (Refused, NoAnswer) as error:
        if error.status in (400, 404, 500):
            raise BadInputError(_gone(pod, error)) from None
        raise


def follow_log(client: Client, run_id: str, task_key: str, pause_s: float = 3.0) -> Iterator[bytes]:
    """A task's log as it grows, attempt after attempt, until the task has ended.

    The endpoint gives a log from its start each time; what was seen is dropped here.
    """
    seen: dict[str, int] = {}
    spec: dict[str, Any] | None = None
    while True:
        run = get_run(client, run_id)
        spec = spec or spec_of(client, run)
        state = next(state for state in states_of(tasks_of(spec), run) if state.task.key == task_key)
        for pod in state.pods:
            try:
                yield from _new_part(client, run_id, pod, seen)
            except BadInputError:
                if state.state in ENDED and not seen.get(pod):
                    raise
        if state.state in ENDED or run.state in ENDED:
            return
        time.sleep(pause_s)


def _new_part(client: Client, run_id: str, pod: str, seen: dict[str, int]) -> Iterator[bytes]:
    at = 0
    for piece in read_log(client, run_id, pod):
        fresh = piece[max(0, seen.get(pod, 0) - at) :]
        at += len(piece)
        if fresh:
            yield fresh
            seen[pod] = at


def _gone(pod: str, error: Exception) -> str:
    return (
        f"{pod}: no log ({error}); pods go when their node does and an hour after the run's end, and logs are kept "
        "longer only where KFP archives them. The step's own report is in the run's work directory, steps/RUN"
    )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower())
