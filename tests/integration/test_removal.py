"""Entries are told with size and time; what is removed is gone from a directory, a bucket, a bucket with versions."""

import time
import uuid

import pytest
from minio.commonconfig import ENABLED
from minio.versioningconfig import VersioningConfig

from svdflow.common.object_store import StoreEndpoint
from svdflow.common.storage import DataRoot
from svdflow.common.storage_s3 import S3Root


@pytest.fixture(params=["directory", "bucket", "versioned bucket"])
def place(request, tmp_path, object_store: StoreEndpoint, monkeypatch) -> DataRoot:
    monkeypatch.setenv("SVDFLOW_CACHE_DIR", str(tmp_path / "cache"))
    if request.param == "directory":
        return DataRoot.open(tmp_path / "root")
    bucket = object_store.bucket
    if request.param == "versioned bucket":
        bucket = f"versioned-{uuid.uuid4().hex}"
        client = object_store.minio()
        client.make_bucket(bucket)
        client.set_bucket_versioning(bucket, VersioningConfig(ENABLED))
    return S3Root(f"s3://{bucket}/{uuid.uuid4().hex}", object_store)


def test_entries_tell_size_and_time(place):
    since = time.time() - 2
    uris = {place.put_bytes(bytes(n)): n for n in (1, 10, 1000)}
    entries = {entry.uri: entry for entry in place.entries("files/md5")}
    assert {uri: entry.bytes for uri, entry in entries.items()} == uris
    assert all(since <= entry.written_at <= time.time() + 2 for entry in entries.values())


def test_what_is_removed_is_gone_with_its_copies_and_its_past(place):
    place.put_named("marks/a.json", b"first")
    place.put_named("marks/a.json", b"second")
    place.put_named("marks/a.json.more", b"another, whose name begins the same")
    uri = place.put_bytes(b"object")
    place.fetch(uri)
    assert place.remove("marks/a.json") and place.remove(uri)
    assert not place.exists(uri) and not place.remove(uri) and not place.remove("marks/a.json")
    assert place.read("marks/a.json.more").startswith(b"another")
    if isinstance(place, S3Root):
        left = place._client.list_objects(place.bucket, prefix=place.prefix, recursive=True, include_version=True)
        assert [item.object_name.rsplit("/", 1)[1] for item in left] == ["a.json.more"]
        assert [path for path in place._local.rglob("*") if path.is_file()] == []
