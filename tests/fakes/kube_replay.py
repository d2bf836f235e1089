"""Plays a recording of real controllers back on the fake: a job that a test creates lives through what was recorded.

    with replaying(api.store, RECORDINGS / "trainjob_quota_wait.jsonl", "svd-c") as played:
        ...  # create a TrainJob in any namespace: it gets the states that svd-c had

Name, namespace and uid of the recorded job are replaced by those of the created one, in pods, Workloads and events too.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .kube_rules import RESOURCES
from .kube_store import Object, Refused, Resource, Store

_SERVED = {(r.api_version, r.kind): r for r in RESOURCES}


@contextmanager
def replaying(
    store: Store, path: Path, name: str, kind: str = "TrainJob", speed: float = 50.0, deleted: bool = True
) -> Iterator[threading.Event]:
    """Wait for a created object of ``kind``, then write what the recording has for ``name``, ``speed`` times as fast.

    Without ``deleted`` only until who made the recording deleted the job: it waits for whoever looks at it.

    Yields an event that is set when the recording is at its end.
    """
    events = _recorded(path, name, kind)
    if not deleted:
        gone = [at for at, (_, change, obj) in enumerate(events) if change == "DELETED" and obj["kind"] == kind]
        del events[min(gone, default=len(events)) :]
    over, stop = threading.Event(), threading.Event()
    thread = threading.Thread(target=_play, args=(store, events, name, kind, speed, over, stop), daemon=True)
    thread.start()
    try:
        yield over
    finally:
        stop.set()
        thread.join(10)


def _recorded(path: Path, name: str, kind: str) -> list[tuple[float, str, Object]]:
    """The events of the watches that concern the job, from its creation on."""
    out: list[tuple[float, str, Object]] = []
    with open(path) as stream:
        for line in map(json.loads, stream):
            event = line.get("event")
            if event and event["type"] in ("ADDED", "MODIFIED", "DELETED") and name in json.dumps(event["object"]):
                obj = event["object"]
                if out or (obj["kind"] == kind and obj["metadata"]["name"] == name):
                    out.append((line["t_s"], event["type"], obj))
    return out


def _play(
    store: Store, events: list[tuple[float, str, Object]], name: str, kind: str, speed: float,
    over: threading.Event, stop: threading.Event,
) -> None:  # fmt: skip
    resource = next(r for r in RESOURCES if r.kind == kind)
    own = _created(store, resource, stop)
    if own is None:
        return
    recorded = events[0][2]["metadata"]
    begun, first = time.monotonic(), events[0][0]
    for t_s, change, obj in events:
        if stop.wait(max(0.0, (t_s - first) / speed - (time.monotonic() - begun))):
            return
        served = _SERVED.get((obj["apiVersion"], obj["kind"]))
        if served is None:
            continue
        obj = _renamed(obj, recorded, own)
        try:
            _write(store, served, change, obj, own)
        except Refused:
            continue  # the test has deleted it
    over.set()


def _created(store: Store, resource: Resource, stop: threading.Event) -> Object | None:
    while not stop.is_set():
        with store.changed:
            found = store.objects(resource)
            if found:
                return found[-1]["metadata"]
            store.changed.wait(0.05)
    return None


def _renamed(obj: Object, recorded: Object, own: Object) -> Object:
    text = json.dumps(obj).replace(recorded["uid"], own["uid"]).replace(recorded["name"], own["name"])
    return json.loads(text.replace(f'"{recorded["namespace"]}"', f'"{own["namespace"]}"'))


def _write(store: Store, resource: Resource, change: str, obj: Object, own: Object) -> None:
    meta = obj["metadata"]
    if change == "DELETED":
        store.drop(resource, meta["namespace"], meta["name"])
    elif meta["uid"] != own["uid"]:
        store.impose(resource, meta["namespace"], obj)
    elif change == "MODIFIED":  # the created object keeps what it was created with
        before = store.get(resource, meta["namespace"], meta["name"])
        spec = {**before["spec"], "suspend": obj["spec"].get("suspend")}
        store.impose(resource, meta["namespace"], {**before, "spec": spec, "status": obj.get("status", {})})
