"""A run's tasks and their states, from what the API tells of a run.

The backend lists the nodes of its workflow, not the tasks of the pipeline. A task ``train-2`` is a node of that name,
after one called ``train-2-driver`` and above one called ``executor``, which is above ``executor(0)``, ``executor(1)``
and so on when it may be retried. A node names as its children both what is below it and what comes after it, by the
workflow's own ids, which share only the hash at the end with the pod's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

ENDED = {"SUCCEEDED", "FAILED", "SKIPPED", "CANCELED"}
WAITING, STARTING, NOT_RUN = "WAITING", "STARTING", "NOT RUN"


@dataclass(frozen=True)
class Task:
    """A task of the pipeline: its key in the IR, its display name, the keys of those it waits for."""

    key: str
    name: str
    after: tuple[str, ...]


@dataclass(frozen=True)
class TaskState:
    """A task in a run. Times are None before they happen; pods are those of its attempts, oldest first."""

    task: Task
    state: str
    started: datetime | None = None
    ended: datetime | None = None
    pods: tuple[str, ...] = ()
    error: str = ""


def tasks_of(spec: Mapping[str, Any]) -> list[Task]:
    """Every task of a pipeline that runs something, in an order in which each comes after those it waits for."""
    return list(_in_order(spec, spec["root"]["dag"]["tasks"], ()))


def _in_order(spec: Mapping[str, Any], dag: Mapping[str, Any], outer: tuple[str, ...]) -> Iterator[Task]:
    placed: dict[str, tuple[str, ...]] = {}  # a task or group to the keys of the tasks that end it
    rest = dict(dag)
    while rest:
        ready = [key for key, task in rest.items() if all(k in placed for k in task.get("dependentTasks", []))]
        key = (ready or list(rest))[0]
        task = rest.pop(key)
        after = tuple(k for name in task.get("dependentTasks", []) for k in placed.get(name, (name,))) or outer
        component = spec["components"][task["componentRef"]["name"]]
        if "dag" in component:
            inner = list(_in_order(spec, component["dag"]["tasks"], after))
            waited_for = {k for each in inner for k in each.after}
            placed[key] = tuple(each.key for each in inner if each.key not in waited_for)
            yield from inner
        else:
            placed[key] = (key,)
            yield Task(key, task.get("taskInfo", {}).get("name") or key, after)


def states_of(tasks: Sequence[Task], run: Any) -> list[TaskState]:
    """The state of every task of a run."""
    details = list(run.run_details.task_details or []) if run.run_details else []
    by_name: dict[str, Any] = {}
    for detail in details:
        by_name[detail.display_name] = detail
    by_id = {_hash(detail): detail for detail in details}
    return [_state(task, by_name, by_id, (run.state or "") in ENDED) for task in tasks]


def workflow_of(run: Any) -> str:
    """The name of a run's Workflow, which the names of its pods begin with; empty before there are any."""
    details = list(run.run_details.task_details or []) if run.run_details else []
    pods = [detail.pod_name for detail in details if detail.pod_name]
    own = [detail.pod_name for detail in details if detail.pod_name and detail.pod_name == detail.display_name]
    return own[0] if own else next((pod.partition("-system-")[0] for pod in pods if "-system-" in pod), "")


def _state(task: Task, by_name: Mapping[str, Any], by_id: Mapping[str, Any], over: bool) -> TaskState:
    detail = by_name.get(task.key) or by_name.get(task.name)
    driver = by_name.get(f"{task.key}-driver")
    if detail is None:
        if driver is None:
            return TaskState(task, NOT_RUN if over else WAITING)
        failed = driver.state in ("FAILED", "CANCELED")
        state = driver.state if failed else NOT_RUN if over else STARTING
        return TaskState(task, state, _when(driver.start_time), _when(driver.end_time) if failed else None)
    pods = sorted(_attempts(task, detail, by_id), key=lambda node: (_moment(node.start_time), node.display_name))
    running = any(node.state == "RUNNING" for node in pods)
    state = "RUNNING" if running and not over else _known(detail.state, over)
    errors = [node.error.message for node in (*pods, detail) if node.error and node.error.message]
    return TaskState(
        task,
        state,
        _when(detail.start_time),
        _when(detail.end_time) if state in ENDED else None,
        tuple(node.pod_name for node in pods if node.pod_name),
        errors[-1] if errors else "",
    )


def _known(state: str | None, over: bool) -> str:
    if state in (None, "", "RUNTIME_STATE_UNSPECIFIED"):
        return NOT_RUN if over else WAITING
    return str(state)


def _attempts(task: Task, detail: Any, by_id: Mapping[str, Any]) -> list[Any]:
    """Nodes that are pods of the task's own code: those below it, and not what comes after it."""
    if not detail.child_tasks and detail.pod_name and "driver" not in detail.pod_name:
        return [detail]  # a backend that lists tasks themselves
    children = (by_id.get(_end(child.pod_name or child.task_id or "")) for child in detail.child_tasks or [])
    return [pod for node in children if node is not None for pod in _pods(task, node, by_id, 0)]


def _pods(task: Task, node: Any, by_id: Mapping[str, Any], depth: int) -> list[Any]:
    own = re.fullmatch(rf"(executor|{re.escape(task.key)})(\(\d+\))?", node.display_name or "")
    if not own or depth > 3:
        return []
    children = (by_id.get(_end(child.pod_name or child.task_id or "")) for child in node.child_tasks or [])
    return [pod for child in children if child is not None for pod in _pods(task, child, by_id, depth + 1)] or [node]


def _hash(detail: Any) -> str:
    return _end(detail.pod_name or detail.task_id or "")


def _end(name: str) -> str:
    return name.rpartition("-")[2]


def _moment(moment: datetime | None) -> float:
    """For sorting: what has not started comes last."""
    return when.timestamp() if (when := _when(moment)) else float("inf")


def _when(moment: datetime | None) -> datetime | None:
    """A time that has come: what has not is told as the epoch's start."""
    return moment if moment is not None and moment.timestamp() > 0 else None
