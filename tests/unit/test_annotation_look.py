"""The one decode: the frames it hands out are those of a plain decode, bit for bit, and it finishes no others."""

import io
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from svdflow.common.errors import BadInputError
from svdflow.common.video import VideoFrame, decode, encode_mp4
from svdflow.curation.annotate import look as module
from svdflow.curation.annotate.annotator import Watcher
from svdflow.curation.annotate.look import frame_at, glance, key_indices, look
from svdflow.ingest.footage import make_scene


class Seen(Watcher):
    """Asks for frames by a rule, and keeps them."""

    def __init__(self, rule) -> None:
        self.rule, self.frames = rule, []

    def wants(self, times_s: np.ndarray) -> list[int]:
        return self.rule(times_s)

    def see(self, frame: VideoFrame) -> None:
        self.frames.append(frame)


def encoded(codec: str, frames: np.ndarray, stamps: list[int] | None = None, **options: str) -> bytes:
    """A video with the given codec; ``stamps`` in hundredths of a second make its rate vary."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 100)
        for number, rgb in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
            picture.pts = stamps[number] if stamps else 4 * number
            picture.time_base = Fraction(1, 100)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return buffer.getvalue()


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return make_scene(3, 60, 96, 160, camera="pan_left").frames


CODECS = {
    "h264 with many B-frames": ("libx264", {"bf": "8", "b_strategy": "0", "g": "30", "x264-params": "b-pyramid=none"}),
    "h264 with a B-pyramid": ("libx264", {"bf": "4", "g": "60"}),
    "h264, open GOP": ("libx264", {"bf": "3", "g": "12", "x264-params": "open-gop=1"}),
    "h264 without B-frames": ("libx264", {"tune": "zerolatency"}),
    "mpeg4 with B-frames": ("mpeg4", {"bf": "2", "q": "4"}),
    "mpeg2 with B-frames": ("mpeg2video", {"bf": "2", "q": "4"}),
    "hevc": ("libx265", {"x265-params": "log-level=none:bframes=4"}),
}


@pytest.mark.parametrize("name", CODECS)
def test_the_frames_are_those_of_a_plain_decode_bit_for_bit(name: str, frames: np.ndarray) -> None:
    codec, options = CODECS[name]
    if codec not in av.codecs_available:
        pytest.skip(f"no {codec} here")
    mp4 = encoded(codec, frames, **options)
    plain = {f.index: f for f in decode(mp4)}
    watcher = Seen(lambda times: list(range(0, len(times), 7)))
    keys, small = look(mp4, [watcher], spread=4)
    assert [k.index for k in keys] == [0, 29, 59] and [f.index for f in watcher.frames] == list(range(0, 60, 7))
    for found in [*keys, *watcher.frames]:
        assert np.array_equal(found.rgb, plain[found.index].rgb)
        assert found.time_s == pytest.approx(plain[found.index].time_s)
    assert len(small) == 4


def test_any_choice_of_frames_comes_out_whole(frames: np.ndarray) -> None:
    """Every single frame alone: whichever is wanted, what it refers to was decoded."""
    mp4 = encoded("libx264", frames[:26], bf="5", g="13", b_strategy="0")
    plain = [f.rgb for f in decode(mp4)]
    for index in range(26):
        watcher = Seen(lambda times, n=index: [n])
        look(mp4, [watcher])
        assert np.array_equal(watcher.frames[0].rgb, plain[index]), index


def test_frames_that_nobody_wants_are_neither_decoded_nor_converted(frames, monkeypatch: pytest.MonkeyPatch) -> None:
    mp4 = encoded("libx264", frames, bf="8", b_strategy="0", g="60", **{"x264-params": "b-pyramid=none"})
    counts = {"decoded": 0, "converted": 0}
    real_frames, real_rgb = module._frames, module.upright_rgb

    def counted(*args):
        for frame in real_frames(*args):
            counts["decoded"] += 1
            yield frame

    def converted(frame):
        counts["converted"] += 1
        return real_rgb(frame)

    monkeypatch.setattr(module, "_frames", counted)
    monkeypatch.setattr(module, "upright_rgb", converted)
    look(mp4, [Seen(lambda times: [0, 12, 24]), Seen(lambda times: [12, 24, 36])], spread=2)
    assert counts["converted"] == 6  # 0, 12, 24, 29, 36, 59: each once, whoever asks
    assert counts["decoded"] < 20  # of 60


def test_frames_are_found_by_time_where_the_rate_varies(frames: np.ndarray) -> None:
    stamps = [0, 4, 8, 12, 16, 20, 120, 220, 320, 400]  # six frames in the first fifth of a second, then a slow rest
    mp4 = encoded("libx264", frames[:10], stamps)
    watcher = Seen(lambda times: list(range(len(times))))
    keys, small = look(mp4, [watcher], spread=5)
    assert [f.time_s for f in watcher.frames] == pytest.approx(np.array(stamps) / 100)
    assert [k.index for k in keys] == [0, 6, 9]  # at 2 s of 4 s the frame of 1.2 s is on show
    assert len(small) == 5


def test_middle_and_spread_frames_of_an_even_rate_are_evenly_numbered() -> None:
    levels = np.arange(21) * 10 + 20
    mp4 = encode_mp4(np.repeat(levels, 32 * 32 * 3).reshape(21, 32, 32, 3).astype(np.uint8), 10.0, crf=4)
    keys, small = look(mp4, spread=5)
    assert [round(k.rgb.mean() / 10) - 2 for k in keys] == [0, 10, 20]
    assert [round(s.mean() / 10) - 2 for s in small] == [0, 5, 10, 15, 20]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 18, 25])
def test_first_middle_last(count: int) -> None:
    times = np.arange(count) / 12.5
    assert key_indices(times) == (0, (count - 1) // 2, count - 1)
    assert [frame_at(times, t) for t in times] == list(range(count)) and frame_at(times, -1.0) == 0


def test_a_clip_of_one_frame_gives_it_three_times(frames: np.ndarray) -> None:
    keys, small = look(encode_mp4(frames[:1], 10.0), [Seen(lambda times: [0, 0])], spread=2)
    assert [k.index for k in keys] == [0, 0, 0] and len(small) == 2


def test_where_a_wanted_frame_does_not_decode_the_one_before_it_stands_in(frames, monkeypatch) -> None:
    mp4 = encoded("libx264", frames[:20], tune="zerolatency")
    real = module._frames
    monkeypatch.setattr(module, "_frames", lambda *a: (f for n, f in enumerate(real(*a)) if n not in (0, 9, 10, 19)))
    watcher = Seen(lambda times: [9, 10, 11])
    keys, _ = look(mp4, [watcher])
    assert [k.index for k in keys] == [1, 8, 18] and [f.index for f in watcher.frames] == [8, 8, 11]


def test_what_cannot_be_decoded_is_told(frames: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    mp4 = encode_mp4(frames[:20], 10.0)
    for broken in (b"", mp4[: len(mp4) // 2], b"\0" * 1000):
        with pytest.raises(BadInputError):
            look(broken)
    monkeypatch.setattr(module, "_frames", lambda *a: iter(()))
    with pytest.raises(BadInputError, match="no frame"):
        look(mp4)


def noisy(copies: int) -> bytes:
    """Eight frames of noise, again and again, each a key frame: packets as large as they get."""
    pictures = np.random.default_rng(0).integers(0, 255, (8, 240, 320, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    with (
        av.open(io.BytesIO(encoded("mpeg4", pictures, g="1", qmin="1", qmax="1"))) as once,
        av.open(buffer, "w", format="mp4") as container,
    ):
        packets = [(bytes(p), p.time_base) for p in once.demux(video=0) if p.size]
        stream = container.add_stream_from_template(once.streams.video[0])
        for number in range(8 * copies):
            data, time_base = packets[number % 8]
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, time_base
            packet.pts = packet.dts = round(number / 25 / time_base)
            packet.is_keyframe = True
            container.mux(packet)
    return buffer.getvalue()


MEMORY = """
import sys
from pathlib import Path
from svdflow.curation.annotate.look import look
from svdflow.curation.annotate.motion import FlowWatcher

def status(name):
    return next(int(l.split()[1]) << 10 for l in open("/proc/self/status") if l.startswith(name))

short, long = (Path(path).read_bytes() for path in sys.argv[1:])
look(short, [FlowWatcher(0.5, 128)], spread=8)  # libraries and code are loaded
Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
before = status("VmRSS")
look(long, [FlowWatcher(0.5, 128)], spread=8)
print(status("VmHWM") - before)
"""


def test_no_packet_is_held_while_a_clip_is_decoded(tmp_path: Path) -> None:
    """In a process of its own, as the packets lie in FFmpeg's memory: the peak grows by a fraction of their bytes."""
    paths = [tmp_path / "short.mp4", tmp_path / "long.mp4"]
    for path, copies in zip(paths, (1, 60), strict=True):
        path.write_bytes(noisy(copies))
    size = paths[1].stat().st_size
    assert size > 30 << 20
    grown = subprocess.run([sys.executable, "-c", MEMORY, *paths], check=True, capture_output=True, text=True).stdout
    assert int(grown) < size / 4


@pytest.mark.parametrize("kind", CODECS)
def test_a_glance_is_a_key_frame_of_the_first_half_as_a_plain_decode_has_it(kind, frames):
    codec, options = CODECS[kind]
    mp4 = encoded(codec, frames, **options)
    with av.open(io.BytesIO(mp4)) as container:
        plain = list(container.decode(video=0))
    half = [frame for frame in plain[: len(plain) // 2 + 1] if frame.key_frame]
    np.testing.assert_array_equal(glance(mp4), half[-1].to_ndarray(format="rgb24"))


def test_a_glance_at_what_does_not_decode_says_so(frames):
    mp4 = encoded("libx264", frames[:1])
    start = mp4.index(b"mdat") + 4
    blank = int.from_bytes(mp4[start - 8 : start - 4], "big") - 8
    with pytest.raises(BadInputError, match="no frame of the clip decodes"):
        glance(mp4[:start] + bytes(blank) + mp4[start + blank :])
