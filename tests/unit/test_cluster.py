"""The layer over the Kubernetes API: no change is passed over, trouble is ridden out, refusals say what to do."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml

from svdflow.common.cluster import api as cluster_api
from svdflow.common.cluster.api import Cluster, connect
from svdflow.common.cluster.errors import AlreadyThere, Changed, ClusterError, NotThere
from svdflow.common.cluster.kinds import PODS, TRAINJOBS
from svdflow.common.cluster.watch import Event, Watches, watch
from svdflow.common.errors import ConfigError
from tests.cluster_objects import NS, pod, train_job
from tests.fakes import kube_rules
from tests.fakes.kube_api import KubeAPI
from tests.fakes.kube_store import Object


@pytest.fixture
def page() -> Iterator[Callable[..., Callable[[], Any]]]:
    """Makes a server that answers with success and whatever is given, to watches with the second; gives its address."""
    servers = []

    def make(answer: bytes, to_watches: bytes = b"") -> Callable[[], Any]:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # noqa: N802
                self.send_response(200)
                self.end_headers()
                self.wfile.write(to_watches if "watch=true" in self.path else answer)

            def log_message(self, *_: Any) -> None:
                pass

        servers.append(server := ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

        def configure() -> Any:
            from kubernetes.client import Configuration

            configuration = Configuration()
            configuration.host = f"http://127.0.0.1:{server.server_address[1]}"
            return configuration

        return configure

    yield make
    for server in servers:
        server.shutdown()
        server.server_close()


class Clock:
    """Time that passes only while somebody sleeps; ``at`` does something at a moment."""

    def __init__(self) -> None:
        self.now, self.plans = 0.0, list[tuple[float, Callable[[], None]]]()

    def __call__(self) -> float:
        return self.now

    def at(self, moment: float, do: Callable[[], None]) -> None:
        self.plans.append((moment, do))

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for plan in [plan for plan in self.plans if plan[0] <= self.now]:
            self.plans.remove(plan)
            plan[1]()


# requests


def test_objects_go_and_come_as_plain_dictionaries(api, cluster):
    made = cluster.create(TRAINJOBS, train_job("t"))
    assert made["metadata"]["uid"] and cluster.get(TRAINJOBS, "t") == made
    with pytest.raises(AlreadyThere, match="create TrainJob t: .*already exists"):
        cluster.create(TRAINJOBS, train_job("t"))
    patched = cluster.patch(TRAINJOBS, "t", {"metadata": {"labels": {"a": "b"}}})
    with pytest.raises(Changed):
        stale = {"resourceVersion": made["metadata"]["resourceVersion"], "labels": {"a": "c"}}
        cluster.patch(TRAINJOBS, "t", {"metadata": stale})
    with pytest.raises(Changed):
        cluster.delete(TRAINJOBS, made, exactly=True)
    cluster.delete(TRAINJOBS, patched, exactly=True)
    cluster.delete(TRAINJOBS, patched)
    with pytest.raises(NotThere, match="get TrainJob t"):
        cluster.get(TRAINJOBS, "t")


def test_a_delete_is_of_the_object_that_was_read_and_takes_its_pods_along(api, cluster):
    made = cluster.create(TRAINJOBS, train_job("t"))
    cluster.delete(TRAINJOBS, made)
    later = cluster.create(TRAINJOBS, train_job("t"))
    cluster.delete(TRAINJOBS, made)
    assert cluster.get(TRAINJOBS, "t") == later, "the name is another's by now"
    assert api.asked("DELETE")[0].body["propagationPolicy"] == "Background"


def test_an_unknown_field_is_refused_and_not_dropped(cluster):
    wrong = train_job("t")
    wrong["spec"]["podSpecOverrides"] = []
    with pytest.raises(ClusterError, match='unknown field "spec.podSpecOverrides"'):
        cluster.create(TRAINJOBS, wrong)


def test_long_lists_come_in_pages_and_begin_again_where_a_page_has_expired(api, cluster, monkeypatch):
    monkeypatch.setattr(cluster_api, "_PAGE", 10)
    for number in range(35):
        api.store.create(kube_rules.PODS, NS, pod(f"p{number:02}"))
    assert [p["metadata"]["name"] for p in cluster.list(PODS)] == [f"p{n:02}" for n in range(35)]
    assert len(api.asked("GET", "/pods")) == 4
    pages = cluster.pages(PODS)
    next(pages)
    api.store.compact()
    with pytest.raises(ClusterError) as error:
        next(pages)
    assert error.value.status == 410
    api.requests.clear()
    api.fail("GET", "/pods", times=0)
    ask, calls = cluster._ask, []

    def expires_once(*arguments: Any) -> Object:
        calls.append(1)
        if len(calls) == 3:
            api.store.compact()
        return ask(*arguments)

    monkeypatch.setattr(cluster, "_ask", expires_once)
    assert len({p["metadata"]["name"] for p in cluster.list(PODS)}) == 35 and len(calls) == 7


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(api, cluster, status):
    api.fail("GET", times=2, status=status, retry_after=None)
    cluster._sleep = lambda seconds: None
    assert cluster.list(PODS) == [] and len(api.requests) == 3


def test_what_the_server_asks_to_wait_is_waited(api):
    clock = Clock()
    with Cluster(api.configuration, NS, 60, clock, clock.sleep) as cluster:
        api.fail("GET", status=429, retry_after=7)
        cluster.list(PODS)
    assert clock.now == 7


def test_a_server_that_is_away_for_a_minute_is_waited_for(api):
    clock = Clock()
    with Cluster(api.configuration, NS, clock=clock, sleep=clock.sleep) as cluster:
        cluster.list(PODS)
        api.stop()
        clock.at(60, api.start)
        assert cluster.create(TRAINJOBS, train_job("t"))["metadata"]["name"] == "t"
    assert 60 <= clock.now < 75


def test_a_server_that_stays_away_is_given_up_with_one_line(api):
    clock = Clock()
    with Cluster(api.configuration, NS, clock=clock, sleep=clock.sleep) as cluster, api.away():
        with pytest.raises(ClusterError, match=r"^list pods: no answer .*refused.*; tried for 600 s$"):
            cluster.list(PODS)
    assert 570 < clock.now <= 600


def test_an_answer_that_got_lost_after_the_work_was_done_is_told_as_such(api, cluster):
    api.fail("POST", lose="answer")
    with pytest.raises(AlreadyThere):
        cluster.create(TRAINJOBS, train_job("t"))
    assert len(api.store.objects(kube_rules.TRAINJOBS)) == 1


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("forbidden", r"cannot list resource \"pods\".*403 Forbidden\); the step's service account.*pipeline-runner"),
        ("no such kind", "does not know trainjobs .*install Kubeflow Trainer"),
        ("webhook", "denied the request: spec.RuntimeRef"),
        ("too large", "too large"),
    ],
)
def test_refusals_say_what_to_do_and_are_not_asked_again(api, how, says):
    if how == "forbidden":
        api.grants["system:admin"] = {NS: []}
    if how == "no such kind":
        api.resources = {key: r for key, r in api.resources.items() if r.kind != "TrainJob"}
    api.runtimes_must_exist = how == "webhook"
    if how == "too large":
        api.fail(status=500, message="etcdserver: request is too large")
    with Cluster(api.configuration, NS) as cluster, pytest.raises(ClusterError, match=says):
        cluster.list(PODS) if how == "forbidden" else cluster.create(TRAINJOBS, train_job("t"))
    assert len(api.requests) == 1


def test_a_page_of_a_proxy_is_not_taken_for_an_answer(page):
    with Cluster(page(b"<html>log in</html>"), NS) as cluster:
        with pytest.raises(ClusterError, match="get Pod p: something else than the Kubernetes API answers there"):
            cluster.get(PODS, "p")
        with pytest.raises(ClusterError, match="list pods: something else"):
            cluster.list(PODS)


# credentials


def test_a_connection_that_another_thread_drops_meanwhile_is_used_to_its_end(api):
    class Dropped(Cluster):
        """As when credentials are refused to another thread at every moment that hurts."""

        _client = property(lambda self: None, lambda self, value: None)

    with Dropped(api.configuration, NS) as cluster:
        assert cluster.list(PODS) == []


def test_credentials_that_cannot_be_read_again_end_a_watch_with_the_reason(api):
    calls: list[int] = []

    def configure() -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise ConfigError("the token has gone")
        return api.configuration()

    with Cluster(configure, NS, patience_s=120) as cluster, Watches(cluster, (PODS, "", "")) as watches:
        assert watches.next(120)
        api.expire("token")
        api.cut_streams()
        with pytest.raises(ConfigError, match="the token has gone"):
            watches.next(120)


def test_a_token_that_expires_half_way_is_read_anew(api, tmp_path, monkeypatch):
    token = tmp_path / "token"
    token.write_text(api.token)
    user = {"name": "u", "user": {"tokenFile": str(token)}}
    context = {"name": "c", "context": {"cluster": "k", "user": "u", "namespace": NS}}
    config = {"apiVersion": "v1", "kind": "Config", "current-context": "c", "contexts": [context], "users": [user]}
    config["clusters"] = [{"name": "k", "cluster": {"server": api.url}}]
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(path))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with connect() as cluster:
        assert cluster.namespace == NS and cluster.list(PODS) == []
        api.expire(api.token)
        api.tokens["renewed"] = ("system:admin", float("inf"))
        cluster._sleep = lambda seconds: token.write_text("renewed") and None
        assert cluster.list(PODS) == []
    assert [r.status for r in api.requests] == [200, 401, 200]


def self_signed(folder: Path) -> tuple[str, str]:
    """A certificate for loopback and its key."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "loopback")])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(now - timedelta(1)).not_valid_after(now + timedelta(1))
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    place = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    certificate = made.add_extension(place, critical=False).sign(key, hashes.SHA256())
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "ca.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key").write_bytes(key.private_bytes(serialization.Encoding.PEM, *form))
    return str(folder / "ca.crt"), str(folder / "key")


def test_in_a_pod_the_service_account_is_used_its_certificate_checked_and_a_renewed_token_read(tmp_path, monkeypatch):
    certificate = self_signed(tmp_path)
    (tmp_path / "token").write_text("token")
    (tmp_path / "namespace").write_text("team-a")
    monkeypatch.setattr(cluster_api, "SERVICE_ACCOUNT", tmp_path)
    with KubeAPI(certificate=certificate) as api:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(api.port))
        with connect(patience_s=120) as cluster:
            assert cluster.namespace == "team-a" and cluster.list(PODS) == []
            api.expire("token")
            api.tokens["renewed"] = ("system:admin", float("inf"))
            (tmp_path / "token").write_text("renewed")
            assert cluster.list(PODS) == []
        (tmp_path / "other").mkdir()
        (tmp_path / "ca.crt").write_text(Path(self_signed(tmp_path / "other")[0]).read_text())
        with connect() as cluster, pytest.raises(ClusterError, match="list pods: .*CERTIFICATE_VERIFY_FAILED"):
            cluster.list(PODS)  # who answers is not who should
    assert [r.status for r in api.requests] == [200, 401, 200]


def test_credentials_that_stay_refused_are_given_up_after_two_minutes(api):
    clock = Clock()
    with Cluster(lambda: api.configuration("wrong"), NS, clock=clock, sleep=clock.sleep) as cluster:
        with pytest.raises(ClusterError, match="401 Unauthorized.*credentials"):
            cluster.list(PODS)
    assert 100 < clock.now <= 120


def test_without_a_way_in_the_message_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="this is no pod, and the kubeconfig cannot be used"):
        connect()
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr(cluster_api, "SERVICE_ACCOUNT", tmp_path)
    with pytest.raises(ConfigError, match="its service account has to mount its token"):
        connect()


# watching


def follow(cluster: Cluster, out: list[Event], **how: Any) -> tuple[threading.Thread, threading.Event]:
    stop = threading.Event()

    def run() -> None:
        for event in watch(cluster, PODS, stop=stop.is_set, **how):
            out.append(event)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, stop


def end(cluster: Cluster, thread: threading.Thread, stop: threading.Event) -> None:
    stop.set()
    cluster.close()
    thread.join(120)
    assert not thread.is_alive(), "closing a connection ends who reads from it"


def wait(condition: Callable[[], Any], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def names(events: list[Event]) -> dict[str, str]:
    """What a reader of the events believes to be there: name to version."""
    there: dict[str, str] = {}
    for event in events:
        if event.type in ("ADDED", "MODIFIED"):
            there[event.object["metadata"]["name"]] = event.object["metadata"]["resourceVersion"]
        elif event.type == "DELETED":
            del there[event.object["metadata"]["name"]]  # what was never told to be there cannot go
    return there


def actual(api: KubeAPI) -> dict[str, str]:
    return {p["metadata"]["name"]: p["metadata"]["resourceVersion"] for p in api.store.objects(kube_rules.PODS, NS)}


def relabelled(label: Object, obj: Object) -> Object:
    return {**obj, "metadata": {**obj["metadata"], **label}}


def churn(api: KubeAPI, rounds: int) -> None:
    for number in range(rounds):
        name, label = f"p{number % 5}", {"labels": {"n": str(number)}}
        if name not in actual(api):
            api.store.create(kube_rules.PODS, NS, pod(name))
        elif number % 3 == 0:
            api.store.delete(kube_rules.PODS, NS, name)
        else:
            api.store.update(kube_rules.PODS, NS, name, partial(relabelled, label))


@pytest.mark.parametrize("trouble", ["none", "cut", "expired", "away", "ends", "slow"])
def test_a_watch_ends_up_with_what_there_is_whatever_happens_to_its_connection(api, cluster, trouble):
    seen: list[Event] = []
    if trouble == "ends":
        api.fail("GET", "/pods", times=100, status=0)
        original = cluster_api.Cluster.lines
        cluster.lines = lambda kind, name, part, query, silence: original(  # type: ignore[method-assign]
            cluster, kind, name, part, {**query, "timeoutSeconds": "0.01"}, silence
        )
    if trouble == "slow":
        api.fail("GET", "/pods", times=3, delay_s=0.1)
    thread, stop = follow(cluster, seen)
    for turn in range(4):
        churn(api, 40)
        if trouble == "cut":
            api.cut_streams()
        elif trouble == "expired":
            api.cut_streams()
            churn(api, 10)
            api.store.compact()
        elif trouble == "away":
            with api.away():
                churn(api, 10)
        wait(lambda: names(list(seen)) == actual(api))
        assert turn or seen
    end(cluster, thread, stop)


def test_a_connection_that_died_unnoticed_is_replaced(api, cluster):
    seen: list[Event] = []
    thread, stop = follow(cluster, seen, silence_s=0.3)
    wait(lambda: any(event.type == "LISTED" for event in seen))
    with api.stall_streams():
        churn(api, 10)
        wait(lambda: len([r for r in api.requests if r.watch]) > 1)
    wait(lambda: names(list(seen)) == actual(api))
    end(cluster, thread, stop)


def test_only_what_is_selected_is_sent(api, cluster):
    for number in range(50):
        api.store.create(kube_rules.PODS, NS, pod(f"other{number}", job="other"))
    api.store.create(kube_rules.PODS, NS, pod("mine", job="mine"))
    seen: list[Event] = []
    thread, stop = follow(cluster, seen, labels="job=mine")
    wait(lambda: seen and seen[-1].type == "LISTED")
    api.store.create(kube_rules.PODS, NS, pod("other-late", job="other"))
    api.store.create(kube_rules.PODS, NS, pod("mine-late", job="mine"))
    wait(lambda: seen[-1].type == "ADDED")
    assert set(names(seen)) == {"mine", "mine-late"}
    end(cluster, thread, stop)


@pytest.mark.parametrize("line", [b'{"kind": "Status"}', b"[]", b'{"type": "ADDED", "object": {"metadata": {}}}'])
def test_a_stream_of_something_else_ends_a_watch_and_is_not_waited_for_for_ever(page, line):
    listed = b'{"metadata": {"resourceVersion": "1"}, "items": []}'
    with Cluster(page(listed, line), NS, patience_s=0) as cluster, Watches(cluster, (PODS, "", "")) as watches:
        assert watches.next(120)
        with pytest.raises(ClusterError, match="watch pods: this is no event: "):
            watches.next(120)


def test_several_watches_come_out_of_one_place_and_a_refusal_ends_them(api, cluster):
    api.store.create(kube_rules.PODS, NS, pod("p"))
    api.store.create(kube_rules.TRAINJOBS, NS, train_job("t"))
    with Watches(cluster, (PODS, "", ""), (TRAINJOBS, "", "metadata.name=t")) as watches:
        got = [watches.next(120) for _ in range(4)]
        assert {(e.kind.name, e.type) for e in got if e} == {
            ("Pod", "ADDED"), ("Pod", "LISTED"), ("TrainJob", "ADDED"), ("TrainJob", "LISTED")
        }  # fmt: skip
        assert watches.next(0.01) is None
    api.grants["system:admin"] = {NS: [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]}
    with Watches(cluster, (PODS, "", "")) as watches, pytest.raises(ClusterError, match='cannot watch resource "pods"'):
        while True:
            watches.next(120)


def test_the_command_line_does_not_load_the_kubernetes_client():
    import subprocess
    import sys

    code = "import sys; from svdflow.common.cluster import owners, watch; assert 'kubernetes' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(Path.cwd())})
