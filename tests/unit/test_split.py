"""The step: videos in, clips with their evidence out; what cannot be cut is told and stops nothing."""

import errno
import json
import os
import tarfile
from pathlib import Path

import av
import numpy as np
import pytest
from field_coded import field_coded

from svdflow.common.errors import BadInputError, ConfigError, StorageError
from svdflow.common.fanout import Outcome
from svdflow.common.manifests import read_rows, write_manifest
from svdflow.common.storage import DataRoot
from svdflow.common.video import encode_mp4, probe
from svdflow.curation.split import split as split_module
from svdflow.curation.split.cuts import shots_between
from svdflow.curation.split.scan import scan_video
from svdflow.curation.split.settings import CutLevel, SplitSettings
from svdflow.curation.split.split import split_videos
from svdflow.curation.split.tar_shard import TarShard
from tests.split_footage import FPS, LOOSE, cut_everything, decoded, encode, find_cuts, shots, write_videos


def run(base: Path, files: dict[str, bytes], settings: SplitSettings = LOOSE):
    """Split files; the report, and (name, row) of every clip."""
    base.mkdir(exist_ok=True)
    videos = write_videos(base, files)
    report = split_videos(videos, base / "clips.parquet", DataRoot.open(base / "data"), settings)
    names = {row["video_id"]: row["name"] for row in read_rows("videos", videos)}
    return report, [(names[row["video_id"]], row) for row in read_rows("clips", base / "clips.parquet")]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory):
    """Four videos through the step, once."""
    base = tmp_path_factory.mktemp("chain")
    frames, truth = shots([16, 20, 14])
    damaged = bytearray(encode(shots([30], 5)[0], "libx264", "mpegts", g="6"))
    report, rows = run(
        base,
        {
            "three shots.mp4": encode_mp4(frames, FPS),
            "one key frame.mp4": encode_mp4(frames, FPS, gop=60),
            "no video.mp4": b"this is no video\n" * 100,
            "windows.wmv": encode(shots([12], 4)[0], "wmv2", "asf"),
            "vp8.webm": encode(shots([12], 4)[0], "libvpx", "webm"),
            "breaks off.ts": bytes(damaged[: len(damaged) // 2]),
        },
    )
    return base, truth, report, rows


def test_the_manifest_says_where_each_clip_lies(chain):
    base, truth, _, rows = chain
    root = DataRoot.open(base / "data")
    starts = sorted(row["first_frame"] for name, row in rows if name == "three shots.mp4")
    assert starts == [0, *truth]
    for _, row in rows:
        clip = root.read_range(row["shard_uri"], row["offset"], row["bytes"])
        info = probe(clip)
        assert (info.frames, info.width, info.height) == (row["frames"], row["width"], row["height"])
        assert row["frames"] == row["last_frame"] - row["first_frame"] + 1
        told = row["member"].endswith((".mp4", ".mov"))  # the others leave out how long the last frame is shown
        silent = 0 if told else 1 / FPS
        assert row["end_s"] - row["start_s"] == pytest.approx(info.duration_s + silent, abs=2e-3)
        with tarfile.open(root.fetch(row["shard_uri"])) as shard:
            member = shard.getmember(row["member"])
            assert (member.mtime, member.uid, member.gid) == (0, 0, 0)
            assert shard.extractfile(member).read() == clip


def test_the_evidence_names_what_opened_and_closed_the_shot(chain):
    _, truth, _, rows = chain
    second = next(row for name, row in rows if name == "three shots.mp4" and row["first_frame"] == truth[0])
    evidence = json.loads(second["cut_evidence"])
    for side, frame in (("opened_by", truth[0]), ("closed_by", truth[1])):
        (find,) = [row for row in evidence[side] if row["fps"] is None]
        assert (find["first"], find["last"], find["detector"]) == (frame, frame, "adaptive")
        assert find["score"] >= find["threshold"] and find["start_s"] == find["end_s"] == round(frame / FPS, 6)
    assert evidence["shot"] == [truth[0], truth[1] - 1]


def test_both_ways_to_end_a_clip_are_reported_whichever_is_used(chain):
    _, _, report, rows = chain
    told = report.summary["clips"]["yield"]
    seconds = sum(row["end_s"] - row["start_s"] for _, row in rows)
    assert told["cut"]["seconds"] == pytest.approx(seconds, abs=1e-3) and told["cut"]["clips"] == len(rows)
    assert 0 < told["key_frame"]["seconds"] < told["cut"]["seconds"] < report.summary["clips"]["source_seconds"]
    total = report.summary["clips"]["source_seconds"]
    assert told["cut"]["share"] == pytest.approx(seconds / total, abs=1e-3)
    assert told["cut"]["reordering_frames"] > 0
    (table,) = [s for s in report.sections if "either way" in s["title"]]
    assert [row[-1] for row in table["rows"]] == ["", "yes"]


def test_a_video_that_cannot_be_cut_is_told_and_stops_nothing(chain):
    _, _, report, rows = chain
    faults = {
        row[0]: row[1]
        for s in report.sections
        if "do not decode" in s["title"] or "cut" in s["title"]
        for row in s.get("rows", [])
    }
    assert "no video.mp4" not in {name for name, _ in rows}
    assert "no readable video container" in faults["no video.mp4"]
    assert report.summary["clips"]["set_aside"] == 1
    assert "breaks off.ts" in {name for name, _ in rows}, "what decodes of a broken file is used"


def test_a_codec_that_mp4_cannot_hold_gets_another_container_and_its_suffix(chain):
    _, _, _, rows = chain
    suffixes = {name: {Path(row["member"]).suffix for other, row in rows if other == name} for name, _ in rows}
    assert suffixes["vp8.webm"] == {".mkv"} and suffixes["three shots.mp4"] == {".mp4"}
    assert suffixes["windows.wmv"] == {".nut"}


def test_one_key_frame_yields_one_clip_and_the_rest_is_counted(chain):
    _, truth, report, rows = chain
    ((first, last),) = [(row["first_frame"], row["last_frame"]) for name, row in rows if name == "one key frame.mp4"]
    assert first == 0 and truth[0] - 4 <= last <= truth[0] - 1  # B frames before the cut may need the frame after it
    assert report.counts["dropped: no key frame in the shot"] == 2


def test_a_second_run_writes_nothing_and_one_more_video_costs_one(chain):
    base, _, first, rows = chain
    assert first.done == 6
    before, root = (base / "clips.parquet").read_bytes(), DataRoot.open(base / "data")
    second = split_videos(base / "videos.parquet", base / "clips.parquet", root, LOOSE)
    assert (second.done, second.reused, root.writes) == (0, 6, 0)
    assert (base / "clips.parquet").read_bytes() == before
    old, more = read_rows("videos", base / "videos.parquet"), base.with_name("more")
    more.mkdir()
    new = read_rows("videos", write_videos(more, {"more.mp4": encode_mp4(shots([9], 9)[0], FPS)}))
    root.put_file(more / "more.mp4")
    write_manifest("videos", old + new, more / "videos.parquet")
    third = split_videos(more / "videos.parquet", more / "clips.parquet", root, LOOSE)
    assert (third.done, third.reused) == (1, 6)
    assert len(read_rows("clips", more / "clips.parquet")) == len(rows) + 1


def test_the_number_of_workers_is_a_setting_and_changes_no_result(chain, tmp_path, monkeypatch):
    base, asked = chain[0], []
    one = LOOSE.model_copy(update={"workers": 1})
    root, here = DataRoot.open(base / "data"), tmp_path / "clips.parquet"
    report = split_videos(base / "videos.parquet", here, root, one)
    assert report.done == 0 and here.read_bytes() == (base / "clips.parquet").read_bytes()
    monkeypatch.setattr(split_module, "map_units", lambda *arguments, **_: asked.append(arguments[3]) or [])
    with pytest.raises(BadInputError):
        split_videos(base / "videos.parquet", here, DataRoot.open(tmp_path / "data"), one)
    assert asked == [1]


def test_no_clip_at_all_is_an_error_that_says_why(chain, tmp_path):
    base = chain[0]
    with pytest.raises(BadInputError, match=r"too short: \d+.*lower split.min_s"):
        split_videos(
            base / "videos.parquet",
            tmp_path / "c.parquet",
            DataRoot.open(base / "data"),
            SplitSettings(end="cut", min_s=15.0),
        )


def test_of_no_usable_video_the_report_is_named_and_no_setting(chain, tmp_path):
    aside = [
        {**row, "status": "set_aside", "error": "empty"} for row in read_rows("videos", chain[0] / "videos.parquet")
    ]
    write_manifest("videos", aside, tmp_path / "videos.parquet")
    with pytest.raises(BadInputError, match="not one video can be used; the run's report says why") as told:
        split_videos(tmp_path / "videos.parquet", tmp_path / "c", DataRoot.open(tmp_path / "data"), LOOSE)
    assert "min_s" not in str(told.value)


def test_a_backend_without_its_weights_stops_the_step_before_any_video(chain, tmp_path):
    base, root = chain[0], DataRoot.open(chain[0] / "data")
    with pytest.raises(ValueError, match="needs transnet_weights"):
        SplitSettings(backend="transnetv2")
    missing = SplitSettings(backend="transnetv2", transnet_weights=str(tmp_path / "none.safetensors"))
    with pytest.raises(BadInputError, match="no TransNetV2 weights"):
        split_videos(base / "videos.parquet", tmp_path / "c.parquet", root, missing)


def test_the_second_backend_runs_behind_the_same_interface(chain, tmp_path):
    """With untrained weights: which cuts it finds means nothing, that it yields whole clips does."""
    import torch
    from safetensors.torch import save_file

    from svdflow.curation.split.transnet import TransNetV2

    torch.manual_seed(1)
    weights = tmp_path / "t.safetensors"
    save_file(TransNetV2().state_dict(), weights)
    base, root = chain[0], DataRoot.open(chain[0] / "data")
    chosen = LOOSE.model_copy(
        update={"backend": "transnetv2", "transnet_weights": str(weights), "transnet_threshold": 0.999}
    )
    split_videos(base / "videos.parquet", tmp_path / "c.parquet", root, chosen)
    rows = read_rows("clips", tmp_path / "c.parquet")
    assert rows and all(row["frames"] > 1 for row in rows)
    with pytest.raises(ConfigError, match="not split.transnet_sha256"):
        other = chosen.model_copy(update={"transnet_sha256": "0" * 64})
        split_videos(base / "videos.parquet", tmp_path / "c.parquet", root, other)


def good_clips(base: Path, rows: list) -> dict[str, list[tuple[int, int]]]:
    """First and last frame of each video's clips, after proof that every clip decodes."""
    root, spans = DataRoot.open(base / "data"), {}
    for name, row in rows:
        clip = root.read_range(row["shard_uri"], row["offset"], row["bytes"])
        assert len(decoded(clip)) == row["frames"]
        spans.setdefault(name, []).append((row["first_frame"], row["last_frame"]))
    return spans


@pytest.mark.parametrize("name", ["progressive.mp4", "fields.ts"])
def test_a_video_is_decoded_once_for_all_levels_and_the_check(tmp_path, monkeypatch, name):
    """Also where a frame comes in two packets, a field each, which are joined in a clip."""
    path = tmp_path / name
    path.write_bytes(field_coded(40) if name == "fields.ts" else encode(shots([20, 20])[0], g="6"))
    scans = []
    monkeypatch.setattr(split_module, "scan_video", lambda *args: scans.append(args) or scan_video(*args))
    root, bytes_ = DataRoot.open(tmp_path / "data"), path.stat().st_size
    blind = LOOSE.model_copy(update={"levels": (CutLevel(threshold=255.0),), "verify": "packets"})
    unit = split_module._Unit("a" * 64, "", name, bytes_, FPS, 64, 64, None, None, root.location, blind)
    (clip,) = split_module._split_file(path, unit, root)["clips"]
    assert len(scans) == 1 and clip["frames"] == 40


def test_damage_in_the_middle_costs_the_gop_it_lies_in(tmp_path):
    """A transport stream with garbage in its tenth of a minute: clips before and behind it are the source's own."""
    frames, _ = shots([96], 11)
    whole = encode(frames, "libx264", "mpegts", g="8", bf="2")
    packets = [at for at in range(0, len(whole), 188)]
    middle = packets[len(packets) // 2]
    broken = bytearray(whole)
    broken[middle + 4 : middle + 188 * 3] = np.random.default_rng(0).bytes(188 * 3 - 4)
    path = tmp_path / "broken.ts"
    path.write_bytes(broken)
    (tmp_path / "whole.ts").write_bytes(whole)
    source = decoded(tmp_path / "whole.ts")
    plan, clips, cuts = cut_everything(path)
    assert {find.detector for cut in cuts for find in cut.evidence} == {"damage"}
    assert sum(span.last - span.first + 1 for span, _ in clips) >= 96 - 3 * 8
    own = [frame for _, clip in clips for frame in decoded(clip)]
    pictures = {frame.tobytes() for frame in source}
    assert all(frame.tobytes() in pictures for frame in own), "no mended picture is in a clip"
    assert len(clips) >= 2


def test_damage_leaves_no_hole_in_the_clip_before_it(tmp_path):
    """The decoder that fails on a packet forgets the picture it was about to show, whose packet came before."""
    whole = encode(shots([48], 11)[0], g="24", bf="3", b_strategy="0")
    path = tmp_path / "v.mp4"
    path.write_bytes(whole)
    places = {frame.tobytes(): place for place, frame in enumerate(decoded(path))}
    with av.open(str(path)) as source:
        packets = [(packet.pos, packet.size) for packet in source.demux(video=0) if packet.size > 30]
    kept = 0
    for at, size in packets[1:]:
        path.write_bytes(whole[: at + 5] + b"\xff" * (size - 5) + whole[at + size :])
        for span, clip in cut_everything(path)[1]:
            found = [places.get(frame.tobytes(), -1) for frame in decoded(clip)]
            assert found == list(range(found[0], found[0] + span.last - span.first + 1))
            kept += len(found)
    assert len(packets) > 12 and kept > 12 * 24


def test_a_full_disk_is_not_kept_as_a_verdict_on_the_video(tmp_path, monkeypatch):
    """The shard cannot be written; when there is space again the video has its clips."""
    videos = write_videos(tmp_path, {"v.mp4": encode(shots([30], 3)[0], g="6")})
    root, out = DataRoot.open(tmp_path / "data"), tmp_path / "clips.parquet"
    with monkeypatch.context() as patched:
        here_alone(patched)
        patched.setattr(TarShard, "add", full)
        with pytest.raises(StorageError, match="the disk is full"):
            split_videos(videos, out, root, LOOSE)
    assert list(root.list("results/split")) == []
    split_videos(videos, out, root, LOOSE)
    assert len(read_rows("clips", out)) == 1


@pytest.mark.parametrize("when", ["before it is read", "while it is read"])
def test_a_source_that_is_gone_is_not_kept_as_a_verdict_on_the_video(tmp_path, monkeypatch, when):
    videos = write_videos(tmp_path, {"v.mp4": encode(shots([30], 3)[0], g="6")})
    root = DataRoot.open(tmp_path / "data")
    here_alone(monkeypatch)
    scan = split_module.scan_video

    def interrupted(path, *more, **options):
        path.unlink()
        if when == "before it is read":
            return scan(path, *more, **options)
        raise BadInputError(f"{path}: no frame of it decodes")

    monkeypatch.setattr(split_module, "scan_video", interrupted)
    with pytest.raises(StorageError, match="No such file"):
        split_videos(videos, tmp_path / "clips.parquet", root, LOOSE)
    assert list(root.list("results/split")) == []


def here_alone(monkeypatch) -> None:
    """The units of work in this process, where they can be interfered with."""

    def map_here(function, units, *_, **__):
        return (Outcome(unit, function(unit), None, 0.0) for unit in units)

    monkeypatch.setattr(split_module, "map_units", map_here)


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def uneven(seed: int = 41) -> bytes:
    """A video of variable rate: 90 frames at 30 fps, then 20 at 2 fps, then 90 at 30 fps; a key frame every tenth."""
    steps = [40] * 90 + [600] * 20 + [40] * 90
    return encode(
        shots([200], seed)[0], container="matroska", times=np.cumsum([0, *steps[:-1]]).tolist(), g="10", bf="2"
    )


def test_a_clip_of_a_variable_rate_tells_its_own(tmp_path):
    _, rows = run(tmp_path / "uneven", {"uneven.mkv": uneven()}, LOOSE.model_copy(update={"max_s": 3.0}))
    rates = {round(row["fps"]) for _, row in rows}
    assert {2, 30} <= rates
    for _, row in rows:
        assert row["frames"] / row["fps"] == pytest.approx(row["end_s"] - row["start_s"], rel=0.05)


def test_what_probing_did_not_see_yields_no_clip_that_validation_would_refuse(tmp_path):
    """Ingest and split disagree on where a video ends: that costs its end, not the run."""
    videos = write_videos(tmp_path, {"v.mp4": encode(shots([120], 3)[0], g="12", bf="0")})
    (row,) = read_rows("videos", videos)
    write_manifest("videos", [{**row, "duration_s": 5.0, "frames": 60}], videos)
    settings = LOOSE.model_copy(update={"max_s": 2.0})
    report = split_videos(videos, tmp_path / "clips.parquet", DataRoot.open(tmp_path / "data"), settings)
    assert {clip["last_frame"] for clip in read_rows("clips", tmp_path / "clips.parquet")} == {23, 47}
    assert report.counts["dropped: beyond the end that probing found"] == 3


def test_times_that_jump_back_end_a_shot_and_lose_nothing(tmp_path):
    """Two recordings one after the other in a transport stream, each with times from zero."""
    one, two = (encode(shots([36], seed)[0], "libx264", "mpegts", g="6") for seed in (21, 21))
    (tmp_path / "v.ts").write_bytes(one + two)
    scan, cuts = find_cuts(tmp_path / "v.ts")
    assert len(scan.pts) == 72 and list(scan.times_s) == sorted(scan.times_s)
    assert any(find.detector in ("timestamps", "damage") for cut in cuts for find in cut.evidence)
    kept = [last - first + 1 for first, last in shots_between(cuts, 72)]
    assert sum(kept) >= 64
    _, clips, _ = cut_everything(tmp_path / "v.ts")
    assert all(len(decoded(clip)) == span.last - span.first + 1 for span, clip in clips) and len(clips) >= 2


def absurd_times(frames: np.ndarray) -> bytes:
    """A Matroska file whose frames are a millisecond, a day and a week apart."""
    steps = np.full(len(frames), 100)
    steps[20], steps[40], steps[41:50] = 1200 * 86400, 1200 * 7 * 86400, 2
    return encode(frames, container="matroska", times=np.cumsum(steps).tolist(), g="4", bf="0")


def truncated(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


def test_a_corpus_of_bad_videos_stops_nothing_and_costs_no_good_clip(tmp_path):
    good, truth = shots([30, 33], 31)
    files = {
        "good.mp4": encode(good, g="6", bf="2"),
        "truncated.mp4": truncated(encode(shots([40], 32)[0], movflags="faststart"), 0.6),
        "truncated.mkv": truncated(encode(shots([40], 33)[0], container="matroska", g="5"), 0.6),
        "truncated.ts": truncated(encode(shots([40], 34)[0], container="mpegts", g="5"), 0.6),
        "tiny frames.mkv": encode(np.repeat(shots([40], 35)[0][:, ::6, ::8], 100, 0), container="matroska", g="50"),
        "absurd times.mkv": absurd_times(shots([60], 36)[0]),
        "zero.mp4": b"",
        "text.mp4": b"this is no video\n" * 100,
        "header of a giant.y4m": b"YUV4MPEG2 W16384 H16384 F25:1 Ip A1:1 C420jpeg\nFRAME\n" + bytes(1000),
    }
    middle = bytearray(encode(shots([60], 37)[0], container="matroska", g="5"))
    middle[len(middle) // 2 : len(middle) // 2 + 400] = bytes(400)
    files["corrupted.mkv"] = bytes(middle)
    files["no key frame index.mp4"] = files["good.mp4"].replace(b"stss", b"free")
    _, alone = run(tmp_path / "alone", {"good.mp4": files["good.mp4"]})
    report, rows = run(tmp_path / "all", files)
    spans = good_clips(tmp_path / "all", rows)
    first, second = sorted(spans["good.mp4"])
    assert [first, second] == sorted((row["first_frame"], row["last_frame"]) for _, row in alone)
    assert first[1] < truth[0] == second[0]
    for name in ("truncated.mkv", "truncated.ts", "tiny frames.mkv", "corrupted.mkv", "absurd times.mkv"):
        assert name in spans, f"{name} has good parts"
    assert max(row["end_s"] - row["start_s"] for _, row in rows) <= LOOSE.max_s
    assert sum(last - first + 1 for first, last in spans["absurd times.mkv"]) >= 40
    assert sum(last - first + 1 for first, last in spans["corrupted.mkv"]) >= 40
    refused = {"zero.mp4", "text.mp4", "header of a giant.y4m"}
    assert not refused & set(spans)
    (table,) = [s for s in report.sections if "do not decode" in s["title"]]
    assert refused <= {row[0] for row in table["rows"]}
    assert report.summary["clips"]["set_aside"] >= len(refused)


def test_frames_without_times_are_given_the_videos_rate(tmp_path):
    """Raw H.264 has no container to tell times."""
    (tmp_path / "v.h264").write_bytes(encode(shots([30])[0], container="h264", g="6", bf="0"))
    with av.open(str(tmp_path / "v.h264")) as container:
        assert all(packet.pts is None for packet in container.demux(video=0))
    scan, _ = find_cuts(tmp_path / "v.h264")
    assert len(scan.pts) == 30 and list(scan.times_s)[:3] == pytest.approx([0, 1 / FPS, 2 / FPS], abs=1e-3)


def test_what_a_killed_process_left_behind_is_swept_away(chain, tmp_path):
    import socket
    import subprocess
    import sys

    base, root = chain[0], DataRoot.open(chain[0] / "data")
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    left = root.scratch("split") / f"{socket.gethostname()}-{gone.stdout.strip()}-abc"
    other = root.scratch("split") / f"elsewhere-{gone.stdout.strip()}-abc"
    for directory in (left, other):
        directory.mkdir()
        (directory / "clip.mp4").write_bytes(b"x")
    split_videos(base / "videos.parquet", tmp_path / "c.parquet", root, LOOSE)
    assert not left.exists() and other.exists(), "another machine's may be at work"
