"""Ingest end to end from lists, web servers and S3: one row a content, nothing fetched twice, no secret told."""

import csv
import hashlib
import io
import json
import os
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flaky_door import FlakyDoor

from svdflow.common.errors import BadInputError, StorageError
from svdflow.common.manifests import read_rows
from svdflow.common.report import StepReport
from svdflow.common.storage import DataRoot
from svdflow.ingest import fetch_s3
from svdflow.ingest.fetch import FetchSettings
from svdflow.ingest.ingest import IngestSettings, ingest_videos, unread_id
from svdflow.ingest.sources import ListSettings

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))
from odd_videos import damaged, sound_only, video, y4m  # noqa: E402
from web_server import WebServer  # noqa: E402

LOCAL = FetchSettings(addresses="private", patience_s=40.0)
SETTINGS = IngestSettings(fetch=LOCAL)
AWAY_S = float(os.environ.get("SVDFLOW_TEST_AWAY_S", "6"))
GOOD, BETTER = video(24), video(30)


@pytest.fixture
def server():
    with WebServer() as server:
        yield server


def write_list(path: Path, rows: list[dict]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, names)
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def taken_in(
    source: str, tmp_path: Path, settings: IngestSettings = SETTINGS, root: DataRoot | None = None
) -> tuple[dict[str, dict], StepReport]:
    out = tmp_path / "videos.parquet"
    report = ingest_videos(source, out, root or DataRoot.open(tmp_path / "data"), settings)
    return {row["name"]: row for row in read_rows("videos", out)}, report


def everything_written(tmp_path: Path, report: StepReport) -> bytes:
    """Manifest, report, and every file and file name of the data root."""
    parts = [report.to_json(), json.dumps(read_rows("videos", tmp_path / "videos.parquet")).encode()]
    for path in (tmp_path / "data").rglob("*"):
        parts += [str(path).encode(), path.read_bytes() if path.is_file() else b""]
    return b"\n".join(parts)


def test_one_content_from_a_file_and_the_web_is_one_video_with_both_sources(tmp_path, server):
    server.file("/films/good.mp4", GOOD)
    (tmp_path / "here").mkdir()
    (tmp_path / "here/copy.mp4").write_bytes(GOOD)
    source = write_list(
        tmp_path / "list.csv",
        [
            {"uri": f"{server.url}/films/good.mp4", "licence": "CC0-1.0", "name": "web", "views": 7},
            {"uri": "here/copy.mp4", "licence": "", "name": "disk", "views": 8},
            {"uri": "here/none.mp4", "licence": "", "name": "gone", "views": 9},
        ],
    )
    rows, report = taken_in(source, tmp_path)
    assert set(rows) == {"disk", "gone"}
    row = rows["disk"]
    assert row["video_id"] == hashlib.sha256(GOOD).hexdigest() and row["status"] == "ok"
    assert row["sources"] == [
        {"name": "disk", "uri": "here/copy.mp4", "licence": None, "metadata": '{"views": "8"}'},
        {"name": "web", "uri": f"{server.url}/films/good.mp4", "licence": "CC0-1.0", "metadata": '{"views": "7"}'},
    ]
    assert row["licence"] == "CC0-1.0"
    assert DataRoot.open(tmp_path / "data").read(row["uri"]) == GOOD
    assert rows["gone"]["error"].startswith("unreadable: ") and rows["gone"]["video_id"] == unread_id("gone")
    assert report.summary["videos"]["duplicates"] == 1
    assert list((tmp_path / "data/scratch/ingest").iterdir()) == []


def test_no_secret_is_written_anywhere(tmp_path, server, capfd):
    secret = "s3cr3tS1gnature"
    server.file("/good.mp4", GOOD)
    server.file("/denied.mp4", GOOD, fails=[403])
    server.file("/damaged.mp4", b"no video")
    port = server.port
    rows = [
        {
            "uri": f"http://user:{secret}@127.0.0.1:{port}{path}?X-Amz-Signature={secret}&token={secret}",
            "page": secret[:0],
        }
        for path in ("/good.mp4", "/denied.mp4", "/damaged.mp4", "/gone.mp4")
    ]
    rows += [
        {"uri": f"http://{secret}@[::1/x?{secret}", "page": f"https://h.org/?token={secret}"},
        {"uri": f"s3://KEY:{secret}@bucket/a.mp4", "page": ""},
        {"uri": f"http://127.0.0.1:{port}/\r\nX: y?{secret}", "page": ""},
    ]
    found, report = taken_in(write_list(tmp_path / "in.csv", rows), tmp_path)
    assert len(found) == 7 and report.summary["videos"]["ok"] == 1
    assert report.summary["videos"]["by_reason"] == {"not found": 2, "refused": 1, "unreadable": 3}
    assert secret.encode() not in everything_written(tmp_path, report)
    assert secret not in "".join(capfd.readouterr())
    assert server.requests[0][1]["Authorization"].startswith("Basic ")


@pytest.mark.parametrize("how", [{}, {"etag": None, "modified": "Wed, 01 Jan 2020 00:00:00 GMT"}])
def test_what_has_not_changed_on_the_web_is_not_fetched_again(tmp_path, server, how):
    page = server.file("/a.mp4", GOOD, **how)
    server.file("/bad.mp4", b"no video at all" * 100_000, **how)
    source = write_list(tmp_path / "in.csv", [{"uri": f"{server.url}{p}?sig=1"} for p in ("/a.mp4", "/bad.mp4")])
    rows, first = taken_in(source, tmp_path)
    assert (first.done, first.reused) == (2, 0)
    before = (tmp_path / "videos.parquet").read_bytes()
    source = write_list(tmp_path / "in.csv", [{"uri": f"{server.url}{p}?sig=2"} for p in ("/a.mp4", "/bad.mp4")])
    _, second = taken_in(source, tmp_path)
    assert (second.done, second.reused, second.summary["videos"]["bytes_read"]) == (0, 2, 0)
    assert (tmp_path / "videos.parquet").read_bytes() == before
    page.data, page.etag, page.modified = (
        BETTER,
        page.etag and '"two"',
        page.modified and "Thu, 02 Jan 2020 00:00:00 GMT",
    )
    rows, third = taken_in(source, tmp_path)
    assert (third.done, third.reused) == (1, 1)
    assert rows[f"{server.url}/a.mp4"]["video_id"] == hashlib.sha256(BETTER).hexdigest()


def test_an_unreachable_source_costs_itself_alone_and_is_tried_again(tmp_path, server):
    flaky = server.file("/b.mp4", BETTER, fails=[503] * 1000)
    server.file("/a.mp4", GOOD, breaks=[1000, 2000], fails=[503])
    source = write_list(tmp_path / "in.csv", [{"uri": f"{server.url}/{n}.mp4", "name": n} for n in "ab"])
    impatient = IngestSettings(fetch=LOCAL.model_copy(update={"patience_s": 1.2}))
    rows, _ = taken_in(source, tmp_path, impatient)
    assert rows["a"]["status"] == "ok"
    assert rows["b"]["error"] == "unreachable: the server answers 503, after 1.2 s of trying"
    assert rows["b"]["video_id"] == unread_id("b") and rows["b"]["bytes"] == 0
    flaky.fails.clear()
    rows, report = taken_in(source, tmp_path, impatient)
    assert rows["b"]["status"] == "ok" and (report.done, report.reused) == (1, 1)


def test_licences_are_refused_and_allowed(tmp_path, server):
    server.file("/nc.mp4", video(31))
    for name, data in {"a": GOOD, "a2": GOOD, "b": BETTER, "c": video(32), "d": video(33)}.items():
        (tmp_path / f"{name}.mp4").write_bytes(data)
    rows = [
        {"uri": "a.mp4", "licence": "CC-BY-NC-4.0", "description": "theirs"},
        {"uri": "a2.mp4", "licence": "cc0-1.0", "description": "ours"},
        {"uri": "b.mp4", "licence": "CC-BY-NC-4.0"},
        {"uri": "c.mp4"},
        {"uri": "d.mp4", "licence": "MIT"},
        {"uri": f"{server.url}/nc.mp4", "licence": "CC-BY-NC-4.0"},
    ]
    source = write_list(tmp_path / "in.csv", rows)
    refusing = IngestSettings(fetch=LOCAL, licences_refused=("cc-by-nc-*",))
    found, report = taken_in(source, tmp_path, refusing)
    assert {name: row["status"] for name, row in found.items()} == {
        "a.mp4": "ok", "b.mp4": "set_aside", "c.mp4": "ok", "d.mp4": "ok", f"{server.url}/nc.mp4": "set_aside",
    }  # fmt: skip
    assert (found["a.mp4"]["licence"], found["a.mp4"]["description"]) == ("cc0-1.0", "ours")
    assert found["b.mp4"]["error"] == "licence: CC-BY-NC-4.0 is refused"
    assert found["b.mp4"]["video_id"] == hashlib.sha256(BETTER).hexdigest() and found["b.mp4"]["uri"] == ""
    assert server.requests == []  # what may not be used is not fetched
    stored = [path.read_bytes() for path in (tmp_path / "data/files").rglob("*") if path.is_file()]
    assert BETTER not in stored and GOOD in stored
    assert report.summary["videos"]["by_reason"] == {"licence": 2}

    allowing = IngestSettings(fetch=LOCAL, licences_allowed=("CC0-1.0", "CC-BY-NC-4.0"))
    found, _ = taken_in(source, tmp_path, allowing)
    assert found["b.mp4"]["status"] == "ok" and found["d.mp4"]["error"] == "licence: MIT is not among those allowed"
    assert found["c.mp4"]["error"] == "licence: none is named, and only some are allowed"
    assert found[f"{server.url}/nc.mp4"]["status"] == "ok"


def test_a_corpus_of_bad_videos_neither_stops_the_run_nor_loses_a_good_one(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    whole = video(96, index_first=True)
    files = {
        "good.mp4": GOOD,
        "empty.mp4": b"",
        "cut.mp4": whole[: len(whole) // 2],
        "no index.mp4": GOOD[:1500],
        "wrong.jpg": BETTER,
        "sound.mp4": sound_only(),
        "16k.y4m": y4m(15360, 8640),
        "absurd.y4m": y4m(2_000_000_000, 2_000_000_000),
        "middle.mp4": damaged(whole, 0.4, 0.6),
        "tiny.mp4": video(600, size=(16, 16)),
        "speck.mp4": video(4, size=(8, 8)),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    os.mkfifo(folder / "pipe.mp4")
    (folder / "zero.mp4").symlink_to("/dev/zero")
    rows, report = taken_in(str(folder), tmp_path)
    assert {name for name, row in rows.items() if row["status"] == "ok"} == {
        "good.mp4", "wrong.jpg", "cut.mp4", "middle.mp4", "tiny.mp4",
    }  # fmt: skip
    assert report.summary["videos"]["by_reason"] == {
        "empty": 1, "no video stream": 1, "too large": 1, "too small": 1, "unreadable": 4,
    }  # fmt: skip
    assert report.summary["videos"]["broken"] == 2
    broken = next(s for s in report.sections if s["title"].startswith("Broken inside"))
    assert {row[0] for row in broken["rows"]} == {"cut.mp4", "middle.mp4"}


def test_a_decoder_that_hangs_is_stopped_at_its_limit(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/good.mp4").write_bytes(GOOD)
    settings = IngestSettings(timeout_s=0.001)
    rows, _ = taken_in(str(tmp_path / "in"), tmp_path, settings)
    assert rows["good.mp4"]["error"] == "crash: probing it took longer than 0.001 s and was stopped"
    assert rows["good.mp4"]["video_id"] == hashlib.sha256(GOOD).hexdigest()
    rows, _ = taken_in(str(tmp_path / "in"), tmp_path)  # no verdict: it is tried again
    assert rows["good.mp4"]["status"] == "ok"


def test_a_file_that_changed_is_read_again_and_an_unchanged_one_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr("svdflow.ingest.take._SETTLED_S", -1.0)
    (tmp_path / "in").mkdir()
    path = tmp_path / "in/a.mp4"
    path.write_bytes(GOOD)
    os.utime(path, (time.time() - 100, time.time() - 100))
    taken_in(str(tmp_path / "in"), tmp_path)
    _, report = taken_in(str(tmp_path / "in"), tmp_path)
    assert report.summary["videos"]["bytes_read"] == 0
    status = path.stat()
    path.write_bytes(GOOD[:-1] + bytes([GOOD[-1] ^ 1]))  # as long as before
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # and as old: only ctime tells
    rows, report = taken_in(str(tmp_path / "in"), tmp_path)
    assert rows["a.mp4"]["video_id"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert report.summary["videos"]["bytes_read"] == len(GOOD)


def test_a_parquet_list_is_taken_in(tmp_path):
    (tmp_path / "a.mp4").write_bytes(GOOD)
    pq.write_table(pa.table({"uri": ["a.mp4"], "licence": ["MIT"], "score": [0.5]}), tmp_path / "in.parquet")
    rows, _ = taken_in(str(tmp_path / "in.parquet"), tmp_path)
    assert rows["a.mp4"]["sources"][0]["metadata"] == '{"score": 0.5}' and rows["a.mp4"]["licence"] == "MIT"


# S3


@pytest.fixture
def store(object_store, monkeypatch, tmp_path):
    """The session's S3 server as the environment names it, and a client; cleared afterwards."""
    for name, value in object_store.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SVDFLOW_CACHE_DIR", str(tmp_path / "cache"))
    client = object_store.minio()
    yield client
    for item in list(client.list_objects(object_store.bucket, prefix="in", recursive=True)):
        client.remove_object(object_store.bucket, item.object_name)


def put(store, key: str, data: bytes) -> None:
    store.put_object("svdflow", key, io.BytesIO(data), len(data))


def test_an_s3_prefix_is_taken_in_as_a_folder_is(tmp_path, store):
    put(store, "in/films/good.mp4", GOOD)
    put(store, "in/films/good.json", json.dumps({"licence": "CC0-1.0", "description": "a film"}).encode())
    put(store, "in/films/deep/copy of good?.mov", GOOD)
    put(store, "in/films/note.txt", b"beside nothing")
    put(store, "in/films/.hidden/x.mp4", BETTER)
    put(store, "in/films2/other.mp4", BETTER)
    rows, report = taken_in("s3://svdflow/in/films", tmp_path)
    assert set(rows) == {"deep/copy of good?.mov", "note.txt"}
    row = rows["deep/copy of good?.mov"]
    assert [s["uri"] for s in row["sources"]] == [
        "s3://svdflow/in/films/deep/copy of good?.mov",
        "s3://svdflow/in/films/good.mp4",
    ]
    assert (row["licence"], row["description"], row["status"]) == ("CC0-1.0", "a film", "ok")
    assert row["video_id"] == hashlib.sha256(GOOD).hexdigest()
    assert rows["note.txt"]["error"].startswith("unreadable: ")
    before = (tmp_path / "videos.parquet").read_bytes()
    _, again = taken_in("s3://svdflow/in/films/", tmp_path)
    assert (again.done, again.summary["videos"]["bytes_read"]) == (0, 0)
    assert (tmp_path / "videos.parquet").read_bytes() == before
    put(store, "in/films/good.mp4", BETTER)
    rows, report = taken_in("s3://svdflow/in/films", tmp_path)
    assert rows["good.mp4"]["video_id"] == hashlib.sha256(BETTER).hexdigest()


def test_a_list_in_s3_names_objects_and_the_root_may_lie_there_too(tmp_path, store):
    put(store, "in/a.mp4", GOOD)
    put(
        store,
        "in/list.csv",
        b"uri,licence\na.mp4,MIT\ns3://svdflow/in/none.mp4,MIT\n../secret.mp4,MIT\n/etc/passwd,MIT\n",
    )
    root = DataRoot.open("s3://svdflow/in-root")
    rows, _ = taken_in("s3://svdflow/in/list.csv", tmp_path, root=root)
    good = rows["s3://svdflow/in/a.mp4"]
    assert good["status"] == "ok" and root.read(good["uri"]) == GOOD
    assert rows["s3://svdflow/in/none.mp4"]["error"] == "not found: S3 answers NoSuchKey"
    assert rows["../secret.mp4"]["error"].startswith("refused: ") and rows["/etc/passwd"]["error"].startswith(
        "refused: "
    )


def test_buckets_that_a_list_may_name_are_a_setting(tmp_path, store):
    put(store, "in/a.mp4", GOOD)
    source = write_list(tmp_path / "in.csv", [{"uri": "s3://svdflow/in/a.mp4"}])
    rows, _ = taken_in(source, tmp_path, IngestSettings(lists=ListSettings(buckets=("mine",))))
    assert rows["s3://svdflow/in/a.mp4"]["error"].startswith("refused: bucket svdflow is none")
    rows, _ = taken_in(source, tmp_path, IngestSettings(lists=ListSettings(buckets=("svdflow",))))
    assert rows["s3://svdflow/in/a.mp4"]["status"] == "ok"


@pytest.mark.parametrize("source", ["s3://nobody-has-this-bucket/x", "s3://svdflow/in/nothing", "s3://B@d/x"])
def test_an_s3_source_that_is_not_there_is_one_clear_line(tmp_path, store, source):
    with pytest.raises(BadInputError) as told:
        taken_in(source, tmp_path)
    assert source in str(told.value) and "\n" not in str(told.value)


def test_an_endpoint_that_goes_away_in_the_middle_is_ridden_out(tmp_path, store, object_store, monkeypatch):
    """The door to S3 is shut while a large object is on its way, and again while others wait; seconds each time."""
    noise = np.random.default_rng(0).bytes(40_000_000)
    large = GOOD + (len(noise) + 8).to_bytes(4, "big") + b"free" + noise  # an MP4 box that players skip
    put(store, "in/large.mp4", large)
    for number in range(3):
        put(store, f"in/more-{number}.mp4", video(25 + number))
    with FlakyDoor(urlsplit(object_store.endpoint_url).port) as door:
        monkeypatch.setenv("SVDFLOW_S3_ENDPOINT", f"http://127.0.0.1:{door.port}")
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{door.port}")
        shut_for = []
        door.shut_after(10_000_000)  # nothing else is as large

        def away() -> None:
            if door.closed.wait(120):
                began = time.monotonic()
                time.sleep(AWAY_S)
                door.open()
                shut_for.append(time.monotonic() - began)

        thread = threading.Thread(target=away)
        thread.start()
        rows, report = taken_in("s3://svdflow/in", tmp_path)
        thread.join()
    assert shut_for and shut_for[0] >= AWAY_S
    assert [row["error"] for row in rows.values()] == [None] * 4
    assert rows["large.mp4"]["video_id"] == hashlib.sha256(large).hexdigest()


def test_the_patience_of_listings_is_half_a_minute_and_more():
    """By the client's own rule of pauses, without waiting for them."""
    import urllib3

    retry = urllib3.Retry(total=fetch_s3._PATIENT_TRIES - 1, backoff_factor=0.3)
    total = 0.0
    for _ in range(fetch_s3._PATIENT_TRIES - 1):
        retry = retry.increment("GET", "/", error=urllib3.exceptions.ProtocolError("gone"))
        total += retry.get_backoff_time()
    assert total >= 30
    assert FetchSettings().patience_s >= 30


def test_without_an_endpoint_it_is_said(tmp_path, monkeypatch):
    for name in ("SVDFLOW_S3_ENDPOINT", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t")
    monkeypatch.setattr(fetch_s3, "_PATIENT_TRIES", 1)
    fetch_s3._client.cache_clear()
    with pytest.raises(StorageError, match="does not answer") as told:
        taken_in("s3://svdflow/in", tmp_path)
    assert "s3cr3t" not in str(told.value)
