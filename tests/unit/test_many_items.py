"""Steps hold of each item no more than they need: memory while many are worked on, with the work itself left out."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from svdflow.common import manifest_spool, manifests
from svdflow.common.fanout import Outcome
from svdflow.common.identity import identity
from svdflow.common.manifests import read_rows, write_manifest
from svdflow.common.storage import DataRoot
from svdflow.curation.split import split as split_module
from svdflow.curation.split.settings import SplitSettings
from svdflow.ingest import ingest as ingest_module
from svdflow.ingest.ingest import IngestSettings, ingest_videos
from svdflow.ingest.take import Content, Taken

SHARD = "files/md5/ab/" + "0" * 30


def peak_bytes(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def result(video_id: str) -> dict:
    """A video's split result of the usual size, with two clips."""
    cut = {"first": 9, "last": 9, "time_s": 0.4, "evidence": [{"detector": "adaptive", "fps": None, "score": 4.0,
           "threshold": 3.5, "first": 9, "last": 9, "start_s": 0.4, "end_s": 0.4}]}  # fmt: skip
    clips = [
        {
            "clip_id": identity(video=video_id, n=n), "video_id": video_id, "start_s": 2.0 * n, "end_s": 2.0 * n + 2,
            "first_frame": 48 * n, "last_frame": 48 * n + 47, "cut_evidence": "x" * 800, "shard_uri": SHARD,
            "member": "m.mp4", "offset": 512, "bytes": 9, "frames": 48, "fps": 24.0, "width": 64, "height": 48,
            "thumbnail": SHARD,
        }
        for n in range(2)
    ]  # fmt: skip
    kept = {"clips": 2, "seconds": 4.0, "reordering_frames": 0}
    return {"clips": clips, "cuts": [cut], "shots": 2, "seconds": 4.0, "dropped": {}, "lost_frames": {"x": 1},
            "yields": {"key_frame": kept, "cut": kept}, "fault": "odd", "error": None}  # fmt: skip


def test_split_holds_blocks_of_videos_and_not_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "BLOCK", 50)
    root = DataRoot.open(tmp_path / "data")
    monkeypatch.setattr(root, "record", lambda *_: None)
    monkeypatch.setattr("svdflow.curation.split.show.stored_jpeg", lambda *_: b"")
    monkeypatch.setattr(
        split_module,
        "map_units",
        lambda function, units, *_, **__: (
            Outcome(unit, result(unit.video_id) | {"writes": 0}, None, 1.0) for unit in reversed(units)
        ),
    )
    spool = lambda kind, folder: manifest_spool.ManifestSpool(kind, folder, 100)  # noqa: E731
    monkeypatch.setattr(split_module, "ManifestSpool", spool)

    def split(count: int) -> int:
        rows = [
            {
                "video_id": identity(n=n), "uri": SHARD, "name": f"{n:05d}.mp4", "sources": [], "bytes": 1, "fps": 24.0,
                "width": 64, "height": 48, "source": "footage", "status": "ok",
            }
            for n in range(count)
        ]  # fmt: skip
        write_manifest("videos", rows, tmp_path / "videos.parquet")
        out = tmp_path / f"{count}.parquet"
        return peak_bytes(lambda: split_module.split_videos(tmp_path / "videos.parquet", out, root, SplitSettings()))

    split(100)  # what is imported counts for nobody
    few, many = split(200), split(800)
    assert many < 1.25 * few
    rows = read_rows("clips", tmp_path / "800.parquet")
    assert len(rows) == 1600 and [row["clip_id"] for row in rows] == sorted(row["clip_id"] for row in rows)


def test_ingest_holds_little_of_each_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name, its place and a packed verdict; a verdict, a row and an entry as they are take some 6 kB."""
    root = DataRoot.open(tmp_path / "data")
    monkeypatch.setattr("svdflow.ingest.ingest_report.stored_jpeg", lambda *_: b"")

    def taken(function, errands, *_, **__):
        for n, errand in enumerate(errands):
            info = {"container": "mov,mp4", "codec": "h264", "duration_s": 2.0 + n, "fps": 24.0, "width": 640,
                    "height": 360, "frames": 48, "rotation": 0, "variable_fps": False, "pixel_aspect": 1.0,
                    "interlaced": False, "color_transfer": None, "letterbox": [0, 0, 0, 0], "audio": True}  # fmt: skip
            verdict = {"info": info, "faults": [], "thumbnail": SHARD, "uri": SHARD}
            yield Outcome(errand, Taken(None, Content(identity(n=n) * 2, "0" * 32, n), verdict, n, True), None, 1.0)

    monkeypatch.setattr(ingest_module, "map_units", taken)
    spool = lambda kind, folder: manifest_spool.ManifestSpool(kind, folder, 200)  # noqa: E731
    monkeypatch.setattr(ingest_module, "ManifestSpool", spool)
    source, out = tmp_path / "list.csv", tmp_path / "videos.parquet"

    def ingest(count: int) -> int:
        source.write_text("uri,licence\n" + "".join(f"clips/{n:06d}.mp4,CC0-1.0\n" for n in range(count)))
        return peak_bytes(lambda: ingest_videos(str(source), out, root, IngestSettings()))

    ingest(100)
    few, many = ingest(300), ingest(900)
    assert (many - few) / 600 < 2500, "bytes a source"
    assert len(read_rows("videos", out)) == 900
