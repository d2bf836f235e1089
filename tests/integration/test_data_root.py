"""One contract for data roots, held against a directory and against a real S3 server."""

import dataclasses
import http.client
import json
import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from svdflow.common.errors import StorageError
from svdflow.common.identity import file_md5
from svdflow.common.object_store import StoreEndpoint
from svdflow.common.storage import DataRoot, object_uri
from svdflow.common.storage_directory import DirectoryRoot
from svdflow.common.storage_s3 import S3Root
from tests.integration.flaky_door import FlakyDoor

MISSING = object_uri("0123456789abcdef" * 2)


@pytest.fixture(params=["directory", "s3"])
def root(request, tmp_path: Path, monkeypatch) -> DataRoot:
    if request.param == "directory":
        return DataRoot.open(tmp_path / "data root")
    endpoint: StoreEndpoint = request.getfixturevalue("object_store")
    for name, value in endpoint.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SVDFLOW_CACHE_DIR", str(tmp_path / "cache"))
    return DataRoot.open(f"s3://{endpoint.bucket}/tests/{uuid.uuid4().hex}")


@pytest.fixture
def again(root: DataRoot, tmp_path: Path, monkeypatch) -> DataRoot:
    """The same root as another machine sees it."""
    monkeypatch.setenv("SVDFLOW_CACHE_DIR", str(tmp_path / "another cache"))
    return DataRoot.open(root.location)


def test_objects_are_named_by_content_and_written_once(root, again, tmp_path):
    path = tmp_path / "a file"
    path.write_bytes(b"hello")
    uri = root.put_file(path)
    assert uri == "files/md5/5d/41402abc4b2a76b9719d911017c592"  # md5("hello"), as DVC lays it out
    assert root.put_bytes(b"hello") == uri and root.put_file(path) == uri and root.writes == 1
    assert again.put_bytes(b"hello") == uri and again.writes == 0
    assert again.read(uri) == b"hello" and again.exists(uri) and again.size(uri) == 5
    assert list(again.list("files")) == list(again.list("files/md5/")) == [uri]


def test_ranges_are_those_of_a_file(root, tmp_path):
    data = bytes(range(256)) * 5000
    uri = root.put_bytes(data)
    for offset, length in (
        (0, 10),
        (1_000_001, 77),
        (len(data) - 5, 5),
        (len(data) - 5, 50),
        (len(data), 5),
        (len(data) + 9, 5),
        (7, 0),
    ):
        assert root.read_range(uri, offset, length) == data[offset : offset + length], (offset, length)


def test_fetch_gives_a_local_read_only_file(root, again):
    uri = root.put_bytes(b"content" * 1000)
    path = again.fetch(uri)
    assert path.read_bytes() == b"content" * 1000 and path == again.fetch(uri)
    assert path.stat().st_mode & 0o222 == 0


def test_what_is_missing_is_said_in_one_line(root):
    assert not root.exists(MISSING)
    for read in (
        root.read,
        root.fetch,
        root.size,
        lambda uri: root.read_range(uri, 0, 5),
        lambda uri: root.read_range(uri, 0, 0),
    ):
        with pytest.raises(StorageError, match="0123456789abcdef") as caught:
            read(MISSING)
        assert "\n" not in str(caught.value)
    assert list(root.list("results/none")) == []


def test_results_are_found_under_their_key(root, again):
    key = "ab" * 16
    assert root.find("split", key) is None
    root.record("split", key, {"clips": [1, 2], "uri": MISSING})
    assert again.find("split", key) == {"clips": [1, 2], "uri": MISSING}
    assert again.find("encode", key) is None and list(again.list("results/split/")) == [f"results/split/ab/{key}.json"]
    root.record("split", key, {"clips": []})
    assert again.find("split", key) == {"clips": []}


def test_trees_come_back_whole(root, again, tmp_path):
    source = tmp_path / "tree"
    files = {"a.txt": b"1", "a/b.bin": b"2" * 1000, "a-b/c d.txt": b"", "ä/ü.json": b"{}"}
    for name, data in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(data)
    uri = root.put_tree(source)
    assert uri.endswith(".dir") and root.put_tree(source) == uri and root.writes == len(files) + 1
    back = again.fetch_tree(uri)
    assert {p.relative_to(back).as_posix(): p.read_bytes() for p in back.rglob("*") if p.is_file()} == files
    assert again.fetch_tree(uri) == back


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/tmp/svdflow-evil", "a/./../../evil"])
def test_a_listing_that_leaves_its_directory_is_refused(root, name):
    inner = root.put_bytes(b"evil")
    listing = [{"md5": "d" * 32, "relpath": "x"}, {"md5": inner[10:].replace("/", ""), "relpath": name}]
    listing[0]["md5"] = listing[1]["md5"]
    uri = root.put_bytes(json.dumps(listing).encode(), ".dir")
    with pytest.raises(StorageError, match="leaves the directory"):
        root.fetch_tree(uri)
    assert not Path("/tmp/svdflow-evil").exists()
    assert [p for p in root.scratch("trees").parent.rglob("*") if p.is_file()] == []


def test_a_listing_cannot_point_outside_the_root(root):
    uri = root.put_bytes(json.dumps([{"md5": "aa/../../../../../../../etc/passwd", "relpath": "x"}]).encode(), ".dir")
    with pytest.raises(StorageError, match="no URI of a data root"):
        root.fetch_tree(uri)
    for evil in ("../x", "/etc/passwd", "files/../../x"):
        for use in (root.exists, root.read, root.fetch, root.size):
            with pytest.raises(StorageError):
                use(evil)


def test_an_interrupted_write_leaves_nothing_visible(root, tmp_path):
    data = os.urandom(2_000_000)
    path = tmp_path / "big"
    path.write_bytes(data)
    uri = "files/md5/" + "ab/" + "c" * 30
    _interrupt(root, uri, path)
    assert not root.exists(uri) and list(root.list("files")) == []
    with pytest.raises(StorageError):
        root.read(uri)
    assert root.read(root.put_file(path)) == data


def test_copy_from_another_root_writes_what_is_missing(root, tmp_path):
    other = DataRoot.open(tmp_path / "other")
    uri = other.put_bytes(b"shard")
    assert root.copy_from(other, uri) is True and root.copy_from(other, uri) is False
    assert root.read(uri) == b"shard" and root.writes == 1
    with pytest.raises(StorageError):
        root.copy_from(other, MISSING)


def test_scratch_outlives_the_root_object(root):
    (root.scratch("train", "x") / "checkpoint").write_bytes(b"c")
    assert (DataRoot.open(root.location).scratch("train", "x") / "checkpoint").read_bytes() == b"c"


def _interrupt(root: DataRoot, uri: str, path: Path) -> None:
    """Start writing an entry and die half way, as a killed process does."""
    if isinstance(root, S3Root):
        url = urlsplit(root._client.presigned_put_object(root.bucket, root._key(uri)))
        connection = http.client.HTTPConnection(url.netloc)
        connection.putrequest("PUT", f"{url.path}?{url.query}")
        connection.putheader("Content-Length", str(path.stat().st_size))
        connection.endheaders()
        connection.send(path.read_bytes()[:1_000_000])
        connection.close()
        return
    assert isinstance(root, DirectoryRoot)
    child = os.fork()
    if child == 0:
        import shutil

        def half(source: Path, target: Path) -> None:
            target.write_bytes(Path(source).read_bytes()[:1_000_000])
            os._exit(9)

        shutil.copyfile = half  # type: ignore[assignment]
        try:
            root._write_file(uri, path)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


# what only S3 has


@pytest.fixture
def remote(object_store: StoreEndpoint, tmp_path, monkeypatch) -> S3Root:
    monkeypatch.setenv("SVDFLOW_CACHE_DIR", str(tmp_path / "cache"))
    return S3Root(f"s3://{object_store.bucket}/tests/{uuid.uuid4().hex}", object_store)


def test_s3_refuses_a_damaged_object(remote):
    uri = remote.put_bytes(b"good")
    remote._write_bytes(uri, b"bad!")
    with pytest.raises(StorageError, match="damaged"):
        remote.fetch(uri)
    assert not list((remote._local / "cache").rglob("*.partial*"))


def test_s3_cache_stays_within_its_bound(remote, monkeypatch):
    monkeypatch.setattr("svdflow.common.storage_s3._RECENT_S", 0.0)
    monkeypatch.setattr(remote, "_cache_bytes", 2500)
    uris = [remote.put_bytes(bytes([i]) * 1000) for i in range(4)]
    for i, uri in enumerate(uris):
        os.utime(remote.fetch(uri), (1000 + i, 1000 + i))
    cached = [p for p in (remote._local / "cache").rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in cached) <= 2500
    assert {p.read_bytes()[0] for p in cached} == {2, 3}  # the two used last
    assert remote.fetch(uris[0]).read_bytes() == bytes(1000)


def test_s3_cache_keeps_what_somebody_holds_and_what_a_killed_process_held_goes(remote, monkeypatch):
    """A video that is worked on for longer than a file counts as just handed out, with the cache full."""
    monkeypatch.setattr("svdflow.common.storage_s3._RECENT_S", 0.0)
    monkeypatch.setattr(remote, "_cache_bytes", 1500)
    first, *others = [remote.put_bytes(bytes([i]) * 1000) for i in range(4)]
    with remote.held(first) as path:
        os.utime(path, (1000, 1000))
        for uri in others:
            os.utime(remote.fetch(uri), (2000, 2000))
        with remote.held(first) as again:
            assert again == path
        os.utime(path, (1000, 1000))
        remote.fetch(others[0])
        assert path.read_bytes() == bytes(1000), "opened again, it is still there"
    os.utime(path, (1000, 1000))
    remote.fetch(others[1])
    assert not path.exists()

    child = os.fork()
    if child == 0:
        with remote.held(first):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    os.utime(path, (1000, 1000))
    remote.fetch(others[2])
    assert not path.exists()


@pytest.fixture
def door(object_store) -> Iterator[FlakyDoor]:
    with FlakyDoor(urlsplit(object_store.endpoint_url).port) as door:
        yield door


@pytest.fixture
def behind_door(object_store, door, tmp_path, monkeypatch) -> S3Root:
    monkeypatch.setenv("SVDFLOW_CACHE_DIR", str(tmp_path / "cache"))
    endpoint = dataclasses.replace(object_store, endpoint_url=f"http://127.0.0.1:{door.port}")
    return S3Root(f"s3://{object_store.bucket}/tests/{uuid.uuid4().hex}", endpoint)


def test_s3_that_goes_away_for_a_while_is_waited_for(behind_door, door, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(os.urandom(3_000_000))
    kept = behind_door.put_bytes(b"kept")
    uses = {
        "put_file": lambda: behind_door.put_file(path),
        "put_bytes": lambda: behind_door.put_bytes(b"new"),
        "read": lambda: behind_door.read(kept),
        "range": lambda: behind_door.read_range(kept, 1, 2),
        "fetch": lambda: behind_door.fetch(kept).read_bytes(),
        "exists": lambda: behind_door.exists(kept),
        "size": lambda: behind_door.size(kept),
        "list": lambda: kept in list(behind_door.list("files")),
        "record": lambda: behind_door.record("split", "ab" * 16, {}),
        "open": lambda: S3Root(behind_door.location, behind_door.endpoint).bucket,
    }
    door.shut()
    with ThreadPoolExecutor(len(uses)) as threads:
        found = {name: threads.submit(use) for name, use in uses.items()}
        time.sleep(8)
        door.open()
    assert {name: future.result() for name, future in found.items()} == {
        "put_file": object_uri(file_md5(path)), "put_bytes": behind_door.put_bytes(b"new"), "read": b"kept",
        "range": b"ep", "fetch": b"kept", "exists": True, "size": 4, "list": True, "record": None,
        "open": behind_door.bucket,
    }  # fmt: skip


def test_s3_that_breaks_off_in_the_middle_of_a_transfer_is_asked_again(behind_door, door):
    data = os.urandom(40_000_000)
    uri = behind_door.put_bytes(data)
    for _ in range(3):
        before = door.connections
        door.shut_after(10_000_000)
        again = threading.Thread(target=lambda: door.closed.wait(120) and door.open())
        again.start()
        assert behind_door.read(uri) == data
        again.join()
        assert door.connections > before, "it came again"


def test_s3_listing_goes_on_where_it_broke_off(behind_door, door, monkeypatch):
    monkeypatch.setattr("svdflow.common.storage_s3._PAGE", 3)
    uris = {behind_door.put_bytes(bytes([n])) for n in range(10)}
    listed = []
    for uri in behind_door.list("files"):
        listed.append(uri)
        if len(listed) % 4 == 0:
            door.shut()
            door.open()
    assert sorted(listed) == sorted(uris)


def test_s3_patience_has_an_end(behind_door, door, monkeypatch):
    monkeypatch.setattr(behind_door, "_patience_s", 3.0)
    door.shut()
    with pytest.raises(StorageError, match="does not answer"):
        behind_door.read(MISSING)


def test_s3_mistakes_are_named(object_store, tmp_path, monkeypatch):
    monkeypatch.setenv("SVDFLOW_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("SVDFLOW_S3_PATIENCE_S", "0")
    wrong_key = StoreEndpoint(object_store.endpoint_url, object_store.access_key, "wrong-secret", object_store.bucket)
    nobody = StoreEndpoint("http://127.0.0.1:9", "a", "b")
    no_keys = StoreEndpoint(object_store.endpoint_url, "", "")
    for location, endpoint, says in (
        ("s3://svdflow/x", wrong_key, "AWS_SECRET_ACCESS_KEY"),
        ("s3://not-there/x", object_store, "no bucket 'not-there'"),
        ("s3://svdflow/x", nobody, "does not answer"),
        ("s3://UPPER/x", object_store, "s3://bucket/prefix"),
        ("s3://svdflow/x", no_keys, "no credentials"),
        ("s3://svdflow/x", StoreEndpoint("127.0.0.1:80", "a", "b"), "http"),
    ):
        with pytest.raises(StorageError, match=says) as caught:
            S3Root(location, endpoint).exists(MISSING)
        assert "\n" not in str(caught.value) and object_store.secret_key not in str(caught.value)
