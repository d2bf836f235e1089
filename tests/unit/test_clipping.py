"""Clips are the source's own frames, bit for bit, cut so that each one decodes by itself."""

import io
from array import array
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
from field_coded import field_coded
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_videos import behind_another
from test_ingest import rotated

from svdflow.common.errors import BadInputError, StorageError
from svdflow.common.video import decode, encode_mp4, probe
from svdflow.curation.split import clip_writer
from svdflow.curation.split.cascade import Cascade
from svdflow.curation.split.clip_check import is_the_source, same_frames, same_packets
from svdflow.curation.split.clipping import cut_clips, plan_spans
from svdflow.curation.split.cuts import shots_between
from svdflow.curation.split.scan import Packets, scan_video
from tests.split_footage import FPS, LOOSE, PIXELS, cut_everything, decoded, encode, find_cuts, shots

OPEN_GOP = {"g": "10", "bf": "3", "x264-params": "open-gop=1:scenecut=0:b-pyramid=normal"}


@pytest.mark.parametrize("end", ["cut", "key_frame"])
@pytest.mark.parametrize(
    ("codec", "container", "options"),
    [
        ("libx264", "mp4", {"g": "9", "bf": "0"}),
        ("libx264", "mp4", {"g": "9", "bf": "3", "preset": "medium"}),
        ("libx264", "mp4", OPEN_GOP),
        ("libx264", "matroska", {"g": "7", "bf": "2"}),
        ("libx264", "mpegts", {"g": "12", "bf": "3"}),
        ("libx264", "mpegts", OPEN_GOP),
        ("libx265", "mp4", {"g": "10", "x265-params": "open-gop=1:bframes=3:scenecut=0:log-level=none:pools=none"}),
        ("mpeg4", "mp4", {"g": "8", "bf": "2"}),
        ("libvpx-vp9", "webm", {"g": "8", "cpu-used": "8"}),
        ("libx264", "avi", {"g": "9", "bf": "2"}),
        ("mpeg2video", "mpeg", {"g": "9", "bf": "2"}),
        ("libsvtav1", "mp4", {"g": "8", "preset": "12"}),
        ("libsvtav1", "matroska", {"g": "8", "preset": "12"}),
        ("libvpx", "webm", {"g": "8"}),
        ("wmv2", "asf", {"g": "8"}),
        ("mjpeg", "avi", {}),
        ("prores_ks", "mov", {}),
    ],
    ids=[
        *("closed", "b", "open", "mkv", "ts", "ts-open", "hevc-open", "mpeg4-b", "vp9-webm"),
        *("avi-b", "mpeg2-b", "av1-mp4", "av1-mkv", "vp8-webm", "wmv", "mjpeg-avi", "prores-mov"),
    ],
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
        silent = 1 / FPS if codec == "libvpx" else 0  # Matroska does not tell how long the last frame is shown
        assert probe(clip).duration_s == pytest.approx(len(own) / FPS - silent, abs=2e-3)
        with av.open(io.BytesIO(clip)) as container_:
            assert next(container_.demux(video=0)).pts == 0
    kept = sum(span.last - span.first + 1 for span in plan.spans)
    assert kept + sum(plan.lost_frames.values()) == 61, "every frame is in a clip or counted as lost"


def test_an_open_gop_costs_no_more_than_the_frames_of_one_reordering_and_they_are_counted(tmp_path):
    frames, truth = shots([26, 35])
    path = tmp_path / "v.mp4"
    path.write_bytes(encode(frames, **OPEN_GOP))
    plan, _, _ = cut_everything(path)
    ends = {span.shot: span.last for span in plan.spans}
    assert truth[0] - 1 - ends[0] <= 3 and plan.lost_frames["open GOP or reordering"] <= 6
    at_keys, _, _ = cut_everything(path, "key_frame")
    # the paper's end, before a key frame: the frames that open GOPs show before it, and that need it, are lost
    assert 1 <= at_keys.lost_frames["open GOP or reordering"] <= 6


def test_a_variable_frame_rate_survives(tmp_path):
    """Gaps of 50 to 350 ms between frames; a clip's times are the source's, from its own first frame on."""
    frames, truth = shots([30, 40], seed=2)
    rng = np.random.default_rng(5)
    times = np.cumsum([0, *rng.choice([60, 100, 101, 250, 420], size=69)]).tolist()
    path = tmp_path / "v.mkv"
    path.write_bytes(encode(frames, container="matroska", times=times, g="8", bf="2"))
    source, exact = decoded(path), [frame.time_s for frame in decode(path)]
    assert len(source) == 70 and exact == pytest.approx([t / 1200 for t in times], abs=1e-3)
    _, clips, cuts = cut_everything(path)
    assert [cut.first for cut in cuts] == truth and len(clips) == 2
    for span, clip in clips:
        own = list(decode(clip))
        assert [f.time_s for f in own] == pytest.approx(
            [t - exact[span.first] for t in exact[span.first : span.last + 1]], abs=1e-6
        )
        assert all(np.array_equal(a, b) for a, b in zip(decoded(clip), source[span.first : span.last + 1], strict=True))


def edited(data: bytes, hide: int) -> bytes:
    """An MP4 whose edit list begins ``hide`` frames late: its own edit list's start time is moved."""
    at = data.index(b"elst")
    scale_at = data.index(b"mdhd") + 4 + 4 + 8  # version and flags, two times, then the scale
    scale = int.from_bytes(data[scale_at : scale_at + 4], "big")
    start = int.from_bytes(data[at + 16 : at + 20], "big") + hide * scale // 12
    return data[: at + 16] + start.to_bytes(4, "big") + data[at + 20 :]


@pytest.mark.parametrize("end", ["cut", "key_frame"])
def test_an_edit_list_hides_frames_and_clips_begin_behind_them(tmp_path, end):
    frames, truth = shots([30, 35], seed=3)
    path = tmp_path / "v.mp4"
    path.write_bytes(edited(encode(frames, g="8", bf="2"), hide=5))
    source = decoded(path)
    assert len(source) == 60, "the edit list hides five frames"
    plan, clips, cuts = cut_everything(path, end)
    assert [cut.first for cut in cuts] == [truth[0] - 5]
    assert clips[0][0].first == 3, "the first key frame that is shown, the source's ninth frame"
    for span, clip in clips:
        own = decoded(clip)
        assert len(own) == span.last - span.first + 1
        assert all(np.array_equal(a, b) for a, b in zip(own, source[span.first : span.last + 1], strict=True))


def test_of_several_streams_the_film_is_cut(tmp_path):
    """Behind a preview, whose packets lie between the film's."""
    (tmp_path / "v").write_bytes(behind_another("libx264", 3, main=True))
    ((span, clip),) = cut_everything(tmp_path / "v")[1]
    source = [frame.rgb for frame in decode(tmp_path / "v")]
    assert (span.first, span.last) == (0, 23) and source[0].shape == (64, 96, 3)
    assert all(np.array_equal(a.rgb, b) for a, b in zip(decode(clip), source, strict=True))


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_rotation_survives(tmp_path, turns):
    frames, _ = shots([20])
    (tmp_path / "v.mp4").write_bytes(rotated(encode_mp4(frames, FPS), 128, 96, turns))
    ((_, clip),) = cut_everything(tmp_path / "v.mp4")[1]
    source, own = probe(tmp_path / "v.mp4"), probe(clip)
    assert (own.rotation, own.width, own.height) == (source.rotation, source.width, source.height)
    assert own.rotation == 90 * turns


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_colour_tags_and_pixel_aspect_survive(tmp_path, container):
    """BT.2020 with the HLG transfer in the container, and pixels that are not square."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as target:
        stream = target.add_stream("libx264", rate=12, options={"threads": "1", "g": "6"})
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        context = stream.codec_context
        context.color_primaries, context.color_trc, context.colorspace, context.color_range = 9, 18, 9, 1
        context.sample_aspect_ratio = Fraction(4, 3)
        for rgb in shots([20])[0]:
            target.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        target.mux(stream.encode())
    (tmp_path / "v").write_bytes(buffer.getvalue())
    ((_, clip),) = cut_everything(tmp_path / "v")[1]

    def tags(data: bytes) -> tuple:
        with av.open(io.BytesIO(data)) as opened:
            context, frame = opened.streams.video[0].codec_context, next(opened.decode(video=0))
            told = (context.color_primaries, context.color_trc, context.colorspace, context.color_range)
            return told, (frame.color_primaries, frame.color_trc), context.sample_aspect_ratio

    assert tags(clip) == tags(buffer.getvalue())
    assert tags(clip)[0][:2] == (9, 18)


@pytest.mark.parametrize(("codec", "container"), [("prores_ks", "mov"), ("libsvtav1", "mp4")])
def test_rotation_and_pixel_aspect_that_only_the_container_tells_survive(tmp_path, codec, container):
    with av.open(str(tmp_path / "v"), "w", format=container) as target:
        stream = target.add_stream(codec, rate=12)
        stream.height, stream.width, stream.pix_fmt = 96, 128, PIXELS.get(codec, "yuv420p")
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        stream.set_display_rotation(90)
        for rgb in shots([20])[0]:
            target.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        target.mux(stream.encode())
    ((_, clip),) = cut_everything(tmp_path / "v")[1]
    with av.open(io.BytesIO(clip)) as opened:
        assert opened.streams.video[0].sample_aspect_ratio == Fraction(4, 3)
        assert next(opened.decode(video=0)).rotation == 90


def test_sound_is_dropped_or_kept_in_step_with_the_pictures(tmp_path):
    frames, truth = shots([36, 48], seed=4)
    path = tmp_path / "v.mp4"
    path.write_bytes(encode(frames, sound=True, g="6"))
    _, silent, _ = cut_everything(path)
    _, clips, _ = cut_everything(path, audio=True)
    assert len(clips) == len(silent) == 2
    with av.open(str(path)) as opened:
        whole = {round(float(p.pts * p.time_base), 4): bytes(p) for p in opened.demux(audio=0) if p.size}
    for (span, clip), (_, without) in zip(clips, silent, strict=True):
        with av.open(io.BytesIO(without)) as opened:
            assert not opened.streams.audio
        with av.open(io.BytesIO(clip)) as opened:
            packets = [p for p in opened.demux(audio=0) if p.size]
        start, length = span.first / FPS, (span.last - span.first + 1) / FPS
        wanted = [data for at, data in whole.items() if start - 1e-6 <= at < start + length]
        assert [bytes(p) for p in packets] == wanted and len(wanted) > 20
        at = next(t for t in whole if t >= start - 1e-6)
        assert float(packets[0].pts * packets[0].time_base) == pytest.approx(at - start, abs=2e-3)
        assert len(decoded(clip)) == span.last - span.first + 1


def test_keeping_sound_of_a_silent_video_changes_nothing(tmp_path):
    (tmp_path / "v.mp4").write_bytes(encode(shots([20])[0]))
    assert cut_everything(tmp_path / "v.mp4", audio=True)[1] == cut_everything(tmp_path / "v.mp4")[1]


@pytest.mark.parametrize("every_frame", [True, False])
@pytest.mark.parametrize("options", [{"g": "6", "bf": "2"}, OPEN_GOP], ids=["closed", "open"])
def test_verification_passes_what_is_right_and_refuses_what_is_not(tmp_path, every_frame, options):
    path = tmp_path / "v.mp4"
    path.write_bytes(encode(shots([44])[0], **options))
    scan, cuts = find_cuts(path)
    plan = plan_spans(scan.packets, scan.times_s, shots_between(cuts, 44), "cut", 0.2, 60.0)
    ((span, clip),) = cut_clips(path, scan, plan.spans, tmp_path)
    assert span.last - span.first > 30
    assert same_frames(clip, scan, span, every_frame)
    for wrong in (span.first, span.last):
        right = scan.checksums[wrong]
        scan.checksums[wrong] ^= 1
        assert not same_frames(clip, scan, span, every_frame)
        scan.checksums[wrong] = right
    other = encode(shots([44], seed=9)[0], **options)
    (tmp_path / "other.mp4").write_bytes(other)
    assert not same_frames(tmp_path / "other.mp4", scan, span, every_frame)


CLOSED = {"g": "6", "bf": "2"}


def one_clip(path, frames=44, **options):
    """A scan by packets of a new video, and its one clip."""
    path.write_bytes(encode(shots([frames])[0], **options))
    scan = scan_video(path, Cascade(LOOSE.levels, LOOSE.detect_width_px), FPS, "packets")
    plan = plan_spans(scan.packets, scan.times_s, [(0, frames - 1)], "cut", 0.2, 60.0)
    ((span, clip),) = cut_clips(path, scan, plan.spans, path.parent)
    return scan, span, clip


def test_packets_tell_where_a_stream_decodes_by_itself(tmp_path):
    """x264 makes a refresh of every key frame of a closed GOP, and of the first one alone where GOPs are open."""
    closed, _, _ = one_clip(tmp_path / "closed.mp4", **CLOSED)
    assert closed.packets.refreshes == closed.packets.keys and sum(closed.packets.keys) > 4
    assert set(closed.checksums) == {0}, "no frame needs a checksum"
    opened, _, _ = one_clip(tmp_path / "open.mp4", **OPEN_GOP)
    assert sum(opened.packets.keys) > 3 and [*opened.packets.refreshes] == [1] + [0] * (len(opened.packets) - 1)
    second = sorted(n for n, key in zip(opened.packets.shown, opened.packets.keys, strict=True) if key)[1]
    assert all(opened.checksums[second:])


@pytest.mark.parametrize(
    "options",
    [
        CLOSED | {"x264-params": "repeat-headers=1"},
        CLOSED | {"container": "mpegts"},
        {"codec": "mpeg4", "g": "8"},
        {"codec": "libvpx-vp9", "container": "webm", "cpu-used": "8"},
    ],
    ids=["sets within the stream", "start codes", "mpeg4", "vp9"],
)
def test_where_packets_do_not_tell_the_frames_are_compared(tmp_path, options):
    scan, span, clip = one_clip(tmp_path / "v", **options)
    assert not scan.packets.refreshes[span.begin] and all(scan.checksums)
    assert is_the_source(clip, scan, span, "packets")
    scan.checksums[span.last] ^= 1
    assert not is_the_source(clip, scan, span, "packets")


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_a_clip_with_another_byte_packet_time_or_parameter_set_is_refused(tmp_path, codec):
    options = CLOSED if codec == "libx264" else {"g": "6", "x265-params": "open-gop=0:log-level=none:pools=none"}
    scan, span, clip = one_clip(tmp_path / "v.mp4", codec=codec, **options)
    assert scan.packets.refreshes[span.begin]
    assert same_packets(clip, scan, span) and is_the_source(clip, scan, span, "packets")
    data = clip.read_bytes()
    with av.open(str(clip)) as opened:
        packets = [bytes(p) for p in opened.demux(video=0) if p.size]
        extradata = bytes(opened.streams.video[0].codec_context.extradata)
    for piece, at in ((packets[0], -1), (packets[-1], -1), (packets[len(packets) // 2], -2), (extradata, -1)):
        place = data.index(piece) + len(piece) + at
        clip.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert not same_packets(clip, scan, span)
    clip.write_bytes(data)
    for wrong in (replace(span, last=span.last - 1, end=span.end - 1), replace(span, end=span.end - 1)):
        assert not same_packets(clip, scan, wrong)
    scan.times_s[span.first + 3] += 0.01
    assert not same_packets(clip, scan, span)


@st.composite
def streams(draw):
    """Packets of a made-up video (GOPs of display-ordered, reordered or open structure), shots, and limits."""
    packets, shown = Packets(), 0
    for _ in range(draw(st.integers(1, 6))):
        leading = draw(st.integers(0, 2)) if len(packets) and draw(st.booleans()) else 0
        key = shown + leading
        order = [key, *range(shown, key)]  # then P frames, each followed by the B frames shown before it
        shown = key + 1
        for _ in range(draw(st.integers(0, 4))):
            b_frames = draw(st.integers(0, 3))
            order += [shown + b_frames, *range(shown, shown + b_frames)]
            shown += b_frames + 1
        packets.shown.extend(order)
        packets.keys.extend([True, *[False] * (len(order) - 1)])
    cuts = sorted(draw(st.sets(st.integers(1, max(1, shown - 1)), max_size=4)) - {shown})
    bounds = [0, *cuts, shown]
    spans = [(a, b - 1) for a, b in zip(bounds, bounds[1:], strict=False) if b > a]
    shortest = draw(st.integers(1, 4))
    return packets, shown, spans, shortest, draw(st.integers(shortest + 1, 20))


@given(streams(), st.sampled_from(["cut", "key_frame"]))
@settings(max_examples=300, deadline=None)
def test_any_plan_keeps_the_rules(stream, end):
    packets, frames, shot_list, shortest, longest = stream
    times = array("d", [float(n) for n in range(frames + 1)])
    plan = plan_spans(packets, times, shot_list, end, float(shortest), float(longest))
    keys = {shown for shown, key in zip(packets.shown, packets.keys, strict=True) if key}
    seen: set[int] = set()
    for span in plan.spans:
        start, stop = shot_list[span.shot]
        own = set(range(span.first, span.last + 1))
        assert start <= span.first <= span.last <= stop and span.first in keys
        assert shortest <= len(own) <= longest and not own & seen
        seen |= own
        held = [shown for shown in packets.shown[span.begin : span.end] if shown >= span.first]
        assert set(held) == own and held[0] == span.first, "the packets hold exactly the clip's frames"
        if end == "key_frame":
            after = min(key for key in keys if key > span.last)
            place = packets.shown.index(after)
            leading = {shown for shown in packets.shown[place:] if shown < after}  # need it: lost to an open GOP
            assert set(range(span.last + 1, after)) <= leading
    assert len(seen) + sum(plan.lost_frames.values()) == sum(b - a + 1 for a, b in shot_list)


def made_stream(keys: list[int], frames: int) -> Packets:
    """Packets in display order, key frames where told."""
    packets = Packets()
    packets.shown.extend(range(frames))
    packets.keys.extend([n in keys for n in range(frames)])
    return packets


@pytest.mark.parametrize("last", [1000, 1001], ids=["shot ends inside a GOP", "shot ends before a key frame"])
def test_a_gop_longer_than_a_clip_may_be_costs_itself_and_not_the_shot(last):
    """Key frames at 0, 240, 260, 280, … with at most 20 s at 10 fps: only what lies before the second one is lost."""
    keys = [0, *range(240, 1001, 20)]
    times = array("d", [n / 10 for n in range(1002)])
    plan = plan_spans(made_stream(keys, 1001), times, [(0, last - 1)], "key_frame", 2.0, 20.0)
    assert [(span.first, span.last) for span in plan.spans] == [
        (at, min(at + 199, 999)) for at in range(240, 1000, 200)
    ]
    assert plan.lost_frames["in a GOP longer than a clip may be"] == 240
    assert {reason for reason, n in plan.dropped.items() if n} <= {"GOP longer than a clip may be", "too short"}
    assert sum(span.last - span.first + 1 for span in plan.spans) + sum(plan.lost_frames.values()) == last


def test_a_shot_of_one_long_gop_has_no_clip_and_says_why():
    times = array("d", [n / 10 for n in range(501)])
    plan = plan_spans(made_stream([0], 500), times, [(0, 499)], "key_frame", 2.0, 20.0)
    assert not plan.spans and plan.lost_frames["in a GOP longer than a clip may be"] == 500
    assert {reason: n for reason, n in plan.dropped.items() if n} == {"GOP longer than a clip may be": 1}


def test_a_codec_that_no_container_of_clips_holds_is_told(tmp_path, monkeypatch):
    path = tmp_path / "v.mp4"
    path.write_bytes(encode(shots([20])[0]))
    monkeypatch.setattr(clip_writer, "_CONTAINERS", (("ivf", ".ivf"), ("webm", ".webm")))  # of VP8, VP9 and AV1
    with pytest.raises(BadInputError, match=r"no container of clips can hold its stream \(h264: 'ivf' format"):
        cut_everything(path)
    assert [left.name for left in tmp_path.iterdir()] == ["v.mp4"]


def test_a_disk_that_takes_no_more_says_nothing_of_the_video(tmp_path, monkeypatch):
    path = tmp_path / "v.mp4"
    path.write_bytes(encode(shots([30])[0], g="6"))
    scan, cuts = find_cuts(path)
    plan = plan_spans(scan.packets, scan.times_s, shots_between(cuts, 30), "cut", 0.2, 60.0)
    full = tmp_path / "full"
    full.mkdir()
    (full / "clip.mp4").symlink_to("/dev/full")
    with pytest.raises(StorageError, match="the disk is full"):
        list(cut_clips(path, scan, plan.spans, full))
    with pytest.raises(StorageError):
        list(cut_clips(path, scan, plan.spans, tmp_path / "removed meanwhile"))


def test_a_source_that_is_shorter_the_second_time_loses_no_clip_unseen(tmp_path):
    path = tmp_path / "v.ts"
    path.write_bytes(encode(shots([30])[0], container="mpegts", g="6"))
    scan, cuts = find_cuts(path)
    plan = plan_spans(scan.packets, scan.times_s, shots_between(cuts, 30), "cut", 0.2, 60.0)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(RuntimeError, match="reading breaks off"):
        list(cut_clips(path, scan, plan.spans, tmp_path))


@pytest.mark.parametrize("end", ["cut", "key_frame"])
def test_frames_in_two_packets_a_field_each_are_kept_whole(tmp_path, end):
    """Interlaced H.264 as broadcasters code it: each packet holds one field, each sample of a clip both."""
    path = tmp_path / "v.ts"
    path.write_bytes(field_coded(40))
    with av.open(str(path)) as container:
        assert sum(bool(packet.size) for packet in container.demux(video=0)) == 80
    source = decoded(path)
    scan, _ = find_cuts(path)
    assert len(scan.pts) == len(source) == 40 and scan.times_s[-1] == pytest.approx(40 / 25)
    plan = plan_spans(scan.packets, scan.times_s, [(0, 17), (18, 39)], end, 0.2, 60.0)
    ends = [17, 39] if end == "cut" else [17, 38]
    assert [(span.first, span.last) for span in plan.spans] == [(0, ends[0]), (18, ends[1])]
    for span, clip in cut_clips(path, scan, plan.spans, tmp_path):
        assert same_frames(clip, scan, span, every_frame=True)
        own = decoded(clip)
        assert len(own) == span.last - span.first + 1
        assert all(np.array_equal(a, b) for a, b in zip(own, source[span.first : span.last + 1], strict=True))
        with av.open(str(clip)) as container:
            packets = [packet for packet in container.demux(video=0) if packet.size]
        assert len(packets) == len(own), "a sample a frame"
        assert probe(clip).duration_s == pytest.approx(len(own) / 25, abs=2e-3)
