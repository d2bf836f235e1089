"""Probing tells what a file is: facts of real files that were made so, and verdicts on bad ones within bounds."""

import resource
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from odd_videos import (
    behind_another,
    damaged,
    framed,
    sound_only,
    texture,
    video,
    with_claimed_samples,
    with_claimed_size,
    y4m,
)

from svdflow.common.video import decode
from svdflow.ingest.examine import ProbeSettings, examine
from svdflow.ingest.letterbox import BarFinder

REASONS = ("empty", "unreadable", "no video stream", "one frame", "too small", "too large", "damaged")


def probed(tmp_path: Path, data: bytes, name: str = "file.mp4", **settings) -> dict:
    (tmp_path / name).write_bytes(data)
    return examine(str(tmp_path / name), ProbeSettings(**settings))


def facts(tmp_path: Path, data: bytes, **settings) -> dict:
    verdict = probed(tmp_path, data, **settings)
    assert "error" not in verdict, verdict
    assert verdict["faults"] == []
    return verdict["info"]


def test_a_plain_video_has_plain_facts(tmp_path):
    info = facts(tmp_path, video(48))
    assert (info["codec"], info["width"], info["height"], info["frames"], info["fps"]) == ("h264", 96, 64, 48, 24.0)
    assert info["duration_s"] == pytest.approx(2.0)
    assert (info["rotation"], info["pixel_aspect"], info["letterbox"]) == (0, 1.0, [0, 0, 0, 0])
    assert not (info["variable_fps"] or info["interlaced"] or info["audio"]) and info["color_transfer"] is None
    assert "mp4" in info["container"]


@pytest.mark.parametrize(
    ("codec", "container", "told"),
    [
        ("libx264", "matroska", "h264"),
        ("libx265", "mp4", "hevc"),
        ("libvpx-vp9", "webm", "vp9"),
        ("mpeg4", "avi", "mpeg4"),
        ("mpeg2video", "mpegts", "mpeg2video"),
        ("libx264", "mpegts", "h264"),
        ("ffv1", "matroska", "ffv1"),
    ],
)
def test_codecs_and_containers_are_told_with_equal_times(tmp_path, codec, container, told):
    info = facts(tmp_path, video(36, codec=codec, container=container))
    assert info["codec"] == told and container in info["container"]
    assert info["frames"] == 36 and info["fps"] == pytest.approx(24) and not info["variable_fps"]
    assert info["duration_s"] == pytest.approx(1.5, abs=0.05)


@pytest.mark.parametrize(
    ("codec", "frames", "container", "main"),
    [("mjpeg", 1, "matroska", False), ("libx264", 3, "mp4", True), ("libx264", 3, "matroska", True)],
    ids=["cover", "preview-mp4", "preview-mkv"],
)
def test_of_several_streams_the_film_is_taken_and_no_cover_or_preview(tmp_path, codec, frames, container, main):
    info = facts(tmp_path, behind_another(codec, frames, container, main))
    assert (info["width"], info["height"], info["frames"], info["fps"]) == (96, 64, 24, 24.0)
    assert [frame.rgb.shape for frame in decode(tmp_path / "file.mp4")] == [(64, 96, 3)] * 24


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts this process's threads through /proc")
@pytest.mark.parametrize(("codec", "options"), [("libsvtav1", {"preset": "12"}), ("libx264", {})])
def test_a_video_is_decoded_in_this_thread_alone(tmp_path, codec, options):
    """Workers are as many as cores; dav1d would start as many threads in each of them."""
    (tmp_path / "v.mp4").write_bytes(video(24, codec=codec, options=options))

    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    before = threads()
    frames = decode(tmp_path / "v.mp4")
    next(frames)
    assert threads() <= before
    assert len(list(frames)) == 23


def test_frames_that_an_edit_list_hides_and_a_late_beginning_are_no_break(tmp_path):
    """Trimmed by a whole GOP at its beginning, of which no packet comes; and pictures from the tenth second on."""
    trimmed = facts(tmp_path, video(60, times_ms=[round((n - 30) * 1000 / 24) for n in range(60)]))
    assert trimmed["frames"] == 30 and trimmed["duration_s"] == pytest.approx(30 / 24, abs=2e-3)
    late = facts(tmp_path, video(48, container="matroska", times_ms=[10_000 + round(n * 1000 / 24) for n in range(48)]))
    assert late["frames"] == 48 and late["duration_s"] == pytest.approx(2.0, abs=5e-2)


@pytest.mark.parametrize(
    ("steps_ms", "variable"),
    [
        ([40] * 30, False),
        ([33, 33, 34] * 10, False),  # a regular rate in whole milliseconds
        ([8, 8, 9] * 20, False),
        ([40] * 15 + [80] * 15, True),  # half of it at half the rate
        ([33, 67] * 15, True),
        ([40] * 29 + [3000], False),  # only the last frame's duration, not told by what follows
        ([40] * 20 + [400] + [40] * 20, True),  # one long pause: an index is no time after it
    ],
)
@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_a_variable_frame_rate_is_seen_in_the_times(tmp_path, steps_ms, variable, container):
    times = [0, *np.cumsum(steps_ms)[:-1].tolist()]
    info = facts(tmp_path, video(len(times), times_ms=times, container=container, options={"bf": "2"}))
    assert info["variable_fps"] == variable
    assert info["frames"] == len(times)
    assert info["fps"] == pytest.approx((len(times) - 1) / (times[-1] / 1000), rel=0.02)


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_a_display_matrix_turns_the_size_and_the_shape_of_pixels(tmp_path, turn):
    def setup(stream):
        stream.set_display_rotation(-turn)  # FFmpeg turns counterclockwise
        stream.sample_aspect_ratio = Fraction(4, 3)

    info = facts(tmp_path, video(stream_options=setup))
    assert info["rotation"] == turn
    quarter = turn != 180
    assert (info["width"], info["height"]) == ((64, 96) if quarter else (96, 64))
    assert info["pixel_aspect"] == pytest.approx(3 / 4 if quarter else 4 / 3)


def test_pixels_that_are_not_square_are_told(tmp_path):
    def setup(stream):
        stream.sample_aspect_ratio = Fraction(4, 3)

    assert facts(tmp_path, video(stream_options=setup))["pixel_aspect"] == pytest.approx(4 / 3)


@pytest.mark.parametrize(
    ("codec", "options", "container"),
    [
        ("libx264", {"x264-params": "tff=1"}, "mp4"),
        ("libx264", {"x264-params": "bff=1"}, "matroska"),
        ("mpeg2video", {"flags": "+ildct+ilme"}, "mpegts"),
    ],
)
def test_interlacing_is_seen(tmp_path, codec, options, container):
    info = facts(tmp_path, video(codec=codec, options=options, container=container))
    assert info["interlaced"] and info["frames"] == 24


@pytest.mark.parametrize(
    ("number", "name", "codec"),
    [
        (16, "smpte2084", "libx265"),
        (18, "arib-std-b67", "libx265"),
        (18, "arib-std-b67", "libx264"),
        (1, "bt709", "libx264"),
    ],
)
def test_the_transfer_of_colours_is_told_by_name(tmp_path, number, name, codec):
    def setup(stream):
        stream.codec_context.color_trc = number

    pix_fmt = "yuv420p10le" if codec == "libx265" else "yuv420p"
    assert facts(tmp_path, video(codec=codec, stream_options=setup, pix_fmt=pix_fmt))["color_transfer"] == name


def test_sound_is_told(tmp_path):
    assert facts(tmp_path, video(sound=True))["audio"] is True


# black bars


@pytest.mark.parametrize(
    "bars", [(0, 16, 0, 16), (20, 0, 20, 0), (12, 10, 12, 10), (0, 14, 0, 0), (55, 0, 55, 0), (0, 0, 0, 0)]
)
def test_black_bars_are_measured_through_compression(tmp_path, bars):
    found = facts(tmp_path, video(framed(bars), size=(160, 120), options={"crf": "30"}))["letterbox"]
    assert np.abs(np.array(found) - bars).max() <= 2
    assert [side == 0 for side in found] == [side == 0 for side in bars]


def test_bars_turn_with_the_picture(tmp_path):
    def setup(stream):
        stream.set_display_rotation(-90)

    info = facts(tmp_path, video(framed((0, 16, 0, 30)), size=(160, 120), stream_options=setup))
    assert (info["rotation"], info["width"]) == (90, 120)  # clockwise: the top goes to the right
    assert np.abs(np.array(info["letterbox"]) - (30, 0, 16, 0)).max() <= 2


def finder(frames) -> list[int] | None:
    bars = BarFinder()
    for frame in frames:
        bars.add(frame)
    return bars.bars()


def grey(bars, index) -> np.ndarray:
    return framed(bars, index + 1)[index].max(axis=2)


def test_subtitles_in_a_bar_of_a_few_frames_leave_it_a_bar():
    frames = [grey((0, 20, 0, 20), i) for i in range(8)]
    for frame in frames[2:4]:
        frame[106:112, 40:120:2] = 235
    assert finder(frames) == [0, 20, 0, 20]


def test_a_dark_scene_is_no_bar_and_black_frames_say_nothing():
    frames = [grey((0, 0, 0, 0), i) for i in range(8)]
    for frame in frames[:5]:
        frame[:50] = 16  # a night sky in most of the frames, but not in all
    assert finder(frames) == [0, 0, 0, 0]
    assert finder([np.full((120, 160), 16, np.uint8)] * 8) is None
    barred = [grey((0, 20, 0, 20), i) for i in range(4)] + [np.full((120, 160), 16, np.uint8)] * 4
    assert finder(barred) == [0, 20, 0, 20]


def test_words_on_black_and_a_lit_face_are_no_letterbox():
    title = np.full((120, 160), 16, np.uint8)
    title[50:70, 30:130:3] = 235
    assert finder([title] * 8) == [0, 0, 0, 0]
    y, x = np.mgrid[:120, :160]
    face = np.where((y - 60) ** 2 + (x - 80) ** 2 < 30**2, 200, 16).astype(np.uint8)
    assert finder([face] * 8) == [0, 0, 0, 0]


# what is no usable video, or not wholly one


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"\0" * 4096, "unreadable"),
        (b"<html><body>404</body></html>", "unreadable"),
        (sound_only(), "no video stream"),
        (video(24)[:900], "unreadable"),
        (video(1), "one frame"),
        (video(2, size=(8, 8)), "too small"),
        (y4m(15360, 8640), "too large"),
        (y4m(100_000, 100_000), ""),
        (y4m(2_000_000_000, 2_000_000_000), ""),
        (y4m(64, 64, 0), "damaged"),
    ],
)
def test_a_bad_file_is_told_by_a_short_reason(tmp_path, data, reason):
    error = probed(tmp_path, data)["error"]
    assert error.startswith(f"{reason}: " if reason else "")
    assert error.partition(": ")[0] in REASONS
    assert str(tmp_path) not in error


def test_the_limits_are_settings(tmp_path):
    data = video(4)
    assert probed(tmp_path, data, max_pixels=96 * 64)["info"]["width"] == 96
    assert probed(tmp_path, data, max_pixels=96 * 64 - 1)["error"].startswith("too large: 96×64")
    assert probed(tmp_path, data, max_side_px=95)["error"].startswith("too large: ")


def test_a_wrong_extension_does_not_matter(tmp_path):
    data = video(24, container="matroska")
    assert probed(tmp_path, data, "film.jpg")["info"] == probed(tmp_path, data, "film.mkv")["info"]


def test_a_video_that_breaks_off_is_used_and_its_fault_is_told(tmp_path):
    whole = video(96, index_first=True)
    verdict = probed(tmp_path, whole[: int(len(whole) * 0.6)])
    assert verdict["info"]["frames"] < 96 and any("breaks off" in fault for fault in verdict["faults"])
    stream = video(96, container="matroska")
    verdict = probed(tmp_path, stream[: int(len(stream) * 0.5)])
    assert verdict["info"]["frames"] < 60 and any("breaks off" in fault for fault in verdict["faults"])


def test_a_video_damaged_in_the_middle_is_used_and_its_fault_is_told(tmp_path):
    whole = video(96, index_first=True)
    verdict = probed(tmp_path, damaged(whole, 0.4, 0.6))
    assert verdict["info"]["frames"] == 96 and verdict["info"]["width"] == 96
    assert any("does not decode" in fault for fault in verdict["faults"])


def test_noise_all_through_never_raises(tmp_path):
    whole = video(48, index_first=True)
    for seed in range(30):
        rng = np.random.default_rng(seed)
        changed = bytearray(whole)
        for place in rng.integers(0, len(whole), 20):
            changed[place] = rng.integers(256)
        verdict = probed(tmp_path, bytes(changed))
        assert ("error" in verdict) != ("info" in verdict)


def test_thousands_of_tiny_frames_are_probed_by_decoding_few(tmp_path, monkeypatch):
    data = video([texture(i % 7, 16, 16) for i in range(3000)], size=(16, 16), rate=60)
    decoded = 0
    import svdflow.ingest.examine as module

    frames = module._frames

    def counted(*args):
        nonlocal decoded
        for frame in frames(*args):
            decoded += 1
            yield frame

    monkeypatch.setattr(module, "_frames", counted)
    info = facts(tmp_path, data)
    assert info["frames"] == 3000 and info["duration_s"] == pytest.approx(50)
    assert 8 <= decoded <= 100


PROBE_IN_LITTLE_MEMORY = """
import json, sys
from pathlib import Path
from svdflow.ingest.examine import ProbeSettings
from svdflow.ingest.verdict import _memory_limit
from svdflow.ingest.examine import examine
with _memory_limit(1 << 30):
    verdict = examine(sys.argv[1], ProbeSettings())
# not getrusage: its peak is carried over from the process that started this one
peak_kb = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([verdict.get("error"), peak_kb]))
"""


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("8k square", y4m(8192, 8192)),
        ("claims 16k", with_claimed_size(video(24), 15360, 8640)),
        ("claims 65535", with_claimed_size(video(24), 65535, 65535)),
        ("two thousand million samples", with_claimed_samples(video(24), 2_000_000_000)),
        ("four thousand million samples", with_claimed_samples(video(24), 4_294_967_295)),
    ],
)
def test_absurd_headers_do_not_take_memory(tmp_path, name, data):
    """In a process of its own, whose peak is measured; libraries included."""
    import json

    (tmp_path / "absurd").write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", PROBE_IN_LITTLE_MEMORY, str(tmp_path / "absurd")],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    error, peak_kib = json.loads(done.stdout.splitlines()[-1])
    assert peak_kib < 1 << 20, (name, error, peak_kib)


def test_a_real_16k_video_is_set_aside_without_decoding_it(tmp_path):
    """One key frame of 132 megapixels, encoded for real, in a process whose memory is limited."""
    path = tmp_path / "16k.mkv"
    with av.open(str(path), "w", format="matroska") as out:
        stream = out.add_stream("mjpeg", rate=24)
        stream.width, stream.height, stream.pix_fmt = 15360, 8640, "yuvj420p"
        frame = av.VideoFrame(15360, 8640, "yuvj420p")
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        frame.pts = 0
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    verdict = examine(str(path), ProbeSettings())
    assert verdict["error"].startswith("too large: ")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10
