"""Ingest takes in what is a video, sets the rest aside with a reason, and does nothing twice."""

import fcntl
import hashlib
import io
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from svdflow.common.errors import BadInputError
from svdflow.common.manifests import read_rows
from svdflow.common.storage import DataRoot
from svdflow.common.video import encode_mp4
from svdflow.ingest import take
from svdflow.ingest.examine import ProbeSettings
from svdflow.ingest.fetch import FetchSettings
from svdflow.ingest.footage import FootageSettings, make_scene
from svdflow.ingest.ingest import IngestSettings, ingest_videos

TINY = FootageSettings(width=64, height=48, min_s=0.5, max_s=0.6)


def movie(seed: int, frames: int = 8, height: int = 48, width: int = 64) -> bytes:
    return encode_mp4(make_scene(seed, frames, height, width).frames, 12.0, gop=4)


def rotated(data: bytes, width: int, height: int, quarter_turns: int) -> bytes:
    """The same MP4 with a display matrix that turns it clockwise, as a telephone writes it."""
    one = 1 << 16
    matrices = {
        1: (0, one, 0, -one, 0, 0, height * one, 0, 1 << 30),
        2: (-one, 0, 0, 0, -one, 0, width * one, height * one, 1 << 30),
        3: (0, -one, 0, one, 0, 0, 0, width * one, 1 << 30),
    }
    changed, at = bytearray(data), data.index(b"tkhd") + 4 + 40
    assert struct.unpack(">9i", changed[at : at + 36])[0] == one
    changed[at : at + 36] = struct.pack(">9i", *matrices[quarter_turns])
    return bytes(changed)


def sound_only() -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict, object, DataRoot]]:
    """A folder of good and bad files, taken in once."""
    from PIL import Image

    base = tmp_path_factory.mktemp("corpus")
    source = base / "raw footage"
    (source / "Ünïcode 東京").mkdir(parents=True)
    good = movie(1)
    files = {
        "good.mp4": good,
        "z copy of good.mov": good,
        "Ünïcode 東京/a clip – one.MP4": movie(2),
        "upright.mp4": rotated(movie(3), 64, 48, 1),
        "empty.mp4": b"",
        "noise.mp4": np.random.default_rng(0).bytes(5000),
        "cut short.mp4": good[: len(good) // 2],
        "one frame.mp4": movie(4, frames=1),
        "sound.mp4": sound_only(),
        "notes.txt": b"nothing to see here\n" * 20,
        "list.m3u8": b"#EXTM3U\n#EXTINF:5,\ngood.mp4\n",
        "list.ffconcat": b"ffconcat version 1.0\nfile good.mp4\n",
        ".hidden.mp4": good,
        "good.json": json.dumps({"description": "a caption", "licence": "CC-BY-4.0", "other": [1]}).encode(),
        "upright.json": b"{broken",
        "Ünïcode 東京/a clip – one.txt": b"eine Bildunterschrift\n",
    }
    for name, data in files.items():
        (source / name).write_bytes(data)
    Image.fromarray(make_scene(5, 1, 48, 64).frames[0]).save(source / "picture.png")
    (source / "dangling.mp4").symlink_to(base / "nowhere.mp4")
    root = DataRoot.open(base / "data")
    report = ingest_videos(str(source), base / "videos.parquet", root, IngestSettings())
    yield source, {row["name"]: row for row in read_rows("videos", base / "videos.parquet")}, report, root


def test_good_videos_are_stored_and_described(corpus):
    source, rows, _, root = corpus
    assert {name for name, row in rows.items() if row["status"] == "ok"} == {
        "good.mp4",
        "upright.mp4",
        "Ünïcode 東京/a clip – one.MP4",
    }
    row, data = rows["good.mp4"], (source / "good.mp4").read_bytes()
    assert row["video_id"] == hashlib.sha256(data).hexdigest() and row["bytes"] == len(data)
    assert root.read(row["uri"]) == data
    assert (row["codec"], row["width"], row["height"], row["frames"], row["fps"], row["rotation"]) == (
        "h264",
        64,
        48,
        8,
        12.0,
        0,
    )
    assert row["duration_s"] == pytest.approx(8 / 12)
    assert row["error"] is None


def test_rotation_is_seen_and_sizes_are_as_displayed(corpus):
    row = corpus[1]["upright.mp4"]
    assert (row["rotation"], row["width"], row["height"]) == (90, 48, 64)


def test_sidecars_tell_about_their_video_and_are_not_counted(corpus):
    rows = corpus[1]
    assert (rows["good.mp4"]["description"], rows["good.mp4"]["licence"]) == ("a caption", "CC-BY-4.0")
    assert rows["Ünïcode 東京/a clip – one.MP4"]["description"] == "eine Bildunterschrift"
    assert rows["upright.mp4"]["description"] is None  # its sidecar is broken
    assert not any(name.endswith(".json") or "hidden" in name for name in rows)
    assert "notes.txt" in rows  # beside no video: a file like any other
    assert {row["source"] for row in rows.values()} == {"footage"}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("empty.mp4", "empty"),
        ("noise.mp4", "unreadable"),
        ("cut short.mp4", "unreadable"),
        ("notes.txt", "unreadable"),
        ("picture.png", "unreadable"),
        ("list.m3u8", "unreadable"),
        ("list.ffconcat", "unreadable"),
        ("dangling.mp4", "unreadable"),
        ("one frame.mp4", "one frame"),
        ("sound.mp4", "no video stream"),
    ],
)
def test_what_is_no_usable_video_is_set_aside_with_a_reason(corpus, name, reason):
    _, rows, report, _ = corpus
    assert rows[name]["status"] == "set_aside"
    assert rows[name]["error"].startswith(f"{reason}: ")
    assert report.summary["videos"]["by_reason"][reason] >= 1


def test_every_file_is_accounted_for(corpus):
    _, rows, report, _ = corpus
    summary = report.summary["videos"]
    assert summary["files"] == 14 and len(rows) == 13 and summary["ok"] + summary["set_aside"] == 13
    assert sum(summary["by_reason"].values()) == summary["set_aside"]
    assert summary["files"] == sum(len(row["sources"]) for row in rows.values()) == len(rows) + summary["duplicates"]
    assert all(len(row["video_id"]) == 64 for row in rows.values())
    titles = [section["title"] for section in report.sections]
    assert {"Sources", "Set aside", "Videos", "What probing found", "Sidecars that cannot be read"} <= set(titles)


def test_exact_duplicates_are_one_video_with_several_sources(corpus):
    row = corpus[1]["good.mp4"]
    assert [source["name"] for source in row["sources"]] == ["good.mp4", "z copy of good.mov"]
    assert [source["licence"] for source in row["sources"]] == ["CC-BY-4.0", None]
    assert row["status"] == "ok"


def test_the_manifest_knows_no_place_on_this_machine(corpus):
    source, rows, _, _ = corpus
    assert str(source.parent) not in json.dumps(list(rows.values()), ensure_ascii=False)


def test_a_second_run_writes_nothing_and_one_more_video_costs_one(tmp_path):
    source, out = tmp_path / "in", tmp_path / "videos.parquet"
    source.mkdir()
    for n in range(2):
        (source / f"{n}.mp4").write_bytes(movie(n))
    (source / "bad.mp4").write_bytes(b"no video at all")
    settings = IngestSettings(generated_clips=2, footage=TINY)
    first = ingest_videos(str(source), out, DataRoot.open(tmp_path / "data"), settings)
    assert (first.done, first.reused) == (5, 0)
    bytes_before, root = out.read_bytes(), DataRoot.open(tmp_path / "data")
    objects = {uri: root.size(uri) for uri in root.list("files")}
    second = ingest_videos(str(source), out, root, settings)
    assert (second.done, second.reused) == (0, 5)
    assert {uri: root.size(uri) for uri in root.list("files")} == objects
    assert out.read_bytes() == bytes_before
    (source / "2.mp4").write_bytes(movie(2))
    third = ingest_videos(str(source), out, root, settings)
    assert (third.done, third.reused) == (1, 5)
    generated = [row for row in read_rows("videos", out) if row["source"] == "generated"]
    assert len(generated) == 2 and all(row["licence"] == "CC0-1.0" and row["description"] for row in generated)


def test_bytes_lost_from_the_root_are_stored_again(tmp_path):
    source, root = tmp_path / "in", DataRoot.open(tmp_path / "data")
    source.mkdir()
    (source / "a.mp4").write_bytes(movie(0))
    ingest_videos(str(source), tmp_path / "v.parquet", root, IngestSettings())
    (row,) = read_rows("videos", tmp_path / "v.parquet")
    root.fetch(row["uri"]).unlink()
    assert ingest_videos(str(source), tmp_path / "v.parquet", root, IngestSettings()).done == 1
    assert root.exists(row["uri"])


def test_what_was_taken_down_is_set_aside_and_not_stored_again(tmp_path):
    source, root = tmp_path / "in", DataRoot.open(tmp_path / "root")
    source.mkdir()
    unwanted = movie(7)
    (source / "unwanted.mp4").write_bytes(unwanted)
    (source / "wanted.mp4").write_bytes(movie(8))
    root.record("forgotten", hashlib.sha256(unwanted).hexdigest(), {"reason": "asked for by its owner"})
    ingest_videos(str(source), tmp_path / "videos.parquet", root, IngestSettings())
    rows = {row["name"]: row for row in read_rows("videos", tmp_path / "videos.parquet")}
    assert rows["wanted.mp4"]["status"] == "ok"
    assert rows["unwanted.mp4"]["status"] == "set_aside" and "forgotten" in rows["unwanted.mp4"]["error"]
    stored = (path.read_bytes() for path in (tmp_path / "root" / "files").rglob("*") if path.is_file())
    assert not any(unwanted in data for data in stored)


@pytest.mark.parametrize("source", ["missing", "void", ""])
def test_no_input_is_one_clear_error(tmp_path, root, source):
    (tmp_path / "void").mkdir()
    place = str(tmp_path / source) if source else ""
    with pytest.raises(BadInputError, match="name a folder of video files"):
        ingest_videos(place, tmp_path / "v.parquet", root, IngestSettings())


@pytest.mark.parametrize("moment", ["before it is opened", "before it is locked"])
def test_a_place_whose_folder_another_run_removes_meanwhile_is_taken_all_the_same(tmp_path, monkeypatch, moment):
    root = DataRoot.open(tmp_path / "data")
    act, done = (os.open, "open") if moment == "before it is opened" else (fcntl.flock, "flock")
    removed = []

    def interrupted(*arguments):
        if not removed:
            removed.append(next((tmp_path / "data" / "scratch" / "ingest").iterdir()))
            removed[0].rmdir()
        return act(*arguments)

    monkeypatch.setattr(os if done == "open" else fcntl, done, interrupted)
    with take._locked_scratch(root, "https://example.org/a.mp4") as scratch:
        assert scratch.is_dir() and removed == [scratch]


@pytest.mark.parametrize("change", ["goes away", "becomes another"])
def test_a_file_that_changes_while_it_is_probed_gets_no_lasting_verdict(tmp_path, monkeypatch, change):
    path, root = tmp_path / "a.mp4", DataRoot.open(tmp_path / "data")
    path.write_bytes(movie(0))
    examine = take.examine_bounded

    def interrupted(*arguments):
        path.unlink() if change == "goes away" else path.write_bytes(b"another")
        return examine(*arguments)

    monkeypatch.setattr(take, "examine_bounded", interrupted)
    errand = take.Errand(str(path), True, root.location, FetchSettings(), ProbeSettings(), 60.0)
    if change == "goes away":
        with pytest.raises(FileNotFoundError):
            take.take(errand)
    else:
        assert take.take(errand).fault.startswith("changed: ")
    assert list(root.list("results/ingest")) == []
