"""Video in and out through PyAV: probing, decoding by time or index, small H.264 files.

Everything here treats bytes as untrusted: only the named demuxers are opened, and errors of the decoder come out as
BadInputError with the file's name.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import av
import numpy as np

from .errors import BadInputError

MAX_PIXELS = 8192 * 8192
# FFmpeg would also open pictures, text (as ANSI art) and play lists that name other files
DEMUXERS = "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,h264,hevc,flv,ogg,asf,mxf,nut,ivf,yuv4mpegpipe"
_TICKS = 64  # of the clock that frames are timed by, in an interval of their rate
_MAX_CLOCK = 2**31 - 1  # FFmpeg's fractions have terms of 32 bits
_OPEN_OPTIONS = {"format_whitelist": DEMUXERS, "protocol_whitelist": "file"}


@dataclass(frozen=True)
class VideoInfo:
    """What a container says of its video stream; width and height as displayed (after rotation)."""

    container: str
    codec: str
    duration_s: float
    fps: float
    width: int
    height: int
    frames: int
    rotation: int


@dataclass(frozen=True)
class VideoFrame:
    """A decoded frame: display index, time in s from the first frame, uint8 RGB [H, W, 3] after rotation."""

    index: int
    time_s: float
    rgb: np.ndarray


def open_video(source: Path | bytes) -> Any:
    """Open a container for reading; the caller closes it.

    Raises:
        BadInputError: no such file, no known container, or no video stream.
    """
    label = _label(source)
    try:
        container = av.open(
            io.BytesIO(source) if isinstance(source, bytes) else str(source), options=dict(_OPEN_OPTIONS)
        )
    except (av.error.FFmpegError, ValueError, OSError) as error:
        raise BadInputError(f"{label}: no readable video container ({_first_line(error)})") from error
    if not container.streams.video:
        container.close()
        raise BadInputError(f"{label}: has no video stream")
    stream = video_stream(container)
    if stream.codec_context is None:
        container.close()
        raise BadInputError(f"{label}: has no video stream of a codec that can be decoded")
    if stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
        container.close()
        raise BadInputError(f"{label}: claims more than {MAX_PIXELS} pixels a frame")
    stream.thread_type = "NONE"
    stream.codec_context.thread_count = 1  # libraries of their own (dav1d) heed this alone
    return container


def video_stream(container: Any) -> Any:
    """The stream that a player shows, by FFmpeg's rule: no cover picture, and no preview before the film itself."""
    return container.streams.best("video") or container.streams.video[0]


def codec_name(stream: Any) -> str:
    """What a stream is coded with (``av1``), whatever library decodes it."""
    return str(stream.codec_context.codec.canonical_name)


def probe(source: Path | bytes) -> VideoInfo:
    """Count and time the frames of a video by demuxing it, and decode the first one.

    Raises:
        BadInputError: it cannot be opened, has no video stream, or no frame of it decodes.
    """
    label = _label(source)
    with open_video(source) as container:
        stream = video_stream(container)
        try:
            first = next(container.decode(stream), None)
        except av.error.FFmpegError as error:
            raise BadInputError(f"{label}: its first frame does not decode ({_first_line(error)})") from error
        if first is None:
            raise BadInputError(f"{label}: holds no frame")
        rotation = _rotation(first)
        width, height = (first.height, first.width) if rotation in (90, 270) else (first.width, first.height)
        name, codec, rate = container.format.name, codec_name(stream), stream.average_rate or stream.guessed_rate
    with open_video(source) as container:
        stream = video_stream(container)
        times, last = [], Fraction(0)
        try:
            for packet in container.demux(stream):
                if packet.size and packet.pts is not None and not packet.is_discard:  # an edit list may hide frames
                    times.append(packet.pts * packet.time_base)
                    last = (packet.duration or 0) * packet.time_base
        except av.error.FFmpegError as error:
            raise BadInputError(f"{label}: breaks off while reading ({_first_line(error)})") from error
    frames = len(times)
    if not frames:
        raise BadInputError(f"{label}: holds no timed frame")
    fps = float(rate) if rate else 25.0
    duration = float(max(times) - min(times) + last) or frames / fps
    return VideoInfo(name, codec, duration, fps, width, height, frames, rotation)


def decode(source: Path | bytes) -> Iterator[VideoFrame]:
    """All frames in display order, one at a time.

    Raises:
        BadInputError: opening fails, or decoding breaks off.
    """
    with open_video(source) as container:
        stream = video_stream(container)
        start: float | None = None
        try:
            for index, frame in enumerate(container.decode(stream)):
                time_s = float(frame.time) if frame.time is not None else index / float(stream.average_rate or 25)
                start = time_s if start is None else start
                yield VideoFrame(index, time_s - start, upright_rgb(frame))
        except av.error.FFmpegError as error:
            raise BadInputError(f"{_label(source)}: decoding breaks off ({_first_line(error)})") from error


def read_frames(source: Path | bytes, indices: Sequence[int]) -> np.ndarray:
    """The frames at display indices (in any order, repeats allowed), uint8 [N, H, W, 3]; one decode of the video.

    Raises:
        BadInputError: the video has no such frame.
    """
    wanted, found = set(indices), {}
    for frame in decode(source):
        if frame.index in wanted:
            found[frame.index] = frame.rgb
            if len(found) == len(wanted):
                break
    if missing := sorted(wanted - found.keys()):
        raise BadInputError(f"{_label(source)}: has no frame {missing[0]}")
    return np.stack([found[index] for index in indices])


def upright_rgb(frame: Any) -> np.ndarray:
    """A decoded PyAV frame as uint8 RGB [H, W, 3], turned upright by its display matrix."""
    rgb = frame.to_ndarray(format="rgb24", threads=1)  # else as many as cores, in every worker
    turns = _rotation(frame) // 90
    return np.ascontiguousarray(np.rot90(rgb, k=-turns)) if turns else rgb


def encode_mp4(frames_FHWC: np.ndarray, fps: float, crf: int = 18, gop: int | None = None) -> bytes:
    """H.264 in MP4, playable in browsers, from uint8 [F, H, W, 3] with even sides; equal frames give equal bytes.

    Raises:
        BadInputError: ``fps`` is no rate that an MP4 can have.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        options: dict[str, str] = {}
        if gop:
            options |= {"g": str(gop), "keyint_min": str(gop), "sc_threshold": "0"}
        stream = _h264(container, frames_FHWC.shape[1:3], _rate(fps), crf, **options)
        for rgb in frames_FHWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def write_mp4(out: IO[bytes], frames: Iterable[VideoFrame], fps: float, crf: int = 18) -> int:
    """Write a video of any length as ``encode_mp4`` does, a frame at a time, each shown at its own time.

    Args:
        out: to write to; can be sought.
        frames: of one size with even sides, in order.
        fps: their rate, or what comes near it where they are unevenly spaced: times are kept to a 64th of its interval.
        crf: x264's constant quality, lower is better.

    Returns:
        How many frames there were.

    Raises:
        BadInputError: ``fps`` is no rate that an MP4 can have.
    """
    rate = _rate(fps)
    clock = 1 / (rate * _TICKS)
    count, last = 0, -1
    with av.open(out, "w", format="mp4") as container:
        stream: Any = None
        for shown in frames:
            if stream is None:
                stream = _h264(container, shown.rgb.shape[:2], rate, crf)
                stream.codec_context.time_base = clock
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(shown.rgb), format="rgb24")
            last = max(last + 1, round(shown.time_s / float(clock)))  # two frames cannot have one time
            frame.pts, frame.time_base, frame.duration = last, clock, _TICKS
            container.mux(stream.encode(frame))
            count += 1
        if stream is not None:
            container.mux(stream.encode())
    return count


def _h264(container: Any, size: Sequence[int], rate: Fraction, crf: int, **more: str) -> Any:
    # x264's macroblock tree makes equal frames come out as different bytes
    options = {"crf": str(crf), "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0", **more}
    stream = container.add_stream("libx264", rate=rate, options=options)
    stream.height, stream.width, stream.pix_fmt = int(size[0]), int(size[1]), "yuv420p"
    return stream


def _rate(fps: float) -> Fraction:
    rate = Fraction(fps).limit_denominator(1001) if math.isfinite(fps) else Fraction(0)
    if rate <= 0 or rate.numerator * _TICKS > _MAX_CLOCK:
        raise BadInputError(
            f"{float(fps):g} frames a second: no MP4 can be written at this rate; give one from 0.001 to "
            f"{_MAX_CLOCK // _TICKS}"
        )
    return rate


def _rotation(frame: Any) -> int:
    return int(-getattr(frame, "rotation", 0)) % 360


def _label(source: Path | bytes) -> str:
    return f"{len(source)} bytes of video" if isinstance(source, bytes) else str(source)


def _first_line(error: BaseException) -> str:
    said = getattr(error, "strerror", None) or str(error)  # FFmpeg's words, less its number and the path
    return said.splitlines()[0] if said else type(error).__name__
