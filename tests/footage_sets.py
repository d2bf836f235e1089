"""Folders of footage with known truth: good videos whose shots are known, and files that nobody can use."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

FPS = 12


@dataclass(frozen=True)
class GoodVideo:
    """A video of shots with hard cuts and a key frame at the start of each: every shot can become a clip whole."""

    name: str
    shots: list[tuple[int, int]]  # first and last frame


def moving_shot(seed: int, frames: int, width: int = 160, height: int = 96) -> np.ndarray:
    """uint8 [F, H, W, 3]: a texture of its own colours that moves."""
    random = np.random.default_rng(seed)
    hue = random.uniform(40, 215, 3)
    coarse = np.clip(hue + random.normal(0, 12, (height // 8 + 8, width // 8 + 8, 3)), 0, 255)
    texture = coarse.repeat(8, 0).repeat(8, 1).astype(np.uint8)
    dy, dx = random.integers(-2, 3, 2)
    rolled = [np.roll(texture, (n * dy, n * dx + n), (0, 1))[:height, :width] for n in range(frames)]
    return np.stack(rolled)


def encode(
    shots: list[np.ndarray], codec: str = "libx264", container: str = "mp4", times_ms: list[int] | None = None
) -> bytes:
    """Shots joined by hard cuts, a key frame at every cut and nowhere else; ``times_ms`` when each frame is shown."""
    buffer = io.BytesIO()
    starts = set(np.cumsum([0] + [len(shot) for shot in shots]).tolist())
    with av.open(buffer, "w", format=container) as target:
        options = {"threads": "1", "bf": "0", "g": "250", "sc_threshold": "0", "crf": "20"}
        stream = target.add_stream(codec, rate=FPS, options=options)
        stream.height, stream.width, stream.pix_fmt = shots[0].shape[1], shots[0].shape[2], "yuv420p"
        if times_ms:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, rgb in enumerate(np.concatenate(shots)):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            if times_ms:
                frame.pts, frame.time_base = times_ms[number], Fraction(1, 1000)
            frame.pict_type = av.video.frame.PictureType.I if number in starts else av.video.frame.PictureType.NONE
            target.mux(stream.encode(frame))
        target.mux(stream.encode())
    return buffer.getvalue()


def write_good_videos(folder: Path, count: int = 3, seed: int = 0) -> list[GoodVideo]:
    """Videos of two or three shots, named so that bad ones come between them."""
    folder.mkdir(parents=True, exist_ok=True)
    videos = []
    for number in range(count):
        random = np.random.default_rng((seed, number))
        lengths = random.integers(14, 30, 2 + number % 2).tolist()
        shots = [moving_shot(seed * 1000 + number * 10 + n, length) for n, length in enumerate(lengths)]
        name = f"{'bkt'[number % 3]}{number} good.mp4"
        (folder / name).write_bytes(encode(shots))
        ends = np.cumsum(lengths).tolist()
        videos.append(GoodVideo(name, [(end - length, end - 1) for end, length in zip(ends, lengths, strict=True)]))
    return videos


def write_bad_files(folder: Path) -> dict[str, bool]:
    """Files that are no usable videos, or only in part. Returns name to whether clips may come out of it."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = encode([moving_shot(900 + n, 24) for n in range(3)])
    files: dict[str, tuple[bytes, bool]] = {
        "a truncated.mp4": (whole[: len(whole) // 3], False),  # the index is at the end
        "c empty.mp4": (b"", False),
        "d zeros.mp4": (bytes(50_000), False),
        "e text.mp4": (b"this is no video\n" * 200, False),
        "f picture.mp4": (_png(), False),
        "g sound.mp4": (_sound(), False),
        "h one frame.mp4": (encode([moving_shot(1, 1)]), False),
        "i 16k header.mp4": (_with_size(whole, 16384, 16384), True),  # or refused for what it claims
        "j zero size.mp4": (_with_size(whole, 0, 0), True),  # the stream itself says it better
        "l endless.mp4": (_with_sample_count(whole, 0xFFFFFFFF), False),
        "m corrupt.mp4": (_scribbled(whole), True),
        "n cut short.mkv": (_half(encode([moving_shot(950, 40)], container="matroska")), True),
        "o noise.ts": (np.random.default_rng(5).bytes(200_000), False),
        "p tiny frames.mp4": (encode([np.full((3000, 16, 16, 3), 90, np.uint8)]), True),
        "q wrong name.txt": (whole[::-1], False),
        "r other name.avi": (encode([moving_shot(970, 20)]), True),  # an MP4, whatever it is called
        "s three recordings.ts": (encode([moving_shot(980, 20)], container="mpegts") * 3, True),  # times jump back
        "t uneven.mkv": (_uneven(), True),
    }
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    return {name: usable for name, (_, usable) in files.items()}


def _uneven() -> bytes:
    """A shot at 30 frames a second, and one at 2: neither has the rate of the whole."""
    lengths, steps = (60, 6), (33, 500)
    times = np.cumsum([0, *np.repeat(steps, lengths)[:-1]]).tolist()
    shots = [moving_shot(990 + n, length) for n, length in enumerate(lengths)]
    return encode(shots, container="matroska", times_ms=times)


def _half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _scribbled(data: bytes) -> bytes:
    """The middle of the coded pictures overwritten with noise."""
    start = data.index(b"mdat") + 4
    stop = data.index(b"moov") if b"moov" in data[start:] else len(data)
    middle, noise = (start + stop) // 2, np.random.default_rng(3).bytes((stop - start) // 5)
    return data[:middle] + noise + data[middle + len(noise) :]


def _with_size(data: bytes, width: int, height: int) -> bytes:
    """The sample description says another size than the stream."""
    at = data.index(b"avc1", data.index(b"stsd")) + 4 + 24
    return data[:at] + struct.pack(">HH", width, height) + data[at + 4 :]


def _with_sample_count(data: bytes, count: int) -> bytes:
    """The index claims a number of frames that no file could hold."""
    at = data.index(b"stsz") + 4 + 8
    return data[:at] + struct.pack(">I", count) + data[at + 4 :]


def _png() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(moving_shot(4, 1)[0]).save(buffer, "PNG")
    return buffer.getvalue()


def _sound() -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        stream.layout = "mono"
        for n in range(8):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 8000, n * 1024
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()
