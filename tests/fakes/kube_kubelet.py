"""Scheduler and kubelet of the fake: pods are placed, started, run and ended, in the recorded order of states.

What a container does is a plain function (``Behaviour``), or a process of this machine (``as_process``).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .kube_rules import PODS
from .kube_store import Object, Refused, Store, now

TERM, KILL = 143, 137
TRACKING = "batch.kubernetes.io/job-tracking"


@dataclass(frozen=True)
class Ending:
    """How a container ended."""

    exit_code: int = 0
    reason: str = ""  # OOMKilled and the like; Completed or Error by default


@dataclass
class Container:
    """A running container, as its behaviour sees it."""

    pod: Object
    store: Store
    told: threading.Event = field(default_factory=threading.Event)  # to end: SIGTERM

    @property
    def name(self) -> str:
        return self.pod["metadata"]["name"]

    @property
    def spec(self) -> Object:
        return self.pod["spec"]["containers"][0]

    @property
    def index(self) -> int:
        return int(self.pod["metadata"]["labels"].get("batch.kubernetes.io/job-completion-index", 0))

    @property
    def attempt(self) -> int:
        """How often this index, or the whole set, was tried before."""
        meta = self.pod["metadata"]
        tries = meta.get("annotations", {}).get("batch.kubernetes.io/job-index-failure-count")
        return int(tries or meta["labels"].get("jobset.sigs.k8s.io/restart-attempt", 0))

    def log(self, *lines: str) -> None:
        self.store.log(self.pod["metadata"]["namespace"], self.name, *lines)


Behaviour = Callable[[Container], "int | Ending | None"]


def succeed(container: Container) -> int:
    """Ends at once, well."""
    container.log(f"index {container.index} done")
    return 0


def until_told(container: Container) -> int:
    """Runs until it is told to end."""
    container.told.wait(600)
    return TERM


def as_process(container: Container) -> int:
    """Runs the container's command and args here, with its environment, and hands its output on."""
    command = [*container.spec.get("command", []), *container.spec.get("args", [])]
    if command[0] == "python":
        command[0] = sys.executable
    given = {v["name"]: v["value"] for v in container.spec.get("env", []) if "value" in v}
    environment = {**os.environ, **given, "JOB_COMPLETION_INDEX": str(container.index)}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )

    def end() -> None:
        container.told.wait()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)

    threading.Thread(target=end, daemon=True).start()
    assert process.stdout is not None
    for line in process.stdout:
        container.log(line.rstrip("\n"))
    status = process.wait()
    return status if status >= 0 else 128 - status


class Kubelet:
    """Runs every pod that it is given, each in a thread of its own.

    Args:
        ended: told of every pod whose container has ended, and of those that went before they began (None).

    Attributes:
        unschedulable: while set, the scheduler's words why no node takes a pod.
        image_error: while set, why the image cannot be had: the reason and the message of ``state.waiting``.
    """

    def __init__(self, store: Store, behaviour: Behaviour, ended: Callable[[Object, Ending | None], None]) -> None:
        self.store, self.behaviour, self._ended = store, behaviour, ended
        self.unschedulable: str | None = None
        self.image_error: tuple[str, str] | None = None
        self.node = "gpu-0"
        self._running: dict[str, Container] = {}
        store.pods_end_slowly = True

    def start(self, pod: Object) -> None:
        container = Container(pod, self.store)
        self._running[pod["metadata"]["uid"]] = container
        threading.Thread(target=self._run, args=(container,), daemon=True).start()

    def look(self, pod: Object) -> None:
        """Told of every change of a pod: one that is to go has its container told."""
        container = self._running.get(pod["metadata"]["uid"])
        if container and "deletionTimestamp" in pod["metadata"]:
            container.told.set()

    def gone(self, pod: Object) -> None:
        container = self._running.pop(pod["metadata"]["uid"], None)
        if container:
            container.told.set()

    def lose(self, pod: Object) -> None:
        """Its node has died: the container is no more, nobody reports its end, the pod is removed by force."""
        container = self._running.pop(pod["metadata"]["uid"], None)
        self.store.drop(PODS, pod["metadata"]["namespace"], pod["metadata"]["name"])
        if container:
            container.told.set()

    def _run(self, container: Container) -> None:
        meta = container.pod["metadata"]
        namespace, name = meta["namespace"], meta["name"]
        ending: Ending | None = None
        try:
            ending = self._live(container, namespace, name)
        except Refused:
            pass  # it is no longer there
        if self._running.get(meta["uid"]) is not container:
            return
        self._ended(container.pod, ending)
        container.told.wait()  # the pod stays, as what it ended as, until it is deleted
        self._running.pop(meta["uid"], None)
        self.store.drop(PODS, namespace, name)

    def _live(self, container: Container, namespace: str, name: str) -> Ending | None:
        spec = container.spec
        while self.unschedulable and not container.told.is_set():
            self._conditions(namespace, name, PodScheduled=("False", "Unschedulable", self.unschedulable))
            container.told.wait(0.01)
        if container.told.is_set():
            return None
        placed = {**container.pod, "spec": {**container.pod["spec"], "nodeName": self.node}}
        self.store.update(PODS, namespace, name, lambda old: {**old, "spec": placed["spec"]})
        self._conditions(namespace, name, PodScheduled=("True", None, None))
        waiting: tuple[str, str] | None = ("ContainerCreating", "")
        while waiting and not container.told.is_set():
            reason, message = waiting
            unready = ("False", "ContainersNotReady", f"containers with unready status: [{spec['name']}]")
            told = {"reason": reason} | ({"message": message} if message else {})
            self._container(container, namespace, name, "Pending", {"waiting": told}, unready)
            container.told.wait(0.01)
            waiting = self.image_error
        if container.told.is_set():
            return None
        container.log()  # there is a log from now on
        begun = now()
        self._container(container, namespace, name, "Running", {"running": {"startedAt": begun}}, ("True", None, None))
        outcome = self.behaviour(container)
        if outcome is None:
            outcome = TERM if container.told.is_set() else 0
        ending = outcome if isinstance(outcome, Ending) else Ending(outcome)
        self.store.log(namespace, name, end=True)
        if self._running.get(container.pod["metadata"]["uid"]) is not container:
            return None
        reason = ending.reason or ("Error" if ending.exit_code else "Completed")
        state = {"exitCode": ending.exit_code, "reason": reason, "startedAt": begun, "finishedAt": now()}
        phase = "Failed" if ending.exit_code else "Succeeded"
        unready = ("False", "PodFailed" if ending.exit_code else "PodCompleted", "")
        self._container(container, namespace, name, phase, {"terminated": state}, unready)
        return ending

    def _conditions(
        self, namespace: str, name: str, phase: str | None = None, status: Any = None, **given: Any
    ) -> None:
        def change(pod: Object) -> Object:
            before = pod.get("status", {})
            conditions = {c["type"]: c for c in before.get("conditions", [])}
            for kind, (value, reason, message) in given.items():
                said = {"reason": reason} if reason else {}
                said |= {"message": message} if message else {}
                moment = conditions.get(kind, {}).get("lastTransitionTime", now())
                conditions[kind] = {"type": kind, "status": value, "lastTransitionTime": moment, **said}
            after = {**before, "conditions": list(conditions.values()), **(status or {})}
            return {**pod, "status": after | ({"phase": phase} if phase else {})}

        self.store.update(PODS, namespace, name, change, status=True)

    def _container(
        self, container: Container, namespace: str, name: str, phase: str, state: Object, ready: tuple[Any, Any, Any]
    ) -> None:
        spec = container.spec
        shown = {"name": spec["name"], "image": spec.get("image", ""), "state": state, "lastState": {}}
        shown |= {"ready": phase == "Running", "restartCount": 0, "started": phase == "Running"}
        status = {"containerStatuses": [shown], "hostIP": "10.0.0.5"}
        self._conditions(namespace, name, phase, status, Ready=ready, ContainersReady=ready)
