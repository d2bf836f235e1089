"""Cuts are found at their frame, and clips are the source's own frames, cut so that each one decodes."""

import io
import json
import tarfile
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ingest import rotated

from svdflow.common.errors import BadInputError
from svdflow.common.manifests import read_rows
from svdflow.common.storage import DataRoot
from svdflow.common.video import decode, encode_mp4, probe
from svdflow.curation.split.clipping import Packet, cut_clips, plan_spans, read_packets
from svdflow.curation.split.cuts import Detection, decode_and_detect, merge_detections
from svdflow.curation.split.settings import CutLevel, SplitSettings
from svdflow.curation.split.split import shots_between, split_videos
from svdflow.ingest.footage import join_shots, make_scene
from svdflow.ingest.ingest import IngestSettings, ingest_videos

LOOSE = SplitSettings(end="cut", min_s=0.3, max_s=10.0)
FPS = 12.0


def shots(lengths: list[int], seed: int = 0, fade: int = 0) -> tuple[np.ndarray, list[int]]:
    return join_shots([make_scene([seed, n], length, 96, 128).frames for n, length in enumerate(lengths)], fade)


def encode(frames: np.ndarray, codec: str = "libx264", container: str = "mp4", **options: str) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as target:
        stream = target.add_stream(codec, rate=12, options={"threads": "1", **options})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for rgb in frames:
            target.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        target.mux(stream.encode())
    return buffer.getvalue()


def decoded(data: bytes | Path) -> list[np.ndarray]:
    """All frames as the decoder gives them, straight from PyAV."""
    with av.open(io.BytesIO(data) if isinstance(data, bytes) else str(data)) as container:
        return [frame.to_ndarray() for frame in container.decode(video=0)]


def cut_everything(path: Path, end: str = "cut", min_s: float = 0.2, max_s: float = 60.0):
    """Spans and clips of a file, with nothing verified on the way, and the file's cuts."""
    found = decode_and_detect(path, LOOSE.levels, 64)
    cuts = merge_detections(found.detections, found.pts, 1 / FPS / (found.pts[1] - found.pts[0]), LOOSE.levels)
    packets = read_packets(path, found.pts)
    times = [n / FPS for n in range(len(found.pts) + 1)]
    plan = plan_spans(packets, times, shots_between(cuts, len(found.pts)), end, min_s, max_s)
    return plan, list(cut_clips(path, packets, plan.spans)), cuts


@pytest.mark.parametrize("lengths", [[20, 31], [13, 18, 25], [40]])
def test_hard_cuts_are_found_at_their_very_frame(tmp_path, lengths):
    frames, truth = shots(lengths)
    (tmp_path / "v.mp4").write_bytes(encode_mp4(frames, FPS))
    found = decode_and_detect(tmp_path / "v.mp4", LOOSE.levels, 64)
    cuts = merge_detections(found.detections, found.pts, 1 / FPS / (found.pts[1] - found.pts[0]), LOOSE.levels)
    assert [(cut.first, cut.last) for cut in cuts] == [(n, n) for n in truth]
    assert len(found.pts) == len(found.checksums) == sum(lengths) and found.fault is None
    for cut in cuts:
        assert {find.level for find in cut.evidence} >= {0} and all(f.score >= f.threshold for f in cut.evidence)


def test_a_slow_fade_is_seen_by_a_coarse_level_only_and_its_frames_are_in_no_shot(tmp_path):
    """24 frames of cross-fade between two flat pictures: no two neighbours differ much."""
    mix = np.concatenate([np.zeros(24), np.linspace(0, 1, 24), np.ones(24)])
    first, second = (make_scene(seed, 1, 96, 128).frames[0].astype(float) for seed in (1, 5))
    frames = np.stack([(1 - m) * first + m * second for m in mix]).astype(np.uint8)
    (tmp_path / "v.mp4").write_bytes(encode_mp4(frames, FPS))
    levels = (CutLevel(fps=None, threshold=30.0), CutLevel(fps=2.0, threshold=8.0))
    found = decode_and_detect(tmp_path / "v.mp4", levels, 64)
    cuts = merge_detections(found.detections, found.pts, 1 / FPS / (found.pts[1] - found.pts[0]), levels)
    assert {find.level for find in found.detections} == {1}
    (cut,) = cuts
    (before, after) = shots_between(cuts, 72)
    assert 18 <= before[1] <= 30 and 42 <= after[0] <= 54 and cut.first < cut.last


def detection(first: int, last: int, fps: float | None) -> Detection:
    return Detection(first, last, 0, fps, 1.0, 2.0)


def test_finds_closer_than_a_coarsest_frame_become_one_transition():
    from array import array

    levels = (CutLevel(), CutLevel(fps=2.0))
    finds = [
        detection(10, 10, None),
        detection(13, 13, None),
        detection(40, 40, None),
        detection(37, 42, 2.0),
        detection(61, 66, 2.0),
    ]
    merged = merge_detections(finds, array("q", range(100)), 1 / FPS, levels)
    assert [(cut.first, cut.last, len(cut.evidence)) for cut in merged] == [(10, 13, 2), (40, 40, 2), (61, 66, 1)]
    assert shots_between(merged, 100) == [(0, 9), (13, 39), (40, 60), (66, 99)]


@pytest.mark.parametrize("end", ["cut", "key_frame"])
@pytest.mark.parametrize(
    ("codec", "container", "options"),
    [
        ("libx264", "mp4", {"g": "9", "bf": "3", "preset": "medium"}),
        ("libx264", "mp4", {"g": "10", "bf": "3", "x264-params": "open-gop=1:scenecut=0:b-pyramid=normal"}),
        ("libx264", "matroska", {"g": "7", "bf": "2"}),
        ("libx264", "mpegts", {"g": "12", "bf": "3"}),
        ("libx265", "mp4", {"g": "10", "x265-params": "open-gop=1:bframes=3:scenecut=0:log-level=none:pools=none"}),
        ("mpeg4", "mp4", {"g": "8", "bf": "2"}),
        ("libvpx-vp9", "webm", {"g": "8", "cpu-used": "8"}),
    ],
    ids=["h264-b", "h264-open-gop", "h264-mkv", "h264-ts", "hevc-open-gop", "mpeg4-b", "vp9-webm"],
)
def test_clips_are_the_sources_own_frames_bit_for_bit(tmp_path, codec, container, options, end):
    frames, truth = shots([26, 35])
    path = tmp_path / "v"
    path.write_bytes(encode(frames, codec, container, **options))
    source = decoded(path)
    assert len(source) == 61
    plan, clips, cuts = cut_everything(path, end)
    assert [cut.first for cut in cuts] == truth and clips
    for span, clip in clips:
        own = decoded(clip)
        assert len(own) == span.last - span.first + 1
        assert all(np.array_equal(a, b) for a, b in zip(own, source[span.first : span.last + 1], strict=True))
        assert not span.first < truth[0] <= span.last, "crosses a cut"
        times = [frame.time_s for frame in decode(clip)]
        assert times == pytest.approx([n / FPS for n in range(len(own))], abs=2e-3)
        assert probe(clip).duration_s == pytest.approx(len(own) / FPS, abs=2e-3)
    kept = sum(span.last - span.first + 1 for span in plan.spans)
    assert kept + sum(plan.lost_frames.values()) == 61, "every frame is in a clip or counted as lost"


def test_an_open_gop_costs_no_more_than_the_frames_of_one_reordering(tmp_path):
    frames, truth = shots([26, 35])
    path = tmp_path / "v.mp4"
    path.write_bytes(encode(frames, **{"g": "10", "bf": "3", "x264-params": "open-gop=1:scenecut=0"}))
    plan, _, _ = cut_everything(path)
    ends = {span.shot: span.last for span in plan.spans}
    assert truth[0] - 1 - ends[0] <= 3 and plan.lost_frames["open GOP or reordering"] <= 6


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_rotation_survives(tmp_path, turns):
    frames, _ = shots([20])
    (tmp_path / "v.mp4").write_bytes(rotated(encode_mp4(frames, FPS), 128, 96, turns))
    ((_, clip),) = cut_everything(tmp_path / "v.mp4")[1]
    source, own = probe(tmp_path / "v.mp4"), probe(clip)
    assert (own.rotation, own.width, own.height) == (
        source.rotation,
        source.width,
        source.height,
    ) and own.rotation == 90 * turns


@st.composite
def streams(draw):
    """Packets of a made-up video (GOPs of display-ordered, reordered or open structure), shots, and limits."""
    packets, shown = [], 0
    for _ in range(draw(st.integers(1, 6))):
        leading = draw(st.integers(0, 2)) if packets and draw(st.booleans()) else 0
        key = shown + leading
        order = [key, *range(shown, key)]  # then P frames, each followed by the B frames shown before it
        shown = key + 1
        for _ in range(draw(st.integers(0, 4))):
            b_frames = draw(st.integers(0, 3))
            order += [shown + b_frames, *range(shown, shown + b_frames)]
            shown += b_frames + 1
        packets += [Packet(n, 1, place == 0, n) for place, n in enumerate(order)]
    cuts = sorted(draw(st.sets(st.integers(1, max(1, shown - 1)), max_size=4)) - {shown})
    bounds = [0, *cuts, shown]
    spans = [(a, b - 1) for a, b in zip(bounds, bounds[1:], strict=False) if b > a]
    shortest = draw(st.integers(1, 4))
    return packets, shown, spans, shortest, draw(st.integers(shortest + 1, 20))


@given(streams(), st.sampled_from(["cut", "key_frame"]))
@settings(max_examples=300, deadline=None)
def test_any_plan_keeps_the_rules(stream, end):
    packets, frames, shot_list, shortest, longest = stream
    plan = plan_spans(packets, [float(n) for n in range(frames + 1)], shot_list, end, float(shortest), float(longest))
    keys = {p.shown for p in packets if p.key}
    seen: set[int] = set()
    for span in plan.spans:
        start, stop = shot_list[span.shot]
        own = set(range(span.first, span.last + 1))
        assert start <= span.first <= span.last <= stop and span.first in keys
        assert shortest <= len(own) <= longest and not own & seen
        seen |= own
        held = [p.shown for p in packets[span.begin : span.end] if p.shown >= span.first]
        assert set(held) == own and held[0] == span.first, "the packets hold exactly the clip's frames"
        if end == "key_frame":
            after = min(key for key in keys if key > span.last)
            place = next(n for n, p in enumerate(packets) if p.shown == after)
            leading = {p.shown for p in packets[place:] if p.shown < after}  # need the key frame: lost to an open GOP
            assert set(range(span.last + 1, after)) <= leading
    assert len(seen) + sum(plan.lost_frames.values()) == sum(b - a + 1 for a, b in shot_list)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory):
    """Five videos through ingest and split, once."""
    base = tmp_path_factory.mktemp("chain")
    source = base / "in"
    source.mkdir()
    frames, truth = shots([16, 20, 14])
    whole = encode_mp4(frames, FPS, gop=60)
    (source / "three shots.mp4").write_bytes(encode_mp4(frames, FPS))
    (source / "turned.mp4").write_bytes(rotated(encode_mp4(shots([15], 3)[0], FPS), 128, 96, 1))
    (source / "one key frame.mp4").write_bytes(whole)
    (source / "vp8.webm").write_bytes(encode(shots([12], 4)[0], "libvpx", "webm"))
    damaged = bytearray(encode(shots([30], 5)[0], "libx264", "mpegts", g="6"))
    (source / "breaks off.ts").write_bytes(damaged[: len(damaged) // 2])
    ingest_videos(str(source), base / "videos.parquet", DataRoot.open(base / "data"), IngestSettings())
    report = split_videos(base / "videos.parquet", base / "clips.parquet", DataRoot.open(base / "data"), LOOSE)
    names = {row["video_id"]: row["name"] for row in read_rows("videos", base / "videos.parquet")}
    return base, truth, report, [(names[row["video_id"]], row) for row in read_rows("clips", base / "clips.parquet")]


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
        assert row["end_s"] - row["start_s"] == pytest.approx(info.duration_s, abs=2e-3)
        with tarfile.open(root.fetch(row["shard_uri"])) as shard:
            member = shard.getmember(row["member"])
            assert (member.mtime, member.uid, member.gid) == (0, 0, 0)
            assert shard.extractfile(member).read() == clip


def test_the_evidence_names_what_opened_and_closed_the_shot(chain):
    _, truth, _, rows = chain
    second = next(row for name, row in rows if name == "three shots.mp4" and row["first_frame"] == truth[0])
    evidence = json.loads(second["cut_evidence"])
    assert evidence["opened_by"][0]["first"] == truth[0] and evidence["closed_by"][0]["first"] == truth[1]
    assert {"level", "fps", "threshold", "score"} <= evidence["opened_by"][0].keys()
    assert evidence["shot"] == [truth[0], truth[1] - 1]


def test_a_video_that_cannot_be_cut_is_told_and_stops_nothing(chain):
    _, _, report, rows = chain
    faults = {
        row[0]: row[1]
        for s in report.sections
        if "do not decode" in s["title"] or "cut" in s["title"]
        for row in s.get("rows", [])
    }
    assert "vp8.webm" not in {name for name, _ in rows}
    assert "MP4 cannot hold" in faults["vp8.webm"]
    assert report.summary["clips"]["set_aside"] == 1
    assert "breaks off.ts" in {name for name, _ in rows}, "what decodes of a broken file is used"


def test_one_key_frame_yields_one_clip_and_the_rest_is_counted(chain):
    _, truth, report, rows = chain
    ((first, last),) = [(row["first_frame"], row["last_frame"]) for name, row in rows if name == "one key frame.mp4"]
    assert first == 0 and truth[0] - 4 <= last <= truth[0] - 1  # B frames before the cut may need the frame after it
    assert report.counts["dropped: no key frame in the shot"] == 2


def test_a_second_run_writes_nothing_and_one_more_video_costs_one(chain):
    base, _, first, rows = chain
    assert first.done == 5
    before, root = (base / "clips.parquet").read_bytes(), DataRoot.open(base / "data")
    second = split_videos(base / "videos.parquet", base / "clips.parquet", root, LOOSE)
    assert (second.done, second.reused, root.writes) == (0, 5, 0)
    assert (base / "clips.parquet").read_bytes() == before
    (base / "in" / "more.mp4").write_bytes(encode_mp4(shots([9], 9)[0], FPS))
    ingest_videos(str(base / "in"), base / "more.parquet", root, IngestSettings())
    third = split_videos(base / "more.parquet", base / "more clips.parquet", root, LOOSE)
    assert (third.done, third.reused) == (1, 5)
    assert len(read_rows("clips", base / "more clips.parquet")) == len(rows) + 1


def test_no_clip_at_all_is_an_error_that_says_why(chain, tmp_path):
    base = chain[0]
    with pytest.raises(BadInputError, match=r"too short: \d+.*lower split.min_s"):
        split_videos(
            base / "videos.parquet",
            tmp_path / "c.parquet",
            DataRoot.open(base / "data"),
            SplitSettings(end="cut", min_s=15.0),
        )


def test_real_footage_is_cut_at_its_scene_changes(media):
    plan, clips, cuts = cut_everything(media / "bikes.mp4", min_s=0.1)
    assert [(cut.first, cut.last) for cut in cuts] == [(n, n) for n in (30, 76, 137, 187, 242)]
    source = decoded(media / "bikes.mp4")
    for span, clip in clips:
        own = decoded(clip)
        assert len(own) >= 5 and all(
            np.array_equal(a, b) for a, b in zip(own, source[span.first : span.last + 1], strict=True)
        )
    assert len(clips) == 6
