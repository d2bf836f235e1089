"""An HTTP server that speaks the Kubeflow Pipelines API, v2beta1, as much of it as svdflow uses.

What it answers follows the API's definition (the models of kfp_server_api) and the backend's sources: the shapes of
lists, errors and uploads, the workflow's nodes as task details, what is refused and with which status. Tests move runs
on with ``at`` and ``end``, or by a script that takes a step at each look; ``fault`` makes matching requests fail.
"""

from __future__ import annotations

import base64
import json
import re
import ssl
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

EPOCH = "1970-01-01T00:00:00Z"
UPLOAD_BYTES, PARAMETERS_BYTES = 32 * 2**20, 10_000
ENDED = {"SUCCEEDED", "FAILED", "SKIPPED", "CANCELED"}
_CODES = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 500: 13, 501: 12, 503: 14}


class Answer(Exception):
    """An error to answer with, in gRPC gateway's words."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass
class Fault:
    """What happens to the next ``times`` requests whose ``METHOD /path`` matches."""

    pattern: str
    how: str  # drop: no answer, nothing done · lose: done, no answer · hang · page: HTML · login: redirect · a status
    times: int = 1


@dataclass
class FakeRun:
    body: dict[str, Any]
    spec: dict[str, Any]
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    script: list[Callable[[], None]] = field(default_factory=list)


class FakePipelines:
    """A server with its whole content. ``with FakePipelines() as fake: … fake.url``."""

    def __init__(self, token: str = "", cookie: str = "", certificate: Path | None = None) -> None:
        self.token, self.cookie, self.certificate = token, cookie, certificate  # a PEM file with its key: TLS
        self.pipelines: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, dict[str, Any]] = {}
        self.experiments: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, FakeRun] = {}
        self.schedules: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.forbidden: set[str] = set()  # patterns of METHOD /path
        self.asked: list[tuple[str, dict[str, str], dict[str, str]]] = []  # METHOD /path, query, headers
        self.several_users = False  # as Kubeflow installs it: lists are of a namespace, or of an experiment
        self.largest_page = 200
        self._clock = datetime(2030, 1, 1, tzinfo=UTC)
        self.lock = threading.RLock()
        self.closing = threading.Event()

    def __enter__(self) -> FakePipelines:
        handler = type("Handler", (_Handler,), {"fake": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        if self.certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"{'https' if self.certificate else 'http'}://127.0.0.1:{self._server.server_port}"

    def fault(self, pattern: str, how: str, times: int = 1) -> None:
        self.faults.append(Fault(pattern, how, times))

    def count(self, pattern: str) -> int:
        """How many requests matched."""
        return sum(bool(re.search(pattern, line)) for line, _, _ in self.asked)

    # what tests do to runs

    def at(self, run_id: str, task: str, state: str, error: str = "", attempts: int = 1) -> None:
        """Put a task into a state; an attempt after the first means that those before it failed."""
        self.runs[run_id].tasks[task] = {"state": state, "error": error, "attempts": attempts}
        if self.runs[run_id].body["state"] == "PENDING":
            self.runs[run_id].body["state"] = "RUNNING"

    def end(self, run_id: str, state: str, error: str = "") -> None:
        body = self.runs[run_id].body
        body |= {"state": state, "finished_at": self.now()}
        if error:
            body["error"] = {"code": 2, "message": error}

    def script(self, run_id: str, *steps: Callable[[], None]) -> None:
        """One step before each answer to a look at the run."""
        self.runs[run_id].script += steps

    def pod(self, run_id: str, task: str, attempt: int = 0) -> str:
        """The pod of a task's attempt, as Argo names it."""
        return f"{self._workflow(run_id)}-system-container-impl-{_hash(f'{run_id}/{task}/executor({attempt})')}"

    def now(self) -> str:
        self._clock += timedelta(seconds=1)
        return self._clock.strftime("%Y-%m-%dT%H:%M:%SZ")

    def _workflow(self, run_id: str) -> str:
        return f"{self.runs[run_id].spec['pipelineInfo']['name']}-{run_id[:5]}"

    # pipelines, versions, uploads

    def create_pipeline(self, body: dict[str, Any]) -> dict[str, Any]:
        name = body.get("name") or body.get("display_name") or ""
        self._require_name(name, "Pipeline", 128)
        space = body.get("namespace", "")
        if any(p["name"] == name and p.get("namespace", "") == space for p in self.pipelines.values()):
            raise Answer(409, f"Failed to create a new pipeline. The name {name} already exists")
        kept = {k: v for k, v in body.items() if k in ("display_name", "description", "namespace", "tags")}
        made = {**kept, "pipeline_id": str(uuid.uuid4()), "name": name, "created_at": self.now()}
        made.setdefault("display_name", name)
        self.pipelines[made["pipeline_id"]] = made
        return made

    def upload_version(self, query: dict[str, str], file: tuple[str, bytes]) -> dict[str, Any]:
        pipeline_id = query.get("pipelineid", "")
        if pipeline_id not in self.pipelines:
            raise Answer(400, "Failed to create a pipeline version")
        name = query.get("name") or query.get("display_name") or file[0]
        self._require_name(name, "PipelineVersion", 127)
        spec = _read_spec(*file)
        tags = self._tags(query)
        if any(v["pipeline_id"] == pipeline_id and v["name"] == name for v in self.versions.values()):
            raise Answer(409, "Failed to create a pipeline version")
        made = {
            "pipeline_id": pipeline_id,
            "pipeline_version_id": str(uuid.uuid4()),
            "name": name,
            "display_name": query.get("display_name") or name,
            "description": query.get("description", ""),
            "created_at": self.now(),
            "pipeline_spec": spec,
            "tags": tags,
        }
        self.versions[made["pipeline_version_id"]] = made
        return made

    def upload_pipeline(self, query: dict[str, str], file: tuple[str, bytes]) -> dict[str, Any]:
        _read_spec(*file)
        made = self.create_pipeline({**query, "tags": self._tags(query)})
        self.upload_version({"pipelineid": made["pipeline_id"], "name": made["name"]}, file)
        return made

    def _tags(self, query: dict[str, str]) -> dict[str, str]:
        tags = json.loads(query.get("tags") or "{}")
        if any(not key or "." in key for key in tags):
            raise Answer(400, "tag key must not contain '.'")
        return tags

    @staticmethod
    def _require_name(name: str, what: str, longest: int) -> None:
        if not name or len(name) > longest:
            raise Answer(400, f"{what}.Name length cannot exceed {longest}")

    # experiments, runs, schedules

    def create_experiment(self, body: dict[str, Any]) -> dict[str, Any]:
        name = body.get("display_name", "")
        self._require_name(name, "Experiment", 128)
        space = body.get("namespace", "")
        if any(e["display_name"] == name and e.get("namespace", "") == space for e in self.experiments.values()):
            raise Answer(409, f"Failed to add experiment to experiment table. {name} already exists")
        made = {**body, "experiment_id": str(uuid.uuid4()), "created_at": self.now(), "storage_state": "AVAILABLE"}
        self.experiments[made["experiment_id"]] = made
        return made

    def create_run(self, body: dict[str, Any]) -> dict[str, Any]:
        spec = self._checked(body)
        run_id = str(uuid.uuid4())
        made = {
            **body,
            "run_id": run_id,
            "state": "PENDING",
            "storage_state": "AVAILABLE",
            "created_at": self.now(),
            "scheduled_at": EPOCH,
            "finished_at": EPOCH,
            "pipeline_version_id": body.get("pipeline_version_reference", {}).get("pipeline_version_id", ""),
        }
        self.runs[run_id] = FakeRun(made, spec.get("pipeline_spec", spec))
        return made

    def create_schedule(self, body: dict[str, Any]) -> dict[str, Any]:
        self._checked(body)
        if not body.get("display_name"):
            raise Answer(500, "Recurring run's name cannot be empty")
        if not 1 <= int(body.get("max_concurrency", 0)) <= 10:
            raise Answer(400, "The max concurrency of the recurring run is out of range. Support 1-10.")
        trigger = body.get("trigger", {})
        cron = trigger.get("cron_schedule", {}).get("cron")
        if cron and not cron.startswith("@") and len(cron.split()) not in (5, 6):
            raise Answer(400, f"Schedule cron is not a supported format: expected 5 or 6 fields: {cron}")
        if not cron and int(trigger.get("periodic_schedule", {}).get("interval_second", 0)) < 1:
            raise Answer(400, "Found invalid period schedule interval. Set at interval to least 1 second.")
        status = "ENABLED" if body.get("mode") == "ENABLE" else "DISABLED"
        made = {**body, "recurring_run_id": str(uuid.uuid4()), "created_at": self.now(), "status": status}
        self.schedules[made["recurring_run_id"]] = made
        return made

    def _checked(self, body: dict[str, Any]) -> dict[str, Any]:
        """The spec that a run's body asks for; what the backend checks is checked."""
        if body.get("experiment_id", "") not in self.experiments:
            raise Answer(404, f"Experiment {body.get('experiment_id')} not found")
        reference = body.get("pipeline_version_reference") or {}
        version = self.versions.get(reference.get("pipeline_version_id", ""))
        spec = body.get("pipeline_spec") or (version and version["pipeline_spec"])
        if not spec:
            raise Answer(404, "Failed to fetch a template with an empty pipeline version ID")
        given = body.get("runtime_config", {}).get("parameters", {})
        if len(json.dumps(given)) > PARAMETERS_BYTES:
            raise Answer(400, f"The input parameter length exceed maximum size of {PARAMETERS_BYTES}")
        declared = spec.get("pipeline_spec", spec)["root"]["inputDefinitions"]["parameters"]
        if unknown := set(given) - set(declared):
            raise Answer(400, f"parameter {sorted(unknown)} is not in the pipeline's inputs")
        if missing := [k for k, v in declared.items() if k not in given and "defaultValue" not in v]:
            raise Answer(400, f"parameter {missing} is required")
        return spec

    def look(self, run_id: str) -> dict[str, Any]:
        run = self.runs[run_id]
        if run.script:
            run.script.pop(0)()
        return {**run.body, "run_details": {"task_details": self._nodes(run_id)}}

    def terminate(self, run_id: str) -> None:
        run = self.runs[run_id]
        if run.body["state"] in ENDED:
            raise Answer(400, f"Failed to terminate run {run_id}. Row not found or already finished")
        run.body["state"] = "CANCELING"
        run.script = run.script or [lambda: None, lambda: self.end(run_id, "CANCELED")]

    def retry(self, run_id: str) -> None:
        run = self.runs[run_id]
        if run.body["state"] not in ("FAILED", "CANCELED"):
            raise Answer(400, "Workflow must be Failed/Error to retry")
        run.body |= {"state": "RUNNING", "finished_at": EPOCH}
        run.body.pop("error", None)
        run.tasks = {name: task for name, task in run.tasks.items() if task["state"] == "SUCCEEDED"}

    def _nodes(self, run_id: str) -> list[dict[str, Any]]:
        """The workflow's nodes: for a task its driver's pod, its own node, and the executor's pods below that."""
        run, workflow = self.runs[run_id], self._workflow(run_id)
        dags = [run.spec["root"]["dag"], *(c["dag"] for c in run.spec["components"].values() if "dag" in c)]
        depends = {key: task.get("dependentTasks", []) for dag in dags for key, task in dag["tasks"].items()}
        later: dict[str, list[str]] = {}
        for key, before in depends.items():
            for name in before:
                later.setdefault(name, []).append(f"{key}-driver")
        if not run.tasks:
            return []
        nodes = [self._node(run_id, workflow, "RUNNING", workflow, ["root-driver"])]
        for key, task in run.tasks.items():
            state, attempts = task["state"], task["attempts"]
            driver = f"{workflow}-system-container-driver-{_hash(f'{run_id}/{key}-driver')}"
            if state == "DRIVER FAILED":
                nodes.append(self._node(run_id, f"{key}-driver", "FAILED", driver, []))
                continue
            nodes.append(self._node(run_id, f"{key}-driver", "SUCCEEDED", driver, [key]))
            if state == "DRIVEN":
                continue
            own = f"{workflow}-system-container-executor-{_hash(f'{run_id}/{key}')}"
            nodes.append(self._node(run_id, key, state, own, [f"{key}/executor"], task["error"]))
            retried = f"{workflow}-retry-system-container-executor-{_hash(f'{run_id}/{key}/executor')}"
            tries = [f"{key}/executor({n})" for n in range(attempts)]
            nodes.append(self._node(run_id, f"{key}/executor", state, retried, tries))
            for n, name in enumerate(tries):
                last = n == attempts - 1
                after = later.get(key, []) if last else []  # Argo hangs what comes next below the last pod
                nodes.append(self._node(run_id, name, state if last else "FAILED", self.pod(run_id, key, n), after))
        return sorted(nodes, key=lambda node: str(node["pod_name"]))

    def _node(
        self, run_id: str, name: str, state: str, pod: str, children: list[str], error: str = ""
    ) -> dict[str, Any]:
        prefix = self._workflow(run_id)
        node: dict[str, Any] = {
            "run_id": run_id,
            "task_id": str(uuid.uuid5(uuid.UUID(run_id), name)),
            "display_name": name.rpartition("/")[2],
            "create_time": "2030-01-01T00:00:00Z",
            "start_time": "2030-01-01T00:00:10Z",
            "end_time": "2030-01-01T00:01:15Z" if state in ENDED else EPOCH,
            "state": state,
            "pod_name": pod,
            "child_tasks": [{"pod_name": f"{prefix}-{_hash(f'{run_id}/{child}')}"} for child in children],
        }
        if error:
            node["error"] = {"code": 2, "message": error}
        return node

    # lists

    def page(self, field_name: str, items: list[dict[str, Any]], query: dict[str, str]) -> dict[str, Any]:
        for predicate in json.loads(query.get("filter") or "{}").get("predicates", []):
            if predicate["operation"] not in (1, "EQUALS"):
                raise Answer(501, f"operation {predicate['operation']} is not spoken here")
            key, value = predicate["key"], predicate.get("stringValue", predicate.get("string_value"))
            items = [item for item in items if item.get(key) == value]
        scoped = query.get("namespace") or query.get("experiment_id") or query.get("pipeline_id")
        if self.several_users and not scoped and field_name != "pipelines":  # pipelines may be everybody's
            raise Answer(400, "a namespace is needed in multi-user mode")
        for key in ("namespace", "experiment_id"):
            if (wanted := query.get(key)) and field_name != "pipeline_versions":
                items = [item for item in items if self._within(item, key) == wanted]
        key, _, order = (query.get("sort_by") or "created_at").partition(" ")
        items = sorted(items, key=lambda item: item.get(key, ""), reverse=order == "desc")
        size = min(int(query.get("page_size") or 20), self.largest_page)
        start = 0
        if token := query.get("page_token"):
            start, filtered = json.loads(base64.b64decode(token))
            if filtered != query.get("filter", ""):
                raise Answer(400, "Invalid page token: the filter has changed")
        page: dict[str, Any] = {field_name: items[start : start + size], "total_size": len(items)}
        if start + size < len(items):
            page["next_page_token"] = base64.b64encode(
                json.dumps([start + size, query.get("filter", "")]).encode()
            ).decode()
        return {key: value for key, value in page.items() if value != []}  # empty lists are left out

    def _within(self, item: dict[str, Any], key: str) -> Any:
        if key == "namespace" and "experiment_id" in item and "run_id" in item:
            return self.experiments[item["experiment_id"]].get("namespace", "")
        return item.get(key, "")


def _hash(text: str) -> str:
    """Argo's: a number of 32 bits of the node's full name."""
    value = 2166136261
    for byte in text.encode():
        value = (value ^ byte) * 16777619 % 2**32
    return str(value)


def _read_spec(filename: str, content: bytes) -> dict[str, Any]:
    if len(content) > UPLOAD_BYTES:
        raise Answer(400, "File size too large. Maximum supported file size: 33554432")
    if not filename.endswith((".yaml", ".yml")):
        raise Answer(400, "Unexpected pipeline file format. Support .zip, .tar.gz, .json or YAML")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    documents = [document for document in yaml.load_all(content, Loader=loader) if document]
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", documents[0].get("pipelineInfo", {}).get("name", "")):
        raise Answer(400, "pipeline's name must contain only lowercase alphanumeric characters or '-'")
    if len(documents) == 1:
        return documents[0]
    return {"pipeline_spec": documents[0], "platform_spec": documents[1]}


class _Handler(BaseHTTPRequestHandler):
    fake: FakePipelines
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_DELETE(self) -> None:
        self._serve("DELETE")

    def log_message(self, *arguments: Any) -> None:
        pass

    def _serve(self, method: str) -> None:
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), {k: v[0] for k, v in parse_qs(parts.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        line = f"{method} {path}"
        with self.fake.lock:
            self.fake.asked.append((line, query, {k.lower(): v for k, v in self.headers.items()}))
            fault = next((f for f in self.fake.faults if f.times and re.search(f.pattern, line)), None)
            if fault:
                fault.times -= 1
        how = fault.how if fault else ""
        if how == "hang":
            self.fake.closing.wait(600)
        if how in ("drop", "hang"):
            self.close_connection = True
            return
        try:
            if how.isdigit():
                raise Answer(int(how), "as the test wants it")
            self._require_caller(line)
            with self.fake.lock:
                answer = self._answer(method, path, query, body)
        except Answer as error:
            return self._send_error(path, error)
        if how == "lose":
            self.close_connection = True
        elif how == "page":
            self._send(200, b"<html>Please log in</html>", "text/html")
        elif how == "login":
            self._send(302, b"", "text/html", Location=f"{self.fake.url}/dex/auth?client_id=x&state=secret")
        elif isinstance(answer, bytes):
            self._send(200, answer, "text/plain")
        else:
            self._send(200, json.dumps(answer).encode(), "application/json")

    def _require_caller(self, line: str) -> None:
        fake = self.fake
        if fake.cookie and self.headers.get("Cookie") != fake.cookie:
            raise Answer(302, "")
        if fake.token and self.headers.get("Authorization") != f"Bearer {fake.token}":
            raise Answer(401, "Failed to authenticate the request: the token cannot be reviewed")
        if any(re.search(pattern, line) for pattern in fake.forbidden):
            raise Answer(403, "User is not authorized with reason: no rbac policy matched")

    def _answer(self, method: str, path: str, query: dict[str, str], body: bytes) -> Any:
        fake = self.fake
        if path.endswith("/pipelines/upload") or path.endswith("/pipelines/upload_version"):
            upload = fake.upload_pipeline if path.endswith("upload") else fake.upload_version
            return upload(query, self._file(body))
        given = json.loads(body) if body else {}
        if match := re.fullmatch(r"/apis/v1alpha1/runs/([^/]+)/nodes/([^/]+)/log", path):
            if match[1] not in fake.runs or match[2] not in fake.logs:
                raise Answer(500, f"Failed to read logs for run {match[1]}")
            return fake.logs[match[2]]
        match = re.fullmatch(r"/apis/v2beta1/(\w+)(?:/([^/:]+))?(?:/versions(?:/([^/:]+))?)?(?::(\w+))?", path)
        if not match:
            raise Answer(404, "Not Found")
        kind, key, version, verb = match[1], match[2], match[3], match[4]
        if kind == "healthz":
            return {"multi_user": True}
        if kind == "pipelines" and "/versions" in path:
            found = [v for v in fake.versions.values() if v["pipeline_id"] == key]
            return self._one(fake.versions, version) if version else fake.page("pipeline_versions", found, query)
        store, create, many = {
            "pipelines": (fake.pipelines, fake.create_pipeline, "pipelines"),
            "experiments": (fake.experiments, fake.create_experiment, "experiments"),
            "runs": ({k: r.body for k, r in fake.runs.items()}, fake.create_run, "runs"),
            "recurringruns": (fake.schedules, fake.create_schedule, "recurringRuns"),
        }.get(kind, ({}, None, ""))
        if create is None:
            raise Answer(404, "Not Found")
        if key is None:
            return create(given) if method == "POST" else fake.page(many, list(store.values()), query)
        item = self._one(store, key)
        if method == "DELETE":
            fake.schedules.pop(key)
            return {}
        if verb is None:
            return fake.look(key) if kind == "runs" else item
        if verb in ("enable", "disable"):
            item |= {"mode": verb.upper(), "status": f"{verb.upper()}D"}
            return {}
        {"terminate": fake.terminate, "retry": fake.retry}[verb](key)
        return {}

    @staticmethod
    def _one(store: dict[str, Any], key: str) -> Any:
        if key not in store:
            raise Answer(404, f"{key} not found")
        return store[key]

    def _file(self, body: bytes) -> tuple[str, bytes]:
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        for part in BytesParser(policy=HTTP).parsebytes(head + body).iter_parts():
            if part.get_param("name", header="content-disposition") == "uploadfile":
                return part.get_filename() or "", part.get_payload(decode=True)
        raise Answer(400, "Failed to read pipeline from file")

    def _send_error(self, path: str, error: Answer) -> None:
        if error.status == 302:
            return self._send(302, b"", "text/html", Location=f"{self.fake.url}/dex/auth?state=secret")
        if "/upload" in path or "/v1alpha1/" in path:
            said = {"error_message": error.message, "error_details": f"{error.message}: at server.go:1"}
        else:
            code = _CODES.get(error.status, 2)
            said = {"error": error.message, "code": code, "message": error.message, "details": []}  # type: ignore[dict-item]
        self._send(error.status, json.dumps(said).encode(), "application/json")

    def _send(self, status: int, content: bytes, kind: str, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
