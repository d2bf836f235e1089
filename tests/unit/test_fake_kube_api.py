"""The fake Kubernetes API server answers as a real one did: held against recordings, and against its own promises."""

import json
import re
import threading
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode

import pytest
import urllib3

from tests.fakes.kube_api import KubeAPI
from tests.fakes.kube_rules import JOBS, PODS, RUNTIMES, TRAINJOBS, WORKFLOWS
from tests.fakes.kube_store import Object, wait_for

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


def ask(
    api: KubeAPI, method: str, path: str, query: str = "", body: Any = None, token: str | None = "", **headers: str
):
    sent = {"content-type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
    if token is not None:
        sent["Authorization"] = f"Bearer {token or api.token}"
    data = body if isinstance(body, (str, bytes)) else None if body is None else json.dumps(body)
    url = f"{api.url}{path}" + (f"?{query}" if query else "")
    return urllib3.PoolManager().request(method, url, body=data, headers=sent, retries=False, timeout=120)


def recorded(name: str) -> list[Object]:
    path = RECORDINGS / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"there are no recordings of a real API server here ({RECORDINGS})")
    return [json.loads(line) for line in path.read_text().splitlines()]


class Replay:
    """Sends recorded requests to the fake, with its own uids and resource versions in place of the recorded ones."""

    def __init__(self, api: KubeAPI) -> None:
        self.api, self.known = api, dict[str, tuple[str, str]]()  # path of an object: recorded uid and version
        api.tokens["launch"] = (LAUNCHER, float("inf"))
        rule = {"apiGroups": ["trainer.kubeflow.org"], "resources": ["trainjobs"], "verbs": ["get", "create", "watch"]}
        api.grants[LAUNCHER] = {"launch": [rule]}

    def send(self, line: Object) -> urllib3.BaseHTTPResponse:
        request = line["request"]
        token: str | None = {None: "", LAUNCHER: "launch", "system:anonymous": None}.get(line.get("as"), "wrong")
        headers = {key.replace("-", "_"): value for key, value in request.get("headers", {}).items()}
        path, body = request["path"], request.get("body")
        if isinstance(body, dict):
            body = self._translated(path, body)
        if isinstance(body, list) and "json-patch" not in str(headers):
            body = json.dumps(body)
        answer = ask(self.api, request["method"], path, request.get("query", ""), body, token, **headers)
        self._learn(path, line["response"]["body"])
        return answer

    def _translated(self, path: str, body: Object) -> Object:
        uid, version = self.known.get(path, ("", ""))
        text = json.dumps(body)
        if uid and uid in text:
            text = text.replace(uid, self._own(path)["uid"])
        body = json.loads(text)
        meta = body.get("metadata", {})
        if meta.get("resourceVersion"):
            same = meta["resourceVersion"] == version
            meta["resourceVersion"] = self._own(path)["resourceVersion"] if same else "1"
        return body

    def _own(self, path: str) -> Object:
        return json.loads(ask(self.api, "GET", path).data)["metadata"]

    def _learn(self, path: str, body: Any) -> None:
        if isinstance(body, dict) and "uid" in body.get("metadata", {}):
            name = body["metadata"]["name"]
            place = path if path.endswith(f"/{name}") else f"{path}/{name}"
            self.known[place] = (body["metadata"]["uid"], body["metadata"].get("resourceVersion", ""))


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
    status = json.loads(text)
    causes = (status["details"] or {}).get("causes", [])
    if causes:  # a real server says some twice
        status["details"]["causes"] = [c for at, c in enumerate(causes) if c not in causes[:at]]
    return status


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
        if "/events" in request["path"] or str(request.get("body")).startswith("(omitted"):
            continue
        told = f"{about} {json.dumps(request.get('body'))[:300]}"
        answer = replay.send(line)
        body = json.loads(answer.data) if "json" in answer.headers["content-type"] else answer.data.decode()
        wanted = line["response"]
        assert answer.status == wanted["status"], f"{told}: {body}"
        assert shown(body) == without_hint(shown(wanted["body"])), told
        warnings = wanted["headers"].get("warning")
        if answer.status != 400:
            assert bool(answer.headers.get("warning")) == bool(warnings), told
        if warnings and answer.status != 400:
            assert ", ".join(answer.headers.getlist("warning")) == warnings, told
        compared += 1
    assert compared > {"errors_trainjob": 45, "errors_job": 25, "delete_with_finalizer": 8}[name]


def events(answer: urllib3.BaseHTTPResponse) -> Iterator[Object]:
    left = b""
    for chunk in answer.stream():
        *lines, left = (left + chunk).split(b"\n")
        yield from map(json.loads, lines)


def watch(api: KubeAPI, path: str, **query: Any) -> urllib3.BaseHTTPResponse:
    text = urlencode({"watch": "true", **query})
    headers = {"Authorization": f"Bearer {api.token}"}
    url = f"{api.url}{path}?{text}"
    return urllib3.PoolManager().request("GET", url, headers=headers, retries=False, timeout=120, preload_content=False)


def job(name: str, **labels: str) -> Object:
    pod = {"restartPolicy": "Never", "containers": [{"name": "main", "image": "registry.example/work:1"}]}
    spec = {"completionMode": "Indexed", "completions": 1, "template": {"spec": pod}}
    return {"metadata": {"name": name, "labels": labels}, "spec": spec}


def train_job(name: str, **meta: Any) -> Object:
    trainer = {"numNodes": 2, "image": "registry.example/train:1"}
    return {"metadata": {"name": name, **meta}, "spec": {"runtimeRef": {"name": "svdflow-torch"}, "trainer": trainer}}


JOBS_PATH = "/apis/batch/v1/namespaces/launch/jobs"
TRAINJOBS_PATH = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/launch/trainjobs"


def test_lists_and_watches_are_answered_as_recorded(api):
    """Each recorded list, and each watch that ends with a refusal."""
    for name, color in (("w1", "red"), ("w2", "blue"), ("w3", "red"), ("w4", "blue")):  # w0 is made in the recording
        api.store.create(JOBS, "launch", job(name, color=color))
    compared, since = 0, None
    for line in recorded("watch_mechanics"):
        query = parse_qs(line.get("request", {}).get("query", ""))
        path = line.get("request", {}).get("path") or line.get("watch", "?").split("?")[0]
        note, as_user, wanted = line.get("note", ""), line.get("as", ""), line.get("response")
        if "compact" in note:
            api.store.compact()
        if wanted is None or LAUNCHER in note or "no answer" in note or line["t_s"] > 17 and "request" in line and (
            wanted["status"] == 200  # objects have been made and deleted meanwhile
        ):  # fmt: skip
            continue
        if "sendInitialEvents" in line.get("watch", "") or "old etcd" in note or "still in the watch cache" in note:
            continue
        if "request" in line:
            token = query.get("continue", [""])[0]
            if token and wanted["status"] == 200:
                assert since, note
                line["request"]["query"] = re.sub("continue=.*", f"continue={since}", line["request"]["query"])
            request, headers = line["request"], line["request"].get("headers", {})
            sent = {key.replace("-", "_"): value for key, value in headers.items()}
            answer = ask(api, request["method"], path, request["query"], request.get("body"), **sent)
            body = json.loads(answer.data)
            since = body["metadata"].get("continue")
            if answer.status == 200 and "items" in body:
                names = [item["metadata"]["name"] for item in body["items"]]
                assert names == [item["metadata"]["name"] for item in wanted["body"]["items"]], note
                assert ("kind" in body["items"][0]) == ("kind" in wanted["body"]["items"][0]), note
                assert set(body["metadata"]) == set(wanted["body"]["metadata"]), note
                assert body["metadata"].get("remainingItemCount") == wanted["body"]["metadata"].get(
                    "remainingItemCount"
                )
        else:
            token = None if "anonymous" in as_user else "wrong" if "invalid token" in note else ""
            answer = ask(api, "GET", path, line["watch"].partition("?")[2].replace("=6", "=0.1"), token=token)
            if wanted["status"] == 200:
                lines = [json.loads(text) for text in answer.data.splitlines()]
                if "older than the watch cache" in note or "same for a custom resource" in note:
                    told = "too old resource version: 1 "
                    assert lines[0]["type"] == "ERROR" and lines[0]["object"]["message"].startswith(told), note
                    assert (lines[0]["object"]["code"], lines[0]["object"]["reason"]) == (410, "Expired")
                continue
            body = json.loads(answer.data)
        assert answer.status == wanted["status"], f"{note}: {body}"
        if answer.status >= 400:
            numbers = re.compile(r"\d{4,}|: invalid character .*")
            given, real = shown(body), shown(wanted["body"])
            assert numbers.sub("N", given["message"]).strip("N") == numbers.sub("N", real["message"]).strip("N"), note
            assert (given["reason"], given["code"]) == (real["reason"], real["code"])
            assert ("continue" in body["metadata"]) == ("continue" in wanted["body"]["metadata"])
        compared += 1
    assert compared > 15


def test_a_watch_from_a_lists_version_shows_every_later_change_once(api):
    """Changes are made all the while; whatever the moment of the list, list and watch together give them all."""

    def change() -> None:
        for number in range(400):
            name = f"j{number % 7}"
            if number >= 7:
                api.store.update(
                    JOBS,
                    "launch",
                    name,
                    lambda o: {**o, "spec": {**o["spec"], "parallelism": o["spec"]["parallelism"] + 1}},
                )
            else:
                api.store.create(JOBS, "launch", job(name))
        api.store.create(JOBS, "launch", job("last"))

    thread = threading.Thread(target=change)
    thread.start()
    listed = json.loads(ask(api, "GET", JOBS_PATH).data)
    seen = {item["metadata"]["name"]: item["spec"]["parallelism"] for item in listed["items"]}
    answer = watch(api, JOBS_PATH, resourceVersion=listed["metadata"]["resourceVersion"])
    following = events(answer)
    while "last" not in seen:
        event = next(following)
        name, count = event["object"]["metadata"]["name"], event["object"]["spec"]["parallelism"]
        assert count == seen.get(name, 0) + 1, "a change was passed over, or shown twice"
        assert event["type"] == ("MODIFIED" if name in seen else "ADDED")
        seen[name] = count
    thread.join()
    answer.close()
    assert seen == {o["metadata"]["name"]: o["spec"]["parallelism"] for o in api.store.objects(JOBS)}


def test_resource_versions_rise_and_bookmarks_name_the_newest(api):
    versions = [int(api.store.create(JOBS, "launch", job(f"a{n}"))["metadata"]["resourceVersion"]) for n in range(5)]
    assert versions == sorted(set(versions))
    answer = watch(api, TRAINJOBS_PATH, resourceVersion=versions[0], allowWatchBookmarks="true")
    mark = next(events(answer))
    assert mark["type"] == "BOOKMARK" and int(mark["object"]["metadata"]["resourceVersion"]) == versions[-1]
    answer.close()


def test_an_object_that_gains_or_loses_a_label_comes_and_goes(api):
    api.store.create(JOBS, "launch", job("w", color="blue"))
    begin = api.store.version

    def label(color: str) -> None:
        api.store.update(
            JOBS, "launch", "w", lambda o: {**o, "metadata": {**o["metadata"], "labels": {"color": color}}}
        )

    for color in ("red", "green", "red"):
        label(color)
    api.store.delete(JOBS, "launch", "w", {"propagationPolicy": "Background"})
    api.store.create(JOBS, "launch", job("last", color="red"))
    answer = watch(api, JOBS_PATH, resourceVersion=begin, labelSelector="color=red")
    told = takewhile(lambda event: event["object"]["metadata"]["name"] != "last", events(answer))
    seen = [(event["type"], event["object"]["metadata"]["labels"]["color"]) for event in told]
    answer.close()
    assert seen == [("ADDED", "red"), ("DELETED", "red"), ("ADDED", "red"), ("DELETED", "red")]


def owner(workflow: Object, **more: Any) -> Object:
    meta = workflow["metadata"]
    return {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": meta["name"], "uid": meta["uid"], **more}


def test_what_has_lost_its_last_owner_goes_and_before_that_only_the_reference_goes(api):
    one, two = (api.store.create(WORKFLOWS, "launch", {"metadata": {"name": name}}) for name in ("one", "two"))
    api.store.create(TRAINJOBS, "launch", train_job("t", ownerReferences=[owner(one), owner(two)]))
    child = {"metadata": {"name": "p", "ownerReferences": []}, "spec": {"containers": [{"name": "m"}]}}
    train = api.store.get(TRAINJOBS, "launch", "t")["metadata"]
    child["metadata"]["ownerReferences"] = [{"kind": "TrainJob", "name": "t", "uid": train["uid"], "controller": True}]
    api.store.create(PODS, "launch", child)
    api.store.delete(WORKFLOWS, "launch", "one")
    left = api.store.get(TRAINJOBS, "launch", "t")["metadata"]["ownerReferences"]
    assert [reference["name"] for reference in left] == ["two"]
    api.store.delete(WORKFLOWS, "launch", "two")
    assert api.store.objects(TRAINJOBS) == [] and api.store.objects(PODS) == []
    stray = api.store.create(TRAINJOBS, "launch", train_job("t", ownerReferences=[owner(one)]))
    assert stray["metadata"]["name"] == "t" and api.store.objects(TRAINJOBS) == [], "its owner was never there"


def test_a_status_is_written_through_its_own_door_alone(api):
    api.store.create(TRAINJOBS, "launch", train_job("t"))
    merge = {"content_type": "application/merge-patch+json"}
    body = {"status": {"conditions": [{"type": "Complete"}]}, "metadata": {"labels": {"a": "b"}}}
    answer = json.loads(ask(api, "PATCH", f"{TRAINJOBS_PATH}/t", body=body, **merge).data)
    assert "status" not in answer and answer["metadata"]["labels"] == {"a": "b"}
    body["metadata"]["labels"] = {"a": "c"}
    answer = json.loads(ask(api, "PATCH", f"{TRAINJOBS_PATH}/t/status", body=body, **merge).data)
    assert answer["status"] == body["status"] and answer["metadata"]["labels"] == {"a": "b"}
    assert answer["metadata"]["generation"] == 1


def test_a_followed_log_goes_on_until_its_container_ends(api):
    pod = {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "node"}]}}
    api.store.create(PODS, "launch", pod)
    path = "/api/v1/namespaces/launch/pods/p/log"
    assert ask(api, "GET", path).status == 400, "its container has not begun"
    api.store.log("launch", "p", "one", at="2026-11-26T10:00:00.000000000Z")

    def go_on() -> None:
        wait_for(lambda: len(asked := api.asked("GET", "/log")) == 2 and asked[1].sent)  # the first line, so far
        api.store.log("launch", "p", "two", at="2026-11-26T10:00:01.000000000Z")
        api.store.log("launch", "p", end=True)

    threading.Thread(target=go_on).start()
    assert ask(api, "GET", path, "follow=true&container=node").data == b"one\ntwo\n"
    late = ask(api, "GET", path, "timestamps=true&sinceTime=2026-11-26T10:00:01Z").data
    assert late == b"2026-11-26T10:00:01.000000000Z two\n"


def test_trouble_comes_as_it_was_ordered(api):
    api.fail("POST", "trainjobs", lose="answer")
    with pytest.raises(urllib3.exceptions.ProtocolError):
        ask(api, "POST", TRAINJOBS_PATH, body=train_job("t"))
    assert ask(api, "POST", TRAINJOBS_PATH, body=train_job("t")).status == 409, "the work was done, the answer was lost"
    api.fail(status=429, retry_after=3, times=1)
    busy = ask(api, "GET", JOBS_PATH)
    assert (busy.status, busy.headers["retry-after"]) == (429, "3")
    with api.away(), pytest.raises(urllib3.exceptions.NewConnectionError):
        ask(api, "GET", JOBS_PATH)
    assert ask(api, "GET", f"{TRAINJOBS_PATH}/t").status == 200, "it is back, with what it had"
    answer = watch(api, JOBS_PATH)
    api.cut_streams()
    with pytest.raises(urllib3.exceptions.ProtocolError):
        list(events(answer))
    api.expire(api.token)
    assert ask(api, "GET", JOBS_PATH).status == 401
