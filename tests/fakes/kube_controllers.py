"""Controllers of the fake: Kueue, Trainer with JobSet under it, and the Job controller (``kube_jobs``).

They write the recorded sequences of states, less what no launcher looks at: no JobSet, Service or Job stands between a
TrainJob and its pods, and time passes faster. What a container does is up to the test (``kube_kubelet.Behaviour``).

    with KubeAPI() as api, Controllers(api.store, succeed) as cluster:
        ...
        cluster.evict(cluster.pods("train-1")[0])
"""

from __future__ import annotations

import threading
import time
import uuid
from dataclasses import dataclass, field
from types import TracebackType

from .kube_jobs import IndexedJobs
from .kube_kubelet import Behaviour, Ending, Kubelet, succeed
from .kube_rules import EVENTS, JOBS, PODS, QUEUE, TRAINJOBS, WORKLOADS
from .kube_store import Object, Refused, Store, dig, now, set_conditions

_NO_FLAVOR = "couldn't assign flavors to pod set node: insufficient"
_WAITING = _NO_FLAVOR + " unused quota for nvidia.com/gpu in flavor h100, {} more needed"
_TOO_MUCH = (
    _NO_FLAVOR
    + " quota for nvidia.com/gpu in flavor h100, previously considered podsets requests (0) + current podset "
    "request ({}) > maximum capacity ({})"
)


@dataclass
class _Run:
    """What the controllers know of a TrainJob."""

    admitted: bool = False
    attempt: int = 0
    begun: float = 0.0
    pods: dict[str, Object] = field(default_factory=dict)  # by uid, those that have not ended
    endings: dict[str, Ending | None] = field(default_factory=dict)  # by uid, those of this attempt that have
    disrupted: set[str] = field(default_factory=set)
    done: bool = False
    said: str = ""


class Controllers:
    """Use as a context manager.

    Args:
        behaviour: what a container does; see ``kube_kubelet``.
        gpus: of the ClusterQueue. ``free`` is lowered by tests to have jobs wait.
        max_restarts: of the runtime: how often a failed set is begun again.
        ignore_disruption: of the runtime's podFailurePolicy: whether a pod that was taken away is replaced, uncounted.
        second: how long a second of ``activeDeadlineSeconds`` and of back-offs lasts.
    """

    def __init__(
        self,
        store: Store,
        behaviour: Behaviour = succeed,
        gpus: int = 16,
        max_restarts: int = 0,
        ignore_disruption: bool = True,
        second: float = 0.01,
        queues: tuple[str, ...] = ("research", "product", "fan-out"),
    ) -> None:
        self.store, self.gpus, self.free, self.queues = store, gpus, gpus, queues
        self.max_restarts, self.second, self.ignore_disruption = max_restarts, second, ignore_disruption
        self.kubelet = Kubelet(store, behaviour, self._ended)
        self.jobs = IndexedJobs(store, self.kubelet, second)
        self._runs: dict[str, _Run] = {}
        self._stopped = False
        self._lock = threading.RLock()

    def __enter__(self) -> Controllers:
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stopped = True
        self._thread.join(10)
        for pod in self.store.objects(PODS):
            self.kubelet.gone(pod)

    # what tests do to the cluster

    def pods(self, job: str) -> list[Object]:
        """The pods of a TrainJob or a Job, by index."""
        names = ("jobset.sigs.k8s.io/jobset-name", "batch.kubernetes.io/job-name")
        found = [p for p in self.store.objects(PODS) if job in [p["metadata"].get("labels", {}).get(n) for n in names]]
        return sorted(found, key=lambda p: int(p["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"]))

    def evict(
        self, pod: Object, reason: str = "EvictionByEvictionAPI", message: str = "Eviction API: evicting"
    ) -> None:
        """As a drain does: the pod is marked, told to end, and goes."""
        meta = pod["metadata"]
        self._mark(pod, reason, message)
        self.store.delete(PODS, meta["namespace"], meta["name"])

    def drain(self, pods: list[Object]) -> None:
        """All pods of a node are evicted at once: nothing else happens to them meanwhile."""
        with self._lock:
            for pod in pods:
                self.evict(pod)

    def lose_node(self, pod: Object) -> None:
        """The pod's node answers no more: its pods are removed by force, without a last state."""
        self._mark(pod, "DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint")
        with self._lock:
            run = self._of(pod)
            self.kubelet.lose(pod)
            if run:
                self._count(run, pod, None)
            else:
                self.jobs.ended(pod, None)

    def preempt(self, job: Object) -> None:
        """Kueue takes the quota back: the TrainJob is suspended, its pods go, it waits again."""
        with self._lock:
            run = self._runs[job["metadata"]["uid"]]
            namespace, name = job["metadata"]["namespace"], job["metadata"]["name"]
            told = f"Preempted to accommodate a workload in the ClusterQueue gpu; {name} waits again"
            self._say(job, Evicted=("True", "Preempted", told), QuotaReserved=("False", "PendingEvaluation", told))
            run.admitted, run.said = False, ""
            self.free += _gpus(job)
            self.store.update(TRAINJOBS, namespace, name, lambda o: {**o, "spec": {**o["spec"], "suspend": True}})
            self._condition(job, "Suspended", "True", "Suspended", "TrainJob is suspended")
            self._clear(run)

    # the loop

    def _loop(self) -> None:
        seen = 0
        while not self._stopped:
            with self.store.changed:
                if self.store.version == seen:
                    self.store.changed.wait(0.01)
                version = self.store.version
            with self._lock:
                for change in self.store.changes(PODS, seen):
                    self.kubelet.gone(change.last) if change.new is None else self.kubelet.look(change.new)
                for change in self.store.changes(TRAINJOBS, seen):
                    run = self._runs.get(change.last["metadata"]["uid"])
                    if change.new is None and run and run.admitted and not run.done:
                        self._finish(change.last, run)
                for job in self.store.objects(TRAINJOBS):
                    try:
                        self._train(job)
                    except Refused:
                        continue  # it has been deleted meanwhile
                self.jobs.step(self.store.changes(JOBS, seen))
            seen = version

    def _train(self, job: Object) -> None:
        meta = job["metadata"]
        run = self._runs.setdefault(meta["uid"], _Run())
        if run.done or "deletionTimestamp" in meta:
            return
        if not run.admitted and not self._admit(job, run):
            return
        deadline = job["spec"].get("activeDeadlineSeconds")
        if deadline and time.monotonic() - run.begun > deadline * self.second:
            self._fail(job, run, "DeadlineExceeded", "TrainJob exceeded its active deadline")
            return
        count = dig(job, "spec.trainer.numNodes") or 1
        if not run.pods and not run.endings:
            for index in range(count):
                pod = self._pod(job, run, index)
                run.pods[pod["metadata"]["uid"]] = pod
                self.kubelet.start(pod)
        bad = [uid for uid, ending in run.endings.items() if ending is None or ending.exit_code]
        if bad and self.ignore_disruption and all(uid in run.disrupted for uid in bad):
            self._clear(run, keep_failed=False)
            run.endings.clear()
            return
        if bad and run.attempt < self.max_restarts:
            self._status(job, run, failed=1)
            self._clear(run, keep_failed=False)
            run.attempt += 1
            run.endings.clear()
        elif bad:
            told = f"jobset failed due to reaching max number of restarts (first failed job: {meta['name']}-node-0)"
            self._fail(job, run, "ReachedMaxRestarts", told)
        elif len(run.endings) == count:
            self._status(job, run, succeeded=1)
            self._condition(job, "Complete", "True", "AllJobsCompleted", "jobset completed successfully")
            self._say(job, Finished=("True", "Succeeded", "jobset completed successfully"))
            self._finish(job, run)
        else:
            ready = all((p := self._now(pod)) and p["status"]["phase"] == "Running" for pod in run.pods.values())
            self._status(job, run, active=1, ready=int(ready and bool(run.pods)))

    def _admit(self, job: Object, run: _Run) -> bool:
        meta, need = job["metadata"], _gpus(job)
        queue = meta.get("labels", {}).get(QUEUE)
        if queue is None:
            run.admitted, run.begun = not job["spec"].get("suspend"), time.monotonic()
            return run.admitted
        self._workload(job)
        self._condition(job, "Suspended", "True", "Suspended", "TrainJob is suspended")
        if queue not in self.queues:
            refused = ("Misconfigured", f"LocalQueue {queue} doesn't exist")
        elif need > self.gpus:
            refused = ("ExceedsMaxQuota", _TOO_MUCH.format(need, self.gpus))
        elif need > self.free:
            refused = ("WaitingForQuota", _WAITING.format(need - self.free))
        else:
            self.free -= need
            run.admitted, run.begun = True, time.monotonic()
            quota = ("True", "QuotaReserved", "Quota reserved in ClusterQueue gpu")
            self._say(job, QuotaReserved=quota, Admitted=("True", "Admitted", "The workload is admitted"))
            go = lambda o: {**o, "spec": {**o["spec"], "suspend": False}}  # noqa: E731
            self.store.update(TRAINJOBS, meta["namespace"], meta["name"], go)
            self._condition(job, "Suspended", "False", "Resumed", "TrainJob is resumed")
            return True
        if run.said != refused[1]:
            run.said = refused[1]
            none = ("False", "NoReservation", "The workload has no reservation")
            self._say(job, QuotaReserved=("False", *refused), Admitted=none)
            self._event(job, "Workload", *refused)
        return False

    def _pod(self, job: Object, run: _Run, index: int) -> Object:
        meta, trainer = job["metadata"], job["spec"].get("trainer", {})
        labels = {
            "jobset.sigs.k8s.io/jobset-name": meta["name"],
            "jobset.sigs.k8s.io/replicatedjob-name": "node",
            "jobset.sigs.k8s.io/restart-attempt": str(run.attempt),
            "batch.kubernetes.io/job-name": f"{meta['name']}-node-0",
            "batch.kubernetes.io/job-completion-index": str(index),
            "app.kubernetes.io/component": "training",
        }
        env = [
            {"name": "PET_NNODES", "value": str(trainer.get("numNodes", 1))},
            {"name": "PET_NODE_RANK", "value": str(index)},
            {"name": "PET_NPROC_PER_NODE", "value": str(trainer.get("numProcPerNode", "auto"))},
            {"name": "PET_MASTER_ADDR", "value": f"{meta['name']}-node-0-0.{meta['name']}"},
            {"name": "PET_MASTER_PORT", "value": "29500"},
        ]
        container = {"name": "node", "image": trainer.get("image", ""), "env": [*trainer.get("env", []), *env]}
        container["command"] = trainer.get("command", ["torchrun", "-m", "svdflow.training.train.worker"])
        container |= {"args": trainer.get("args", []), "resources": trainer.get("resourcesPerNode", {})}
        owner = {"apiVersion": TRAINJOBS.api_version, "kind": "TrainJob", "name": meta["name"], "uid": meta["uid"]}
        pod = {
            "metadata": {
                "generateName": f"{meta['name']}-node-0-{index}-",
                "labels": labels,
                "ownerReferences": [{**owner, "controller": True}],
            },
            "spec": {"containers": [container], "restartPolicy": "Never"},
        }
        return self.store.create(PODS, meta["namespace"], pod)

    def _ended(self, pod: Object, ending: Ending | None) -> None:
        with self._lock:
            run = self._of(pod)
            if run is None:
                self.jobs.ended(pod, ending)
            else:
                self._count(run, pod, ending)
        with self.store.changed:
            self.store.changed.notify_all()

    def _count(self, run: _Run, pod: Object, ending: Ending | None) -> None:
        if run.pods.pop(pod["metadata"]["uid"], None):
            run.endings[pod["metadata"]["uid"]] = ending

    def _of(self, pod: Object) -> _Run | None:
        owners = [owner["uid"] for owner in pod["metadata"].get("ownerReferences", [])]
        return next((run for uid, run in self._runs.items() if uid in owners), None)

    def _now(self, pod: Object) -> Object | None:
        try:
            return self.store.get(PODS, pod["metadata"]["namespace"], pod["metadata"]["name"])
        except Refused:
            return None

    def _clear(self, run: _Run, keep_failed: bool = True) -> None:
        """Delete the pods; those that failed by themselves stay where the set has failed for good."""
        ended = [] if keep_failed else [uid for uid in run.endings]
        for pod in [*run.pods.values(), *(p for p in self.store.objects(PODS) if p["metadata"]["uid"] in ended)]:
            try:
                self.store.delete(PODS, pod["metadata"]["namespace"], pod["metadata"]["name"])
            except Refused:
                pass
        run.pods.clear()

    def _mark(self, pod: Object, reason: str, message: str) -> None:
        meta = pod["metadata"]
        with self._lock:
            run = self._of(pod)
            if run:
                run.disrupted.add(meta["uid"])
            else:
                self.jobs.disrupted.add(meta["uid"])
        target = {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message}
        target["lastTransitionTime"] = now()

        def change(old: Object) -> Object:
            conditions = [c for c in old["status"].get("conditions", []) if c["type"] != "DisruptionTarget"]
            return {**old, "status": {**old["status"], "conditions": [*conditions, target]}}

        self.store.update(PODS, meta["namespace"], meta["name"], change, status=True)

    # what is written about it

    def _fail(self, job: Object, run: _Run, reason: str, message: str) -> None:
        self._clear(run)
        self._status(job, run, failed=1)
        self._condition(job, "Failed", "True", reason, message)
        self._say(job, Finished=("True", "Failed", message))
        self._finish(job, run)

    def _finish(self, job: Object, run: _Run) -> None:
        run.done = True
        if job["metadata"].get("labels", {}).get(QUEUE):
            self.free += _gpus(job)

    def _status(self, job: Object, run: _Run, **counts: int) -> None:
        shown = {"name": "node", "active": 0, "failed": 0, "ready": 0, "succeeded": 0, "suspended": 0, **counts}
        self.store.set_status(TRAINJOBS, job["metadata"]["namespace"], job["metadata"]["name"], jobsStatus=[shown])

    def _condition(self, job: Object, kind: str, status: str, reason: str, message: str) -> None:
        set_conditions(self.store, TRAINJOBS, job, **{kind: (status, reason, message)})

    def _workload(self, job: Object) -> Object:
        meta = job["metadata"]
        name = f"trainjob-{meta['name']}-{meta['uid'][:5]}"
        try:
            return self.store.get(WORKLOADS, meta["namespace"], name)
        except Refused:
            owner = {"apiVersion": TRAINJOBS.api_version, "kind": "TrainJob", "name": meta["name"], "uid": meta["uid"]}
            labels = {"kueue.x-k8s.io/job-uid": meta["uid"]}
            spec = {"active": True, "queueName": meta["labels"][QUEUE]}
            made = {"name": name, "labels": labels, "ownerReferences": [{**owner, "controller": True}]}
            return self.store.create(WORKLOADS, meta["namespace"], {"metadata": made, "spec": spec})

    def _say(self, job: Object, **conditions: tuple[str, str, str]) -> None:
        if job["metadata"].get("labels", {}).get(QUEUE):
            set_conditions(self.store, WORKLOADS, self._workload(job), **conditions)

    def _event(self, job: Object, kind: str, reason: str, message: str) -> None:
        meta = job["metadata"]
        involved = {"kind": kind, "namespace": meta["namespace"], "name": meta["name"], "uid": meta["uid"]}
        event: Object = {"metadata": {"name": f"{meta['name']}.{uuid.uuid4().hex[:16]}"}, "involvedObject": involved}
        event |= {"reason": reason, "message": message, "type": "Warning"}
        self.store.create(EVENTS, meta["namespace"], event)


def _gpus(job: Object) -> int:
    each = dig(job, "spec.trainer.resourcesPerNode.limits") or {}
    return int(each.get("nvidia.com/gpu", 0)) * (dig(job, "spec.trainer.numNodes") or 1)
