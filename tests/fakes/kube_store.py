"""What a Kubernetes API server keeps: objects, one rising resource version, the events between two versions, owners."""

from __future__ import annotations

import base64
import bisect
import copy
import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True)
class Resource:
    """A served kind. ``custom``: defined by a CRD, which answers a little differently from a built-in kind."""

    group: str
    version: str
    plural: str
    kind: str
    custom: bool = False
    namespaced: bool = True
    fields: tuple[str, ...] = ()  # that a field selector may name, beside metadata.name and metadata.namespace

    @property
    def path(self) -> str:
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def details(self, name: str = "", kind: bool = False) -> Object:
        named = {"name": name} if name else {}
        return named | ({"group": self.group} if self.group else {}) | {"kind": self.kind if kind else self.plural}


class Refused(Exception):
    """An answer that is no success: an HTTP status and the ``Status`` object in its body."""

    def __init__(self, code: int, reason: str, message: str, details: Object | None = None, **metadata: str) -> None:
        super().__init__(message)
        self.code, self.headers = code, {}
        self.status: Object = {"kind": "Status", "apiVersion": "v1", "metadata": metadata, "status": "Failure"}
        self.status |= {"message": message}
        self.status |= ({"reason": reason} if reason else {}) | ({} if details is None else {"details": details})
        self.status["code"] = code


def not_found(resource: Resource, name: str) -> Refused:
    return Refused(404, "NotFound", f'{resource.qualified} "{name}" not found', resource.details(name))


def conflict(resource: Resource, name: str, why: str = "", kind: bool = False) -> Refused:
    shown = f"{resource.kind}.{resource.group}" if kind else resource.qualified
    why = why or "the object has been modified; please apply your changes to the latest version and try again"
    message = f'Operation cannot be fulfilled on {shown} "{name}": {why}'
    return Refused(409, "Conflict", message, resource.details(name, kind))


def bad_request(message: str) -> Refused:
    return Refused(400, "BadRequest", message)


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def dig(obj: Object, path: str) -> Any:
    value: Any = obj
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


@dataclass(frozen=True)
class Selector:
    """Which objects a list or a watch asks for."""

    labels: tuple[tuple[str, str, tuple[str, ...]], ...] = ()  # key, operator, values
    fields: tuple[tuple[str, str, str], ...] = ()  # path, operator, value

    def matches(self, obj: Object) -> bool:
        labels = obj["metadata"].get("labels") or {}
        for key, operator, values in self.labels:
            there = key in labels and (not values or labels[key] in values)
            if there == (operator in ("!", "notin")):
                return False
        for path, operator, value in self.fields:
            found = dig(obj, path)
            if (str(0 if found is None and path == "status.successful" else found or "") == value) != (operator == "="):
                return False
        return True


_REQUIREMENT = re.compile(
    r"\s*(?:(?P<not>!)(?P<absent>[\w./-]+)|(?P<key>[\w./-]+)\s*(?:(?P<op>==?|!=)\s*(?P<value>[\w.-]*)|"
    r"\s(?P<set>in|notin)\s*\((?P<values>[^)]*)\))?)\s*(?:,|$)"
)


def parse_labels(text: str) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    out: list[tuple[str, str, tuple[str, ...]]] = []
    at = 0
    while at < len(text):
        found = _REQUIREMENT.match(text, at)
        if found is None:
            wrong = re.search(r"[=!]=(=)", text[at:]) or re.search(r"()$", text[at:])
            raise bad_request(f"unable to parse requirement: found '{wrong[1] if wrong else ''}', expected: identifier")
        at = found.end()
        if found["not"]:
            out.append((found["absent"], "!", ()))
        elif found["set"]:
            out.append((found["key"], found["set"], tuple(v.strip() for v in found["values"].split(","))))
        elif found["op"]:
            out.append((found["key"], "notin" if found["op"] == "!=" else "in", (found["value"],)))
        else:
            out.append((found["key"], "exists", ()))
    return tuple(out)


def parse_fields(resource: Resource, text: str) -> tuple[tuple[str, str, str], ...]:
    out = []
    for part in filter(None, text.split(",")):
        path, operator, value = re.split(r"(!=|==?)", part, maxsplit=1)
        if path not in ("metadata.name", "metadata.namespace", *resource.fields):
            custom = f"field label not supported: {path}"
            raise bad_request(custom if resource.custom else f'field label "{path}" not supported for {resource.kind}')
        out.append((path, "!=" if operator == "!=" else "=", value))
    return tuple(out)


@dataclass(frozen=True)
class Change:
    version: int
    namespace: str
    new: Object | None  # None: deleted
    old: Object | None  # None: created
    last: Object  # what an event shows: the new state, or the last one under the version of its deletion


@dataclass
class Log:
    """What a container has written: lines with their times; ``closed`` when it has ended."""

    lines: list[tuple[str, str]] = field(default_factory=list)
    closed: bool = False


@dataclass
class _Shelf:
    objects: dict[tuple[str, str], Object] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)


Admission = Callable[[Resource, Object, Object | None], None]


class Store:
    """All objects. Stored ones are never changed in place: a write stores another one.

    Args:
        admission: called before a write with the object to be stored, which it may fill in, and the old one; raises
            ``Refused``.
    """

    def __init__(self, admission: Admission = lambda resource, new, old: None, first_version: int = 1000) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.version = first_version
        self.namespaces = {"default", "svdflow"}
        self.logs: dict[tuple[str, str], Log] = {}
        self.pods_end_slowly = False  # a deleted pod that has a node stays until its kubelet has ended it
        self._admission = admission
        self._oldest = first_version
        self._shelves: dict[Resource, _Shelf] = {}
        self._pages: dict[int, dict[Resource, list[Object]]] = {}

    # reading

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        """The stored object itself: copy it before changing it."""
        with self.changed:
            try:
                return self._shelf(resource).objects[namespace, name]
            except KeyError:
                raise not_found(resource, name) from None

    def objects(
        self, resource: Resource, namespace: str | None = None, selector: Selector | None = None
    ) -> list[Object]:
        with self.changed:
            found = sorted(self._shelf(resource).objects.items())
        return [o for (ns, _), o in found if namespace in (None, ns) and (selector is None or selector.matches(o))]

    def page(
        self, resource: Resource, namespace: str | None, selector: Selector, limit: int, token: str
    ) -> tuple[list[Object], Object]:
        """One page of a list, as of the version of its first page, and the list's metadata."""
        with self.changed:
            version, start = self.version, ""
            found = self.objects(resource, namespace)
            if token:
                version, start = _continued(token)
                if version == -1:
                    version = self.version
                elif resource in self._pages.get(version, {}):
                    found = self._pages[version][resource]
                else:
                    raise Refused(410, "Expired", _TOO_OLD_PAGE, **{"continue": _token(-1, start)})
            matching = [o for o in found if o["metadata"]["name"] >= start and selector.matches(o)]
            meta: Object = {"resourceVersion": str(version)}
            rest = matching[limit:] if limit else []
            if rest:
                self._pages.setdefault(version, {})[resource] = found
                meta["continue"] = _token(version, rest[0]["metadata"]["name"])
                if not selector.labels and not selector.fields:
                    meta["remainingItemCount"] = len(rest)
            return matching[: limit or None], meta

    def watch(
        self, resource: Resource, namespace: str | None, selector: Selector, since: int, closed: Callable[[], bool]
    ) -> Iterator[tuple[str, Object] | None]:
        """Events after a version, without end; None now and then, when there is nothing new."""
        shelf = self._shelf(resource)
        if since < self._oldest:
            raise too_old(since, self._oldest)
        while not closed():
            with self.changed:
                news = self._after(shelf, since)
                if not news:
                    self.changed.wait(0.05)
                    news = self._after(shelf, since)
                since = max(since, self.version)
            for change in news:
                if namespace in (None, change.namespace) and (event := _event(change, selector)):
                    yield event
            yield None

    def changes(self, resource: Resource, since: int) -> list[Change]:
        """For controllers: what has been written after a version."""
        with self.changed:
            return self._after(self._shelf(resource), since)

    @staticmethod
    def _after(shelf: _Shelf, version: int) -> list[Change]:
        return shelf.changes[bisect.bisect_right(shelf.changes, version, key=lambda change: change.version) :]

    def compact(self) -> None:
        """Forget what was before now: older versions and pages begun earlier answer 410 from here on."""
        with self.changed:
            self._oldest, self._pages = self.version, {}

    # writing

    def create(self, resource: Resource, namespace: str, given: Object, dry_run: bool = False) -> Object:
        with self.changed:
            obj = copy.deepcopy(given)
            meta = obj.setdefault("metadata", {})
            if not meta.get("name") and meta.get("generateName"):
                meta["name"] = meta["generateName"] + uuid.uuid4().hex[:5]
            if namespace and namespace not in self.namespaces:
                raise Refused(404, "NotFound", f'namespaces "{namespace}" not found',
                              {"name": namespace, "kind": "namespaces"})  # fmt: skip
            if meta.get("namespace", namespace) != namespace:
                told = "the namespace of the provided object does not match the namespace sent on the request"
                raise bad_request(told)
            obj |= {"apiVersion": resource.api_version, "kind": resource.kind}
            if namespace:
                meta["namespace"] = namespace
            if resource.kind in _STATUS:
                obj.pop("status", None)
            meta |= {"uid": str(uuid.uuid4()), "creationTimestamp": now()}
            if "spec" in obj:
                meta["generation"] = 1
            self._admission(resource, obj, None)
            name = meta["name"]
            old = self._shelf(resource).objects.get((namespace, name))
            if old is not None:
                leaving = "object is being deleted: " if "deletionTimestamp" in old["metadata"] else ""
                message = f'{leaving}{resource.qualified} "{name}" already exists'
                raise Refused(409, "AlreadyExists", message, resource.details(name))
            if dry_run:
                return obj
            obj = self._put(resource, namespace, obj, None)
            self._collect(resource, obj)
            return obj

    def update(
        self, resource: Resource, namespace: str, name: str, change: Callable[[Object], Object], status: bool = False
    ) -> Object:
        """Store what ``change`` makes of the object; ``status``: only its status, otherwise all but that.

        A resource version or a uid in the outcome is a precondition, as in the body of a PUT or PATCH.
        """
        with self.changed:
            old = self.get(resource, namespace, name)
            new = change(copy.deepcopy(old))
            meta, before = new["metadata"], old["metadata"]
            if meta.get("resourceVersion") not in (before["resourceVersion"], None):
                raise conflict(resource, name)
            if meta.get("uid", before["uid"]) != before["uid"]:
                told = f"UID in precondition: {meta['uid']}, UID in object meta: {before['uid']}"
                raise conflict(resource, name, f"StorageError: invalid object, Code: 4, Precondition failed: {told}")
            if status:
                new = {**old, "status": new.get("status", {})}
            elif resource.kind in _STATUS:
                new = {**new, "status": old["status"]} if "status" in old else _without(new, "status")
            keep = ("uid", "creationTimestamp", "generation", "deletionTimestamp", "deletionGracePeriodSeconds")
            kept = {key: before[key] for key in keep if key in before}
            labels = {k: v for k, v in new["metadata"].items() if v not in (None, {}, [])}
            new["metadata"] = {**labels, **kept, "name": name, "resourceVersion": before["resourceVersion"]}
            if new.get("spec") != old.get("spec"):
                new["metadata"]["generation"] = before.get("generation", 0) + 1
            self._admission(resource, new, old)
            if new == old:
                return old
            if "deletionTimestamp" in before and not new["metadata"].get("finalizers"):
                self._remove(resource, namespace, new)
                return new
            new = self._put(resource, namespace, new, old)
            if new["metadata"].get("ownerReferences") != before.get("ownerReferences"):
                self._collect(resource, new)
            return new

    def delete(self, resource: Resource, namespace: str, name: str, options: Object | None = None) -> Object | None:
        """Returns the object where it stays for now (finalizers), None where it has gone."""
        with self.changed:
            options = options or {}
            old = self.get(resource, namespace, name)
            wanted, meta = options.get("preconditions") or {}, old["metadata"]
            for key, shown in (("uid", "UID"), ("resourceVersion", "ResourceVersion")):
                if wanted.get(key) and wanted[key] != meta[key]:
                    told = f"the {shown} in the precondition ({wanted[key]}) does not match the {shown} in record"
                    told += f" ({meta[key]}). The object might have been "
                    told += "deleted and then recreated" if key == "uid" else "modified"
                    raise conflict(resource, name, told, kind=True)
            if options.get("dryRun"):
                return None
            policy = options.get("propagationPolicy") or ("Orphan" if resource.kind == "Job" else "Background")
            finalizers = list(meta.get("finalizers", []))
            grace = options.get("gracePeriodSeconds")
            lingers = resource.kind == "Pod" and self.pods_end_slowly and dig(old, "spec.nodeName") and grace != 0
            if policy == "Foreground":
                finalizers.append("foregroundDeletion")
            elif policy == "Orphan":
                finalizers.append("orphan")
            if finalizers or lingers:
                new = copy.deepcopy(old)
                if finalizers:
                    new["metadata"]["finalizers"] = finalizers
                new["metadata"].setdefault("deletionTimestamp", now())
                seconds = (30 if grace is None else grace) if resource.kind == "Pod" else 0
                new["metadata"].setdefault("deletionGracePeriodSeconds", seconds)
                if "generation" in meta and "deletionTimestamp" not in meta:
                    new["metadata"]["generation"] += 1
                new = self._put(resource, namespace, new, old)
                if policy in ("Foreground", "Orphan"):
                    self._settle(resource, namespace, name, policy)
                return new
            self._remove(resource, namespace, old)
            return None

    def set_status(self, resource: Resource, namespace: str, name: str, **values: Any) -> Object:
        """For controllers: replace fields of the status."""
        merged = lambda o: {**o, "status": {**o.get("status", {}), **values}}  # noqa: E731
        return self.update(resource, namespace, name, merged, status=True)

    def impose(self, resource: Resource, namespace: str, obj: Object) -> Object:
        """For controllers: store an object as it is, new or not, without admission, under the next version."""
        with self.changed:
            old = self._shelf(resource).objects.get((namespace, obj["metadata"]["name"]))
            return self._put(resource, namespace, copy.deepcopy(obj), old)

    def drop(self, resource: Resource, namespace: str, name: str) -> None:
        """For controllers: an object goes at once, whatever its finalizers."""
        with self.changed:
            old = self._shelf(resource).objects.get((namespace, name))
            if old is not None:
                self._remove(resource, namespace, old)

    def log(self, namespace: str, pod: str, *lines: str, end: bool = False, at: str | None = None) -> None:
        """For the kubelet: add lines to a pod's log; ``end`` when its container has ended."""
        with self.changed:
            log = self.logs.setdefault((namespace, pod), Log())
            for line in lines:
                log.lines.append((at or datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z"), line))
            log.closed = log.closed or end
            self.changed.notify_all()

    # inside

    def _shelf(self, resource: Resource) -> _Shelf:
        return self._shelves.setdefault(resource, _Shelf())

    def _put(self, resource: Resource, namespace: str, obj: Object, old: Object | None) -> Object:
        self.version += 1
        obj = {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(self.version)}}
        shelf = self._shelf(resource)
        shelf.objects[namespace, obj["metadata"]["name"]] = obj
        shelf.changes.append(Change(self.version, namespace, obj, old, obj))
        self.changed.notify_all()
        return obj

    def _remove(self, resource: Resource, namespace: str, obj: Object) -> None:
        self.version += 1
        shelf = self._shelf(resource)
        shelf.objects.pop((namespace, obj["metadata"]["name"]), None)
        last = {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(self.version)}}
        shelf.changes.append(Change(self.version, namespace, None, obj, last))
        self.changed.notify_all()
        for kind, child in self._dependents(obj["metadata"]["uid"]):
            self._collect(kind, child)

    def _dependents(self, uid: str) -> list[tuple[Resource, Object]]:
        return [
            (kind, o)
            for kind, shelf in list(self._shelves.items())
            for o in list(shelf.objects.values())
            if any(owner["uid"] == uid for owner in o["metadata"].get("ownerReferences", []))
        ]

    def _collect(self, resource: Resource, obj: Object) -> None:
        """What the garbage collector does: drop references to owners that are gone, delete what has no owner left."""
        owners = obj["metadata"].get("ownerReferences", [])
        if not owners:
            return
        uids = {o["metadata"]["uid"] for shelf in self._shelves.values() for o in shelf.objects.values()}
        there = [owner for owner in owners if owner["uid"] in uids]
        namespace, name = obj["metadata"].get("namespace", ""), obj["metadata"]["name"]
        if not there and "deletionTimestamp" not in obj["metadata"]:
            self.delete(resource, namespace, name, {"propagationPolicy": "Background"})
        elif there and len(there) < len(owners):
            self._own(resource, namespace, name, there)

    def _own(self, resource: Resource, namespace: str, name: str, owners: list[Object]) -> None:
        old = self.get(resource, namespace, name)
        self._put(resource, namespace, {**old, "metadata": {**old["metadata"], "ownerReferences": owners}}, old)

    def _settle(self, resource: Resource, namespace: str, name: str, policy: str) -> None:
        """Foreground: dependents go first. Orphan: they lose the reference and stay."""
        uid = self.get(resource, namespace, name)["metadata"]["uid"]
        for kind, child in self._dependents(uid):
            place, called = child["metadata"].get("namespace", ""), child["metadata"]["name"]
            if policy == "Orphan":
                rest = [owner for owner in child["metadata"]["ownerReferences"] if owner["uid"] != uid]
                self._own(kind, place, called, rest)
            else:
                self.delete(kind, place, called, {"propagationPolicy": "Background"})
        done = "orphan" if policy == "Orphan" else "foregroundDeletion"

        def without(obj: Object) -> Object:
            obj["metadata"]["finalizers"] = [f for f in obj["metadata"].get("finalizers", []) if f != done]
            return obj

        self.update(resource, namespace, name, without)


_STATUS = {"Pod", "Job", "TrainJob", "Workload", "JobSet"}  # kinds whose status is a subresource
_TOO_OLD_PAGE = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new list without "
    "the continue parameter, or use the continue token in this response to retrieve the remainder of the results. "
    "Continuing with the provided token results in an inconsistent list - objects that were created, modified, or "
    "deleted between the time the first chunk was returned and now may show up in the list."
)


def too_old(version: int, oldest: int) -> Refused:
    return Refused(410, "Expired", f"too old resource version: {version} ({oldest})")


def _event(change: Change, selector: Selector) -> tuple[str, Object] | None:
    before = change.old is not None and selector.matches(change.old)
    after = change.new is not None and selector.matches(change.new)
    if after:
        return ("MODIFIED" if before else "ADDED"), change.last
    if not before:
        return None
    if change.new is None:
        return "DELETED", change.last
    assert change.old is not None  # it no longer matches: shown as it was, under the version at which it went
    version = change.last["metadata"]["resourceVersion"]
    return "DELETED", {**change.old, "metadata": {**change.old["metadata"], "resourceVersion": version}}


def _token(version: int, start: str) -> str:
    text = json.dumps({"v": "meta.k8s.io/v1", "rv": version, "start": start + "\0"}, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _continued(token: str) -> tuple[int, str]:
    try:
        values = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        return int(values["rv"]), values["start"].rstrip("\0")
    except (ValueError, KeyError, TypeError):
        raise bad_request("invalid continue token: continue key is not valid") from None


def set_conditions(store: Store, resource: Resource, obj: Object, **given: tuple[str, str, str]) -> Object:
    """Set conditions in an object's status (status, reason, message by type), in one write."""
    meta = obj["metadata"]

    def change(old: Object) -> Object:
        conditions = {c["type"]: c for c in old.get("status", {}).get("conditions", [])}
        for kind, (status, reason, message) in given.items():
            same = conditions.get(kind, {"status": ""})
            moment = same["lastTransitionTime"] if same["status"] == status else now()
            conditions[kind] = {"type": kind, "status": status, "reason": reason, "message": message}
            conditions[kind]["lastTransitionTime"] = moment
        return {**old, "status": {**old.get("status", {}), "conditions": list(conditions.values())}}

    return store.update(resource, meta["namespace"], meta["name"], change, status=True)


def _without(obj: Object, key: str) -> Object:
    return {k: v for k, v in obj.items() if k != key}


def wait_for(condition: Callable[[], Any], timeout_s: float = 120.0) -> Any:
    """Wait until something holds; for tests. The time is for what never comes to pass, however busy the machine."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)
    return value
