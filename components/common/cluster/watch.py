"""Watching objects: a list, then every change after it, through disconnects, silence and versions that have expired."""

from __future__ import annotations

import json
import queue
import random
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

from .api import Cluster
from .errors import Broken, ClusterError, Expired
from .kinds import Kind, Object

_SERVER_ENDS_S = 240  # a server ends a watch by itself: asked for, so that load moves between servers
_SILENCE_S = 90.0  # a server sends a bookmark about once a minute
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 10.0


@dataclass(frozen=True)
class Event:
    """A change of an object; LISTED ends a list (``object`` is empty): what was not among it is not there.

    A DELETED that was noticed by a list only has the object's name, namespace, uid and version.
    """

    type: Literal["ADDED", "MODIFIED", "DELETED", "LISTED"]
    kind: Kind
    object: Object


def watch(
    cluster: Cluster,
    kind: Kind,
    labels: str = "",
    fields: str = "",
    stop: Callable[[], bool] = lambda: False,
    silence_s: float = _SILENCE_S,
) -> Iterator[Event]:
    """Events of the objects that the server's selectors let through, without end, none passed over.

    Raises:
        ClusterError: refused (no such kind, not allowed), or the server was away beyond the cluster's patience.
    """
    known: dict[str, Object] = {}  # metadata by name, of what has been told
    version, wait, quiet_since = "", _FIRST_WAIT_S, cluster.now()
    while not stop():
        try:
            if not version:
                version = yield from _list(cluster, kind, labels, fields, known)
            for event in _stream(cluster, kind, labels, fields, version, silence_s):
                meta = event.object["metadata"]
                version, wait, quiet_since = meta["resourceVersion"], _FIRST_WAIT_S, cluster.now()
                if event.type == "LISTED":  # a bookmark: nothing but a newer version
                    continue
                if event.type == "DELETED":
                    known.pop(meta["name"], None)
                else:
                    known[meta["name"]] = _brief(meta)
                yield event
            quiet_since = cluster.now()  # the server has ended it, as it was asked to
        except Expired:
            version = ""
        except Broken:
            pass
        except ClusterError as error:
            if stop():
                return
            if not error.passing or cluster.now() - quiet_since > cluster.patience_s:
                raise
        if not stop():  # a server that ends every stream at once is not to be asked in a hurry
            cluster.pause(wait * random.uniform(0.5, 1.0))
            wait = min(wait * 2, _LONGEST_WAIT_S)


def _stream(cluster: Cluster, kind: Kind, labels: str, fields: str, version: str, silence_s: float) -> Iterator[Event]:
    query = {"watch": "true", "resourceVersion": version, "allowWatchBookmarks": "true"}
    query |= {"timeoutSeconds": str(_SERVER_ENDS_S), "labelSelector": labels, "fieldSelector": fields}
    with cluster.lines(kind, "", "", query, silence_s) as lines:
        for line in lines:
            if not line.strip():
                continue
            try:
                event = json.loads(line)
            except ValueError:
                raise Broken(f"watch {kind.plural}: half a line", passing=True) from None
            try:
                what, obj = event["type"], event["object"]
                if what != "ERROR":
                    obj["metadata"]["resourceVersion"]  # without it there is no going on from here
            except (KeyError, TypeError):
                said = line[:200].decode(errors="replace")
                raise ClusterError(f"watch {kind.plural}: this is no event: {said}", passing=True) from None
            if what == "ERROR":
                told, code = obj.get("message", "an error without a message"), obj.get("code", 0)
                if code == 410:
                    raise Expired(f"watch {kind.plural}: {told}", 410)
                raise ClusterError(f"watch {kind.plural}: {told} ({code})", code, passing=code >= 500 or code == 429)
            yield Event("LISTED" if what == "BOOKMARK" else what, kind, obj)


def _list(
    cluster: Cluster, kind: Kind, labels: str, fields: str, known: dict[str, Object]
) -> Generator[Event, None, str]:
    """What a list says beyond what is known, which it brings up to date, page by page. Returns the list's version."""
    there, version = set(), ""
    for items, listed_at in cluster.pages(kind, labels, fields):
        version = listed_at
        for item in items:
            meta, before = item["metadata"], known.get(item["metadata"]["name"])
            there.add(meta["name"])
            if before is not None and before["uid"] != meta["uid"]:
                yield Event("DELETED", kind, {"metadata": before})
                before = None
            known[meta["name"]] = _brief(meta)
            if before is None or before["resourceVersion"] != meta["resourceVersion"]:
                yield Event("MODIFIED" if before else "ADDED", kind, item)
    for name in [name for name in known if name not in there]:
        yield Event("DELETED", kind, {"metadata": known.pop(name)})
    yield Event("LISTED", kind, {})
    return version


def _brief(meta: Object) -> Object:
    return {key: meta.get(key, "") for key in ("name", "namespace", "uid", "resourceVersion")}


class Watches:
    """Several watches at once, each in a thread; their events come out one after another. Use as a context manager."""

    def __init__(self, cluster: Cluster, *watched: tuple[Kind, str, str], silence_s: float = _SILENCE_S) -> None:
        self._events: queue.Queue[Event | Exception] = queue.Queue(1000)
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._follow, args=(cluster, *what, silence_s), daemon=True) for what in watched
        ]

    def __enter__(self) -> Watches:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stopped.set()

    def next(self, timeout_s: float) -> Event | None:
        """The next event, or None when there was none for ``timeout_s``. Raises what ended a watch."""
        try:
            event = self._events.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(event, Exception):
            raise event
        return event

    def _follow(self, cluster: Cluster, kind: Kind, labels: str, fields: str, silence_s: float) -> None:
        stop = lambda: self._stopped.is_set() or cluster.closed  # noqa: E731
        try:
            for event in watch(cluster, kind, labels, fields, stop, silence_s):
                self._put(event, stop)
        except Exception as error:  # whatever it is: a watch that ended without a word would be waited for for ever
            self._put(error, stop)

    def _put(self, event: Event | Exception, stop: Callable[[], bool]) -> None:
        while not stop():
            try:
                self._events.put(event, timeout=0.2)
                return
            except queue.Full:
                continue
