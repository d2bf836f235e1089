"""The fake Kubernetes API server answers as a real one did: held against recordings, and against its own promises."""

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode

import pytest
import urllib3

from tests.fakes.kube_api import KubeAPI
from tests.fakes.kube_rules import JOBS, PODS, RUNTIMES, TRAINJOBS, WORKFLOWS
from tests.fakes.kube_store import Object

RECORDINGS = Path(__file__).resolve().parents[2].parent / "shared" / "transcripts"
LAUNCHER = "system:serviceaccount:launch:launcher"
# Answers that the fake does not give, by what makes them; the recordings are passed over there.
NOT_OFFERED = {
    "server-side apply": "apply",
    "Accept headers": "text/csv",
    "access reviews, API groups": "selfsubjectaccessreviews|^/apis/kueue.x-k8s.io$",
    "quantities": "bad quantity",
    "pods' requests against their limits": "requests above limits",
    "etcd's size limit": "etcd's request size",
    "duplicate keys in JSON": "a key given twice",
    "rules that hang on others": "completionMode changed|podFailurePolicy added",
}


@pytest.fixture
def api() -> Iterator[KubeAPI]:
    with KubeAPI() as server:
        server.store.namespaces |= {"launch", "train", "batch"}
        yield server


def ask(api: KubeAPI, method: str, path: str, query: str = "", body: Any = None, token: str | None = "", **headers: str):
    sent = {"content-type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
    if token is not None:
        sent["Authorization"] = f"Bearer {token or api.token}"
    data = body if isinstance(body, (str, bytes)) else None if body is None else json.dumps(body)
    url = f"{api.url}{path}" + (f"?{query}" if query else "")
    return urllib3.PoolManager().request(method, url, body=data, headers=sent, retries=False, timeout=10)


def recorded(name: str) -> list[Object]:
    path = RECORDINGS / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"there are no recordings of a real API server here ({RECORDINGS})")
    return [json.loads(line) for line in path.read_text().splitlines()]


class Replay:
    """Sends recorded requests to the fake, with its own uids and resource versions in place of the recorded ones."""

    def __init__(self, api: KubeAPI) -> None:
        self.api, self.known = api, dict[str, tuple[str, str]]()  # path of an object: recorded uid and version
        for namespace in ("launch", "train"):
            api.tokens[namespace] = (LAUNCHER, float("inf"))
        rule = {"apiGroups": ["trainer.kubeflow.org"], "resources": ["trainjobs"], "verbs": ["get", "create", "watch"]}
        api.grants[LAUNCHER] = [rule]

    def send(self, line: Object) -> urllib3.BaseHTTPResponse:
        request = line["request"]
        token: str | None = {None: "", LAUNCHER: "launch", "system:anonymous": None}.get(line.get("as"), "wrong")
        headers = {key.replace("-", "_"): value for key, value in request.get("headers", {}).items()}
        path, body = request["path"], request.get("body")
        if LAUNCHER == line.get("as") and "/train/" in path:
            self.api.grants[LAUNCHER] = []  # the Role is of the other namespace
        if isinstance(body, dict):
            body = self._translated(path, body)
        if isinstance(body, list) and "json-patch" not in str(headers):
            body = json.dumps(body)
        answer = ask(self.api, request["method"], path, request.get("query", ""), body, token, **headers)
        self._learn(path, line["response"]["body"])
        return answer

    def _translated(self, path: str, body: Object) -> Object:
        body = json.loads(json.dumps(body))
        for part in (body.get("metadata", {}), body.get("preconditions", {})):
            uid, version = self.known.get(path, ("", ""))
            if part.get("uid") and part["uid"] == uid:
                part["uid"] = self._own(path)["uid"]
            if part.get("resourceVersion"):
                same = part["resourceVersion"] == version
                part["resourceVersion"] = self._own(path)["resourceVersion"] if same else "1"
        return body

    def _own(self, path: str) -> Object:
        return json.loads(ask(self.api, "GET", path).data)["metadata"]

    def _learn(self, path: str, body: Any) -> None:
        if isinstance(body, dict) and "uid" in body.get("metadata", {}):
            name = body["metadata"]["name"]
            place = path if path.endswith(f"/{name}") else f"{path}/{name}"
            self.known[place] = (body["metadata"]["uid"], body["metadata"]["resourceVersion"])


def shown(answer: Any) -> Object:
    """What of an answer is compared: all of a Status but numbers and uids; of an object its kind."""
    if isinstance(answer, str):
        return {"text": answer}
    if answer.get("kind") != "Status":
        return {"kind": answer.get("kind"), "apiVersion": answer.get("apiVersion")}
    text = json.dumps({key: answer.get(key) for key in ("status", "message", "reason", "details", "code")})
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "UID", text)
    text = re.sub(r'"name": "nope", "apiGroup[^}]*}', "REF", text)
    # what follows is Go's own way to print a value, or the text of a parser
    text = re.sub(r"StorageError: invalid object, Code: 4, .*?Precondition failed", "Precondition failed", text)
    text = re.sub(r"Invalid value: \{.*?: field is immutable", "Invalid value: {}: field is immutable", text)
    text = re.sub(r"unrecognized.*?json parse error.*?\"", 'unrecognized"', text)
    return json.loads(text)


def without_hint(status: Object) -> Object:
    """Less the line that rules were not checked because others broke: it stands beside the break itself."""
    told = ", <nil>: Invalid value: null: some validation rules were not checked because the object was invalid; "
    told += "correct the existing errors to complete validation"
    if told not in (status.get("message") or ""):
        return status
    message = status["message"].replace(told, "").replace(": [", ": ").rstrip("]")
    causes = [c for c in status["details"]["causes"] if c["field"] != "<nil>"]
    return {**status, "message": message, "details": {**status["details"], "causes": causes}}


@pytest.mark.parametrize("name", ["errors_trainjob", "errors_job", "delete_with_finalizer"])
def test_calls_are_answered_as_recorded(api, name):
    replay, compared = Replay(api), 0
    api.runtimes_must_exist = True
    for runtime in ("torch-distributed", "torch-once"):
        api.store.create(RUNTIMES, "", {"metadata": {"name": runtime}})
    for line in recorded(name):
        request = line.get("request")
        if request is None:
            continue
        about = f"{line.get('note', '')} {request['path']} {json.dumps(request.get('headers', {}))}"
        if any(re.search(pattern, about) or re.search(pattern, request["path"]) for pattern in NOT_OFFERED.values()):
            continue
        if request["path"].startswith("/api/v1") or "events" in request["path"]:
            continue
        told = f"{about} {json.dumps(request.get('body'))[:300]}"
        answer = replay.send(line)
        body = json.loads(answer.data) if "json" in answer.headers["content-type"] else answer.data.decode()
        wanted = line["response"]
        assert answer.status == wanted["status"], f"{told}: {body}"
        assert shown(body) == without_hint(shown(wanted["body"])), told
        warnings = wanted["headers"].get("warning")
        assert bool(answer.headers.get("warning")) == bool(warnings), told
        if warnings:
            assert ", ".join(answer.headers.getlist("warning")) == warnings, told
        compared += 1
    assert compared > {"errors_trainjob": 45, "errors_job": 25, "delete_with_finalizer": 8}[name]
