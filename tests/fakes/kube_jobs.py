"""The Job controller of the fake, for Indexed Jobs: back-off per index, podFailurePolicy, maxFailedIndexes, deadline.

Statuses are those of the recordings: zero counters are left out, a Job some of whose indexes failed ends as Failed.
"""

from __future__ import annotations

import copy
import heapq
import time
from dataclasses import dataclass, field

from .kube_kubelet import TRACKING, Ending, Kubelet
from .kube_rules import JOBS, PODS, QUEUE
from .kube_store import Change, Object, Refused, Store, now, set_conditions

_BACK_OFF_S = 10  # from an index's failure to its next try


@dataclass
class _Work:
    """What the controller knows of a Job."""

    job: Object
    waiting: list[tuple[float, int]] = field(
        default_factory=list
    )  # a heap: from when (monotonic) an index may be tried
    active: dict[str, tuple[Object, int]] = field(default_factory=dict)  # by uid: pod, index
    failures: dict[int, int] = field(default_factory=dict)  # counted ones, by index
    completed: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)
    failed_pods: int = 0
    begun: float | None = None
    started: str = ""
    over: tuple[str, str] | None = None  # why it is being ended: reason, message
    done: bool = False


class IndexedJobs:
    """Called by ``Controllers``; ``hold`` keeps Jobs with a queue suspended, as if there were no quota."""

    def __init__(self, store: Store, kubelet: Kubelet, second: float) -> None:
        self.store, self.kubelet, self.second = store, kubelet, second
        self.hold = False
        self.disrupted: set[str] = set()  # uids of pods whose end is no fault of theirs
        self._works: dict[str, _Work] = {}

    def step(self, changes: list[Change]) -> None:
        for change in changes:
            uid = change.last["metadata"]["uid"]
            if change.new is None or "deletionTimestamp" in change.last["metadata"]:
                self._works.pop(uid, None)
            elif uid in self._works:
                self._works[uid].job = change.new
            elif change.new["spec"].get("completionMode") == "Indexed":
                indexes = [(0.0, index) for index in range(change.new["spec"]["completions"])]
                self._works[uid] = _Work(change.new, indexes)
        for work in list(self._works.values()):
            if not work.done:
                try:
                    self._work(work)
                except Refused:
                    continue  # deleted meanwhile

    def ended(self, pod: Object, ending: Ending | None) -> None:
        """A pod of a Job has ended, or has gone before it began."""
        uid = pod["metadata"]["uid"]
        work = next((w for w in self._works.values() if uid in w.active), None)
        if work is None:
            return
        _, index = work.active.pop(uid)
        self._untrack(pod)
        if ending is not None and ending.exit_code == 0:
            work.completed.add(index)
            return
        work.failed_pods += 1
        if work.over:
            return
        action = self._action(work.job, ending, uid in self.disrupted)
        later = time.monotonic() + _BACK_OFF_S * self.second
        if action == "Ignore":
            work.failed_pods -= 1
            heapq.heappush(work.waiting, (later, index))
        elif action == "FailJob":
            code = ending.exit_code if ending else 137
            meta = pod["metadata"]
            told = f"Container main for pod {meta['namespace']}/{meta['name']} failed with exit code {code} matching "
            work.over = ("PodFailurePolicy", f"{told}FailJob rule at index {self._rule}")
        else:
            work.failures[index] = work.failures.get(index, 0) + 1
            spec = work.job["spec"]
            if action == "FailIndex" or work.failures[index] > spec.get("backoffLimitPerIndex", 1 << 31):
                work.failed.add(index)
            elif sum(work.failures.values()) > spec.get("backoffLimit", 6):
                work.over = ("BackoffLimitExceeded", "Job has reached the specified backoff limit")
            else:
                heapq.heappush(work.waiting, (later, index))

    def _action(self, job: Object, ending: Ending | None, disrupted: bool) -> str:
        for at, rule in enumerate(job["spec"].get("podFailurePolicy", {}).get("rules", [])):
            self._rule = at
            codes, conditions = rule.get("onExitCodes"), rule.get("onPodConditions", [])
            if codes and ending and (ending.exit_code in codes["values"]) == (codes["operator"] == "In"):
                return rule["action"]
            if disrupted and any(c["type"] == "DisruptionTarget" for c in conditions):
                return rule["action"]
        return "Count"

    def _work(self, work: _Work) -> None:
        job, spec = work.job, work.job["spec"]
        meta = job["metadata"]
        queued = QUEUE in meta.get("labels", {})
        if spec.get("suspend"):
            self._condition(work, "Suspended", "True", "JobSuspended", "Job suspended")
            if queued and not self.hold:
                go = lambda o: {**o, "spec": {**o["spec"], "suspend": False}}  # noqa: E731
                self.store.update(JOBS, meta["namespace"], meta["name"], go)
            self._end_pods(work)
            return
        if work.begun is None:
            work.begun, work.started = time.monotonic(), now()
            if queued:
                self._condition(work, "Suspended", "False", "JobResumed", "Job resumed")
        deadline = spec.get("activeDeadlineSeconds")
        if deadline and time.monotonic() - work.begun > deadline * self.second and not work.over:
            work.over = ("DeadlineExceeded", "Job was active longer than specified deadline")
        if len(work.failed) > spec.get("maxFailedIndexes", 1 << 31) and not work.over:
            told = "Job has exceeded the specified maximal number of failed indexes"
            work.over = ("MaxFailedIndexesExceeded", told)
        everything = len(work.completed) + len(work.failed) == spec["completions"]
        if everything and work.failed and not work.over:
            work.over = ("FailedIndexes", "Job has failed indexes")
        if work.over or everything:
            self._finish(work)
            return
        moment = time.monotonic()
        while work.waiting and work.waiting[0][0] <= moment and len(work.active) < spec.get("parallelism", 1):
            _, index = heapq.heappop(work.waiting)
            pod = self._pod(work, index)
            work.active[pod["metadata"]["uid"]] = (pod, index)
            self.kubelet.start(pod)
        self._status(work)

    def _finish(self, work: _Work) -> None:
        if work.over:
            reason, message = work.over
            self._status(work)
            self._condition(work, "FailureTarget", "True", reason, message)
            self._end_pods(work)
            if work.active:
                return  # until its last pod has ended
            self._status(work)
            self._condition(work, "Failed", "True", reason, message)
        else:
            self._status(work, completionTime=now())
            told = ("True", "CompletionsReached", "Reached expected number of succeeded pods")
            self._condition(work, "SuccessCriteriaMet", *told)
            self._condition(work, "Complete", *told)
        work.done = True

    def _end_pods(self, work: _Work) -> None:
        for pod, _ in list(work.active.values()):
            try:
                stored = self.store.get(PODS, pod["metadata"]["namespace"], pod["metadata"]["name"])
                if "deletionTimestamp" not in stored["metadata"]:
                    self.store.delete(PODS, pod["metadata"]["namespace"], pod["metadata"]["name"])
            except Refused:
                work.active.pop(pod["metadata"]["uid"], None)

    def _pod(self, work: _Work, index: int) -> Object:
        meta, template = work.job["metadata"], work.job["spec"]["template"]
        given = template.get("metadata", {})
        labels = {**given.get("labels", {}), "batch.kubernetes.io/job-completion-index": str(index)}
        notes = {**given.get("annotations", {}), "batch.kubernetes.io/job-completion-index": str(index)}
        notes["batch.kubernetes.io/job-index-failure-count"] = str(work.failures.get(index, 0))
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": meta["name"], "uid": meta["uid"], "controller": True}
        pod = {"generateName": f"{meta['name']}-{index}-", "labels": labels, "annotations": notes}
        pod |= {"ownerReferences": [owner], "finalizers": [TRACKING]}
        spec = copy.deepcopy(template["spec"])
        where = {"fieldRef": {"fieldPath": "metadata.labels['batch.kubernetes.io/job-completion-index']"}}
        for container in spec["containers"]:
            container.setdefault("env", []).append({"name": "JOB_COMPLETION_INDEX", "valueFrom": where})
        return self.store.create(PODS, meta["namespace"], {"metadata": pod, "spec": spec})

    def _untrack(self, pod: Object) -> None:
        def change(old: Object) -> Object:
            kept = [f for f in old["metadata"].get("finalizers", []) if f != TRACKING]
            return {**old, "metadata": {**old["metadata"], "finalizers": kept}}

        try:
            self.store.update(PODS, pod["metadata"]["namespace"], pod["metadata"]["name"], change)
        except Refused:
            pass

    def _status(self, work: _Work, **more: str) -> None:
        counts = {"active": len(work.active), "succeeded": len(work.completed), "failed": work.failed_pods}
        status: Object = {key: value for key, value in counts.items() if value}  # zeros are left out
        status |= {"startTime": work.started, "terminating": 0, "uncountedTerminatedPods": {}, "ready": 0, **more}
        if work.completed:
            status["completedIndexes"] = ranges(work.completed)
        if "backoffLimitPerIndex" in work.job["spec"]:
            status["failedIndexes"] = ranges(work.failed)
        meta = work.job["metadata"]
        before = self.store.get(JOBS, meta["namespace"], meta["name"]).get("status", {})
        if "conditions" in before:
            status["conditions"] = before["conditions"]
        change = lambda old: {**old, "status": status}  # noqa: E731
        self.store.update(JOBS, meta["namespace"], meta["name"], change, status=True)

    def _condition(self, work: _Work, kind: str, status: str, reason: str, message: str) -> None:
        set_conditions(self.store, JOBS, work.job, **{kind: (status, reason, message)})


def ranges(indexes: set[int]) -> str:
    """As a Job's status says it: ``0-2,4,5``. Three and more neighbours are a range, two are not."""
    groups: list[list[int]] = []
    for index in sorted(indexes):
        if groups and groups[-1][-1] == index - 1:
            groups[-1].append(index)
        else:
            groups.append([index])
    return ",".join(f"{g[0]}-{g[-1]}" if len(g) > 2 else ",".join(map(str, g)) for g in groups)
