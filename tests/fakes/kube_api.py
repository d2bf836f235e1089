"""A Kubernetes API server for tests: real HTTP on loopback, so that the official client talks to it as to any other.

    with KubeAPI() as api:
        client = kubernetes.client.ApiClient(api.configuration())

Served: pods and their logs, events, Jobs, TrainJobs, Workloads, Workflows and what stands in ``kube_rules.RESOURCES``;
list, watch, get, create, replace, patch (merge, strategic merge of built-in kinds, JSON patch), delete, the status
subresource. Controllers (``kube_controllers``) work on ``api.store`` directly.

Trouble is made with ``fail``, ``away``, ``cut_streams``, ``stall_streams``, ``store.compact`` and ``expire``. What it
answers is held against recordings of a real server in ``tests/unit/test_fake_kube_api.py``.
"""

from __future__ import annotations

import copy
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from ..ports import free_port
from .kube_patches import json_patch, merge_patch
from .kube_rules import PODS, RESOURCES, RUNTIMES, admit, invalid, unknown_fields
from .kube_store import Object, Refused, Resource, Selector, Store, bad_request, parse_fields, parse_labels
from .kube_trouble import Request, Trouble, failure

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
JSON_PATCH = "application/json-patch+json"
MAX_BODY_BYTES = 3 * 1024 * 1024
_ORPHANS = (
    "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set "
    "propagationPolicy=Orphan to suppress this warning"
)
_PATH = re.compile(
    r"/(?:api/(?P<core>v1)|apis/(?P<group>[^/]+)/(?P<version>[^/]+))(?:/namespaces/(?P<namespace>[^/]+))?"
    r"/(?P<plural>[a-z]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>status|log))?"
)


class KubeAPI:
    """The server. Use as a context manager, or ``start`` and ``stop``.

    Args:
        token: of user ``system:admin``; more can be added to ``tokens``.
        bookmark_s: how often a watch that asks for bookmarks gets one (a real server: about a minute).
        future_s: how long a list waits for a version that is not there yet (a real server: 3 s).
        resources: the kinds that are served; leave one out and it answers as if its CRD were not installed.
        certificate: files of a certificate and its key; with them it speaks TLS.
    """

    def __init__(
        self,
        token: str = "token",
        bookmark_s: float = 0.2,
        future_s: float = 0.05,
        resources: tuple[Resource, ...] = RESOURCES,
        certificate: tuple[str, str] | None = None,
    ) -> None:
        self.token, self.bookmark_s, self.future_s, self.certificate = token, bookmark_s, future_s, certificate
        self.resources = {(r.group, r.version, r.plural): r for r in resources}
        self.store = Store(self._admit)
        self.tokens: dict[str, tuple[str, float]] = {token: ("system:admin", float("inf"))}  # user, until (monotonic)
        # the rules of Roles, by user and namespace; a user that is not in here may do all
        self.grants: dict[str, dict[str, list[Object]]] = {}
        self.runtimes_must_exist = False
        self.requests: list[Request] = []
        self.troubles: list[Trouble] = []
        self.stalled = threading.Event()
        self._epoch = 0  # of streams: those of an earlier one end
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._server: ThreadingHTTPServer | None = None
        self.port = free_port()  # its own for good: ``start`` listens on it again

    # running it

    def __enter__(self) -> KubeAPI:
        self.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        handler = type("Handler", (_Handler,), {"api": self})
        ThreadingHTTPServer.request_queue_size = 64
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self._server.daemon_threads, self._server.block_on_close = True, False
        if self.certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self.certificate)
            self._server.socket = context.wrap_socket(self._server.socket, True, do_handshake_on_connect=False)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Refuse new connections, break the open ones. ``start`` is on the same port again, with the same objects."""
        if self._server is None:
            return
        self._server.shutdown()
        self._server.server_close()
        self._server = None
        self._epoch += 1
        with self._lock:
            for connection in self._sockets:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
            self._sockets.clear()

    @property
    def url(self) -> str:
        return f"http{'s' if self.certificate else ''}://127.0.0.1:{self.port}"

    def configuration(self, token: str | None = None) -> Any:
        """For the official client."""
        from kubernetes.client import Configuration

        configuration = Configuration()
        configuration.host = self.url
        configuration.api_key["authorization"] = f"Bearer {token or self.token}"
        return configuration

    # making trouble

    def fail(self, method: str = "", path: str = "", times: int = 1, **how: Any) -> Trouble:
        """Have the next requests of a method, on a path that the pattern is found in, go wrong; see ``Trouble``."""

        def matches(request: Request) -> bool:
            return method in ("", request.method) and bool(re.search(path, request.path))

        self.troubles.append(Trouble(matches, times, **how))
        return self.troubles[-1]

    @contextmanager
    def away(self) -> Iterator[None]:
        """The server is gone: connections are refused, open ones broken."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def cut_streams(self) -> None:
        """Break every open watch and followed log without a word."""
        self._epoch += 1

    @contextmanager
    def stall_streams(self) -> Iterator[None]:
        """Open watches and logs say nothing although there is something: a connection that died unnoticed."""
        self.stalled.set()
        try:
            yield
        finally:
            self.stalled.clear()

    def expire(self, token: str) -> None:
        """From now on the token is answered with 401, also where a connection is open."""
        self.tokens[token] = (self.tokens[token][0], time.monotonic())

    # what came in

    def asked(self, method: str = "", path: str = "") -> list[Request]:
        with self._lock:
            return [r for r in self.requests if method in ("", r.method) and re.search(path, r.path)]

    # inside

    def _admit(self, resource: Resource, new: Object, old: Object | None) -> None:
        names = None
        if self.runtimes_must_exist:
            names = {o["metadata"]["name"] for o in self.store.objects(RUNTIMES)}
        admit(resource, new, old, names)

    def user(self, header: str | None) -> str:
        if not header:
            return "system:anonymous"
        user, until = self.tokens.get(header.split(" ", 1)[-1], ("", 0.0))
        if time.monotonic() >= until:
            raise Refused(401, "Unauthorized", "Unauthorized")
        return user

    def allow(self, user: str, verb: str, resource: Resource, namespace: str, name: str, sub: str) -> None:
        """Refuse what the user's Role does not grant."""
        asked = f"{resource.plural}/{sub}" if sub else resource.plural
        if user != "system:anonymous" and user not in self.grants:
            return
        for rule in self.grants.get(user, {}).get(namespace, []):
            names = rule.get("resourceNames")
            if resource.group in rule["apiGroups"] and asked in rule["resources"] and verb in rule["verbs"]:
                if not names or name in names:
                    return
        where = f' in the namespace "{namespace}"' if namespace else " at the cluster scope"
        told = f'cannot {verb} resource "{asked}" in API group "{resource.group}"{where}'
        shown = f'{resource.qualified} "{name}"' if name else resource.qualified
        message = f'{shown} is forbidden: User "{user}" {told}'
        raise Refused(403, "Forbidden", message, resource.details(name))

    def take_trouble(self, request: Request) -> Trouble | None:
        with self._lock:
            for trouble in self.troubles:
                if trouble.times > 0 and trouble.matches(request):
                    trouble.times -= 1
                    return trouble
        return None

    def streaming(self) -> Callable[[], bool]:
        """Whether a stream that begins now is to go on."""
        epoch = self._epoch
        return lambda: self._epoch == epoch


class _Lost(Exception):
    """The connection is to be broken."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    api: KubeAPI
    request_: Request
    warnings: list[str]

    def setup(self) -> None:
        super().setup()
        with self.api._lock:
            self.api._sockets.add(self.connection)

    def finish(self) -> None:
        with self.api._lock:
            self.api._sockets.discard(self.connection)
        try:
            super().finish()
        except OSError:
            pass

    def log_message(self, *args: Any) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (OSError, _Lost):
            self.close_connection = True

    def do_GET(self) -> None:  # noqa: N802
        self._serve()

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815

    def _serve(self) -> None:
        url, self.warnings = urlsplit(self.path), []
        query = {key: values[-1] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
        length = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(length)
        self.request_ = Request(self.command, unquote(url.path), query, None, "")
        with self.api._lock:
            self.api.requests.append(self.request_)
        try:
            self.request_.user = self.api.user(self.headers.get("Authorization"))
            if length > MAX_BODY_BYTES:
                told = f"Request entity too large: limit is {MAX_BODY_BYTES}"
                raise Refused(413, "RequestEntityTooLarge", told)
            self._check_format()
            self.request_.body = self._read_body(raw)
            trouble = self.api.take_trouble(self.request_) if self.api.troubles else None
            if trouble and trouble.delay_s:
                time.sleep(trouble.delay_s)
            if trouble and trouble.status:
                raise failure(trouble)
            if trouble and trouble.lose == "request":
                raise _Lost
            code, answer = self._answer(trouble.lose if trouble else "")
        except Refused as refused:
            self._send(refused.code, refused.status, refused.headers)
            return
        if answer is not None:
            self._send(code, answer, {})

    def _check_format(self) -> None:
        if self.command in ("POST", "PUT") and "json" not in (self.headers.get("Content-Type") or "json"):
            told = "application/json, application/yaml, application/vnd.kubernetes.protobuf"
            raise _unknown_format(told)

    def _read_body(self, raw: bytes) -> Any:
        if not raw:
            return None
        try:
            return json.loads(raw)
        except ValueError:
            raise bad_request(
                "the object provided is unrecognized: couldn't get version/kind; json parse error: "
                f"invalid character ({raw[:20].decode(errors='replace')})"
            ) from None

    def _send(self, code: int, body: Any, headers: dict[str, str]) -> None:
        self.request_.status = code
        plain = isinstance(body, str)
        data = body.encode() if plain else json.dumps(body).encode()
        self.request_.sent = len(data)
        self.send_response(code)
        self.send_header("Content-Type", "text/plain; charset=utf-8" if plain else "application/json")
        self.send_header("Content-Length", str(len(data)))
        for warning in self.warnings:
            self.send_header("Warning", f"299 - {json.dumps(warning)}")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    # what is asked

    def _answer(self, lose: str) -> tuple[int, Any]:
        request, api = self.request_, self.api
        if request.path == "/version":
            return 200, {"major": "1", "minor": "36", "gitVersion": "v1.36.2"}
        found = _PATH.fullmatch(request.path)
        key = (found["group"] or "", found["core"] or found["version"], found["plural"]) if found else None
        resource = api.resources.get(key) if key else None
        if found is None or resource is None:
            listed = [r for r in api.resources.values() if request.path == r.path]
            if listed and self.command == "GET":
                shown = [{"name": r.plural, "kind": r.kind, "namespaced": r.namespaced} for r in listed]
                answer = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": listed[0].api_version}
                return 200, {**answer, "resources": shown}
            return 404, "404 page not found\n"
        namespace, name, sub = found["namespace"] or "", found["name"] or "", found["sub"] or ""
        verb = _VERBS[self.command] if name or self.command != "GET" else "watch" if request.watch else "list"
        api.allow(request.user, verb, resource, namespace, name, sub)
        if sub == "log":
            return self._log(namespace, name)
        if verb == "list":
            return self._list(resource, namespace or None)
        if verb == "watch":
            return self._watch(resource, namespace or None)
        if verb == "create":
            code, answer = 201, self._create(resource, namespace)
        elif not name:
            raise bad_request("name must be provided")
        elif verb == "get":
            code, answer = 200, api.store.get(resource, namespace, name)
        elif verb == "delete":
            code, answer = 200, self._delete(resource, namespace, name)
        else:
            code, answer = 200, self._change(resource, namespace, name, sub == "status")
        if lose == "answer":
            raise _Lost
        return code, answer

    def _dry_run(self) -> bool:
        given = self.request_.query.get("dryRun")
        if given not in (None, "All"):
            self._unsupported("dryRun", f'["{given}"]: supported values: "All"')
        return given == "All"

    def _unsupported(self, parameter: str, told: str) -> None:
        options = Resource("meta.k8s.io", "v1", "", f"{_VERBS[self.command].title()}Options")
        raise invalid(options, "", [("FieldValueNotSupported", parameter, f"Unsupported value: {told}")])

    def _create(self, resource: Resource, namespace: str) -> Object:
        body, query = self.request_.body, self.request_.query
        if not isinstance(body, dict):
            raise bad_request("the object provided is unrecognized: couldn't get version/kind")
        given = query.get("fieldValidation", "")
        if given not in ("", "Ignore", "Strict", "Warn"):
            self._unsupported("fieldValidation", f'"{given}": supported values: "", "Ignore", "Strict", "Warn"')
        if body.get("apiVersion", resource.api_version) != resource.api_version:
            told = f"the API version in the data ({body['apiVersion']}) does not match the expected API version"
            raise bad_request(f"{told} ({resource.api_version})")
        unknown = [f'unknown field "{path}"' for path in unknown_fields(resource, body)]
        if unknown and given == "Strict":
            what = f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}'
            raise bad_request(f"{what}: strict decoding error: {', '.join(unknown)}")
        if given != "Ignore":
            self.warnings += unknown
        body = copy.deepcopy(body)
        for path in unknown_fields(resource, body):
            part: Any = body
            *parents, last = path.split(".")
            for key in parents:
                part = part[key]
            part.pop(last)
        return self.api.store.create(resource, namespace, body, self._dry_run())

    def _change(self, resource: Resource, namespace: str, name: str, status: bool) -> Object:
        body, kind = self.request_.body, (self.headers.get("Content-Type") or "").split(";")[0]
        store = self.api.store
        if self.command == "PUT":
            store.get(resource, namespace, name)
            if resource.custom and not body.get("metadata", {}).get("resourceVersion"):
                cause = (
                    "FieldValueInvalid",
                    "metadata.resourceVersion",
                    "Invalid value: 0: must be specified for an update",
                )
                refused = invalid(resource, name, [cause])
                refused.status["message"] = refused.status["message"].replace(resource.kind, resource.plural, 1)
                refused.status["details"]["kind"] = resource.plural
                raise refused
            return store.update(resource, namespace, name, lambda old: copy.deepcopy(body), status)
        accepted = [JSON_PATCH, MERGE, *([] if resource.custom else [STRATEGIC]), "application/apply-patch+yaml"]
        if kind not in accepted[:-1]:  # server-side apply is not offered here
            raise _unknown_format(", ".join(accepted))
        if kind == JSON_PATCH:
            change: Callable[[Object], Object] = lambda old: json_patch(old, body)  # noqa: E731
        else:
            change = lambda old: merge_patch(old, body)  # noqa: E731
        return store.update(resource, namespace, name, change, status)

    def _delete(self, resource: Resource, namespace: str, name: str) -> Object:
        query = self.request_.query
        options = {**(self.request_.body or {})}
        if "propagationPolicy" in query:
            options["propagationPolicy"] = query["propagationPolicy"]
        if "gracePeriodSeconds" in query:
            options["gracePeriodSeconds"] = int(query["gracePeriodSeconds"])
        if self._dry_run():
            options["dryRun"] = True
        if resource.kind == "Job" and not options.get("propagationPolicy"):
            self.warnings.append(_ORPHANS)
        uid = self.api.store.get(resource, namespace, name)["metadata"]["uid"]
        left = self.api.store.delete(resource, namespace, name, options)
        if left is not None:
            return left
        status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
        return {**status, "details": {**resource.details(name), "uid": uid}}

    # lists and streams

    def _selector(self, resource: Resource) -> Selector:
        query = self.request_.query
        labels, fields = query.get("labelSelector", ""), query.get("fieldSelector", "")
        return Selector(parse_labels(labels), parse_fields(resource, fields))

    def _version(self) -> int:
        given = self.request_.query.get("resourceVersion") or "0"
        if not given.isdigit():
            told = f'resourceVersion: Invalid value: "{given}": strconv.ParseUint: parsing "{given}": invalid syntax'
            raise Refused(500, "", told) if self.request_.watch else bad_request(f"invalid resource version: {told}")
        return int(given)

    def _list(self, resource: Resource, namespace: str | None) -> tuple[int, Any]:
        query, store = self.request_.query, self.api.store
        selector, version = self._selector(resource), self._version()
        if version > store.version:
            time.sleep(self.api.future_s)
            large = f"Too large resource version: {version}, current: {store.version}"
            causes = [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]
            late = Refused(504, "Timeout", f"Timeout: {large}", {"causes": causes, "retryAfterSeconds": 1})
            late.headers["Retry-After"] = "1"
            raise late
        if query.get("resourceVersionMatch") == "Exact" and version < store._oldest:
            raise Refused(410, "Expired", "The resourceVersion for the provided list is too old.")
        items, meta = store.page(resource, namespace, selector, int(query.get("limit") or 0), query.get("continue", ""))
        if not resource.custom:  # their items do not say what they are
            items = [{k: v for k, v in item.items() if k not in ("kind", "apiVersion")} for item in items]
        else:
            meta.setdefault("continue", "")
        shown = {"kind": f"{resource.kind}List", "apiVersion": resource.api_version, "metadata": meta}
        return 200, {**shown, "items": items}

    def _watch(self, resource: Resource, namespace: str | None) -> tuple[int, None]:
        query, store, api = self.request_.query, self.api.store, self.api
        selector, version = self._selector(resource), self._version()
        ends = time.monotonic() + float(query.get("timeoutSeconds") or 1800)
        going = api.streaming()
        with store.changed:
            begin = version or store.version
            first = [] if version else store.objects(resource, namespace, selector)
        self._begin_stream("application/json")
        bookmarks, marked = self.request_.asks("allowWatchBookmarks"), time.monotonic()
        try:
            for obj in first:
                self._event("ADDED", obj)
            closed = lambda: not going() or time.monotonic() >= ends  # noqa: E731
            events = store.watch(resource, namespace, selector, begin, closed)
            while True:
                with store.changed:
                    seen = store.version  # before the events up to it are taken
                for event in iter(lambda: next(events, _END), None):
                    if event is _END:
                        break
                    self._wait_while_stalled(going)
                    self._event(*event)
                else:
                    now = time.monotonic()
                    if bookmarks and now - marked > api.bookmark_s and begin <= store.version:
                        marked = now
                        self._wait_while_stalled(going)
                        self._event("BOOKMARK", _bookmark(resource, seen))
                    continue
                break
        except Refused as refused:
            self._event("ERROR", refused.status)
        if not going():
            raise _Lost
        self._end_stream()
        return 200, None

    def _log(self, namespace: str, name: str) -> tuple[int, Any]:
        query, store = self.request_.query, self.api.store
        pod = store.get(PODS, namespace, name)
        container = query.get("container") or pod["spec"]["containers"][0]["name"]
        if container not in [c["name"] for c in pod["spec"]["containers"]]:
            raise bad_request(f"container {container} is not valid for pod {name}")
        if (namespace, name) not in store.logs:
            waiting = [s.get("state", {}).get("waiting", {}) for s in pod["status"].get("containerStatuses", [])]
            reason = next((w["reason"] for w in waiting if "reason" in w), "ContainerCreating")
            raise bad_request(f'container "{container}" in pod "{name}" is waiting to start: {reason}')
        log, going = store.logs[namespace, name], self.api.streaming()
        since, stamps = query.get("sinceTime", ""), self.request_.asks("timestamps")
        follow, at = self.request_.asks("follow"), 0
        self._begin_stream("text/plain")
        while going():
            with store.changed:
                if at == len(log.lines) and follow and not log.closed:
                    store.changed.wait(0.05)
                lines, over = log.lines[at:], log.closed
                at = len(log.lines)
            self._wait_while_stalled(going)
            for stamp, line in lines:
                if stamp[:19] >= since[:19]:
                    self._chunk(f"{stamp} {line}\n" if stamps else f"{line}\n")
            if not follow or (over and at == len(log.lines)):
                self._end_stream()
                return 200, None
        raise _Lost

    def _wait_while_stalled(self, going: Callable[[], bool]) -> None:
        while self.api.stalled.is_set() and going():
            time.sleep(0.01)

    def _begin_stream(self, kind: str) -> None:
        self.request_.status = 200
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _event(self, kind: str, obj: Object) -> None:
        self._chunk(json.dumps({"type": kind, "object": obj}) + "\n")

    def _chunk(self, text: str) -> None:
        data = text.encode()
        self.request_.sent += len(data)
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _end_stream(self) -> None:
        self.wfile.write(b"0\r\n\r\n")


_END: Any = object()
_VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


def _bookmark(resource: Resource, version: int) -> Object:
    shown: Object = {"kind": resource.kind, "apiVersion": resource.api_version}
    shown["metadata"] = {"resourceVersion": str(version)}
    if resource.kind == "Job":
        shown |= {"spec": {"template": {"metadata": {}, "spec": {"containers": None}}}, "status": {}}
    return shown


def _unknown_format(accepted: str) -> Refused:
    told = f"the body of the request was in an unknown format - accepted media types include: {accepted}"
    return Refused(415, "UnsupportedMediaType", told)
