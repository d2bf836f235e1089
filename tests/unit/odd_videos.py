"""Real videos with one odd thing each, made by PyAV, for tests of probing."""

from __future__ import annotations

import io
import os
import struct
import tempfile
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

MILLISECOND = Fraction(1, 1000)


def texture(index: int, height: int, width: int) -> np.ndarray:
    """A bright moving pattern, uint8 [H, W, 3]."""
    y, x = np.mgrid[:height, :width]
    red = (x * 2 + index * 5) % 160 + 80
    green = (y * 3 + index * 2) % 160 + 80
    return np.stack([red, green, (red + green) // 2], axis=2).astype(np.uint8)


def video(
    frames: int | Sequence[np.ndarray] = 24,
    codec: str = "libx264",
    container: str = "mp4",
    size: tuple[int, int] = (96, 64),
    rate: int = 24,
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    stream_options: Callable[[Any], None] | None = None,
    times_ms: Sequence[int] | None = None,
    sound: bool = False,
    index_first: bool = False,
) -> bytes:
    """An encoded video; ``size`` is (width, height), ``times_ms`` when each frame is shown, ``index_first`` for MP4."""
    width, height = size
    pictures = [texture(i, height, width) for i in range(frames)] if isinstance(frames, int) else frames
    handle, path = tempfile.mkstemp()
    os.close(handle)
    quiet = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    with av.open(path, "w", format=container, options={"movflags": "faststart"} if index_first else {}) as out:
        stream: Any = out.add_stream(codec, rate=rate, options={"g": "12", **quiet, **(options or {})})
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        if times_ms is not None:
            stream.time_base = stream.codec_context.time_base = MILLISECOND
        if stream_options:
            stream_options(stream)
        voice: Any = out.add_stream("aac", rate=16000) if sound else None
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times_ms is not None:
                frame.pts, frame.time_base = times_ms[number], MILLISECOND
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
        if voice is not None:
            for _ in range(16):
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                silence.rate = 16000
                out.mux(voice.encode(silence))
            out.mux(voice.encode())
    data = Path(path).read_bytes()
    os.unlink(path)
    return data


def behind_another(codec: str, frames: int, container: str = "matroska", main: bool = False) -> bytes:
    """A film of 24 frames whose container has another stream of small pictures first: a cover, or a preview."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as out:
        streams: list[Any] = [out.add_stream(codec, rate=2), out.add_stream("libx264", rate=24, options={"g": "12"})]
        for stream, (width, height) in zip(streams, [(32, 32), (96, 64)], strict=True):
            stream.width, stream.height = width, height
            stream.pix_fmt = "yuvj420p" if stream.codec_context.name == "mjpeg" else "yuv420p"
        if main:
            streams[1].disposition = av.stream.Disposition.default
        for stream, count in zip(streams, [frames, 24], strict=True):
            for index in range(count):
                picture = texture(index, stream.height, stream.width)
                out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            out.mux(stream.encode())
    return buffer.getvalue()


def sound_only() -> bytes:
    """An MP4 with a sound track alone."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as out:
        stream = out.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return buffer.getvalue()


def framed(bars: tuple[int, int, int, int], count: int = 24, size: tuple[int, int] = (160, 120)) -> list[np.ndarray]:
    """Frames with black bars: left, top, right, bottom in px."""
    width, height = size
    left, top, right, bottom = bars
    pictures = []
    for index in range(count):
        picture = np.zeros((height, width, 3), np.uint8)
        inner = texture(index, height - top - bottom, width - left - right)
        picture[top : height - bottom, left : width - right] = inner
        pictures.append(picture)
    return pictures


def y4m(width: int, height: int, frames: int = 2) -> bytes:
    """A YUV4MPEG2 header that claims any size, with almost no bytes behind it."""
    return b"YUV4MPEG2 W%d H%d F24:1 Ip A1:1 C420\n" % (width, height) + b"FRAME\n" + b"\x80" * 1000 * frames


def with_claimed_size(mp4: bytes, width: int, height: int) -> bytes:
    """An H.264 MP4 whose sample description claims another size."""
    changed, at = bytearray(mp4), mp4.index(b"avc1", mp4.index(b"stsd")) + 4 + 24
    changed[at : at + 4] = struct.pack(">HH", width, height)
    return bytes(changed)


def with_claimed_samples(mp4: bytes, count: int) -> bytes:
    """An MP4 whose table of sample sizes claims ``count`` samples."""
    changed, at = bytearray(mp4), mp4.index(b"stsz") + 4 + 8
    changed[at : at + 4] = struct.pack(">I", count)
    return bytes(changed)


def damaged(data: bytes, begin: float, end: float, seed: int = 0) -> bytes:
    """The bytes with noise in a part of them, given as fractions of their length."""
    changed = bytearray(data)
    first, last = int(begin * len(data)), int(end * len(data))
    changed[first:last] = np.random.default_rng(seed).bytes(last - first)
    return bytes(changed)
