"""What a file is: a video that can be used, or a reason why not. Runs in worker processes: the bytes are untrusted.

The whole file is demuxed once, for the times of its frames; decoded are a few frames at a few places.
"""

from __future__ import annotations

import errno
import heapq
import io
import os
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from pydantic import Field

from ..common.config import Settings
from ..common.errors import BadInputError
from ..common.video import MAX_PIXELS, codec_name, open_video, video_stream
from .letterbox import BarFinder

VERSION = "4"
_THUMBNAIL_PX = 128  # height
_PLACES = 8  # where a video is looked at
_FRAMES_A_PLACE = 12
_PACKETS_A_PLACE = 100  # without a frame in so many packets there is none
_REORDERED = 16  # frames that a stream may hold behind one that is shown later: the most that H.264 and HEVC allow
_USUAL_FPS = 25.0  # of a container that does not tell
_TIMED = 100_000  # frames whose times are held against a regular grid
_PIXEL_ASPECTS = (0.1, 10.0)  # beyond them a header is wrong
_FRAME_RATES = (0.1, 1000.0)
_REASONS = (  # what common.video says, and the short name under which it is counted
    ("no readable video container", "unreadable"),
    ("has no video stream", "no video stream"),
    ("claims more than", "too large"),
)
# ISO/IEC 23091-2, by FFmpeg's names; what is absent is unspecified
_TRANSFERS = {1: "bt709", 4: "bt470m", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "linear", 9: "log100",
              10: "log316", 11: "iec61966-2-4", 12: "bt1361e", 13: "iec61966-2-1", 14: "bt2020-10", 15: "bt2020-12",
              16: "smpte2084", 17: "smpte428", 18: "arib-std-b67"}  # fmt: skip
HDR_TRANSFERS = ("smpte2084", "arib-std-b67")


class ProbeSettings(Settings):
    """Bounds of what is taken for a video; ours."""

    max_pixels: int = Field(default=MAX_PIXELS, gt=0, le=MAX_PIXELS)  # of a frame: 8192×8192
    max_side_px: int = Field(default=16384, gt=0)
    min_side_px: int = Field(default=16, gt=0)
    memory_mb: int = Field(default=1024, ge=128)  # that probing one file may take


@dataclass(frozen=True)
class Probed:
    """The facts of a video: columns of the manifest ``videos``, in its units."""

    container: str
    codec: str
    duration_s: float
    fps: float
    width: int
    height: int
    frames: int
    rotation: int
    variable_fps: bool
    pixel_aspect: float
    interlaced: bool
    color_transfer: str | None
    letterbox: list[int] | None
    audio: bool


def examine(path: str, settings: ProbeSettings) -> dict[str, Any]:
    """The verdict on one file.

    It depends on the bytes and the settings alone and names no path, so that it can be kept under their hash.

    Returns:
        ``error`` (``<short name>: <what is wrong>``); or ``info`` (a Probed), ``thumbnail`` (JPEG) and ``faults``, what
        is wrong with a video that can be used all the same.
    """
    file = Path(path)
    if not file.stat().st_size:
        return {"error": "empty: the file has no bytes"}
    try:
        return _examine(file, settings)
    except BadInputError as error:
        if os.strerror(errno.ENOMEM) in str(error):
            return _out_of_memory(settings)
        message = str(error).removeprefix(f"{path}: ").replace(f": '{path}'", "").replace(path, "the file")
        name = next((name for start, name in _REASONS if message.startswith(start)), "damaged")
        return {"error": f"{name}: {message}"}
    except MemoryError:
        return _out_of_memory(settings)


def _out_of_memory(settings: ProbeSettings) -> dict[str, Any]:
    return {"error": f"too large: probing it takes more than {settings.memory_mb} MB of memory"}


class _Unusable(BadInputError):
    """A reason of ours, as ``<short name>: <why>``."""


def _examine(path: Path, settings: ProbeSettings) -> dict[str, Any]:
    try:
        with open_video(path) as container:
            stream = video_stream(container)
            _check_size(stream.codec_context.width, stream.codec_context.height, settings)
            if stream.disposition & av.stream.Disposition.attached_pic:
                raise _Unusable("no video stream: only a cover picture")
            name, codec, promised = container.format.name, codec_name(stream), stream.frames
            rate, tick_s = float(stream.average_rate or stream.guessed_rate or 0), stream.time_base
            times = _Times(tick_s, rate)
            audio = bool(container.streams.audio)
            start, header_s = stream.start_time or 0, (container.duration or 0) / av.time_base
            stream_s = float((stream.duration or 0) * tick_s)
            if name.startswith("matroska"):  # its length counts from zero, wherever the pictures begin
                header_s -= max(0.0, float(start * tick_s))
            for packet in _packets(container, stream, times.faults):
                times.add(packet)
        times.finish()
        if not times.count:
            raise _Unusable("damaged: it holds no timed frame")
        looked = _Looked()
        reach_s = float((times.highest - times.lowest) * tick_s)
        places = [0.0, *np.linspace(0, reach_s, _PLACES, endpoint=False)[1:]]
        with open_video(path) as container:
            _look(container, video_stream(container), places, start, looked, settings)
        if not looked.frames:
            raise _Unusable(f"damaged: no frame of it decodes ({looked.why})")
        if times.count < 2:
            raise _Unusable("one frame: a video needs at least two")
        variable, fps, duration_s = times.rate(rate)
        if not _FRAME_RATES[0] <= fps <= _FRAME_RATES[1]:
            raise _Unusable(f"damaged: {fps:.4g} frames a second are no video's rate")
        faults = times.faults + looked.faults
        # an edit list may hide whole GOPs, of which no packet comes: then the stream lasts no longer either
        if name.startswith("mov") and promised > times.packets and stream_s > times.span_s + 2 / fps:
            faults.append(f"breaks off: {times.packets} of {promised} frames are there")
        elif header_s > (1.5 if audio else 1.1) * duration_s + 0.5:  # sound may go on for longer
            faults.append(f"breaks off: {duration_s:.3g} of {header_s:.3g} s are there")
        info = Probed(name, codec, duration_s, fps, looked.width, looked.height, times.count, looked.rotation, variable,
                      looked.pixel_aspect, looked.interlaced, looked.transfer, looked.bars.bars(), audio)  # fmt: skip
        return {"info": asdict(info), "thumbnail": _jpeg(looked.pictures), "faults": faults}
    except _Unusable as error:
        return {"error": str(error)}


def _check_size(width: int, height: int, settings: ProbeSettings) -> None:
    if width * height > settings.max_pixels or max(width, height) > settings.max_side_px:
        allowed = f"{settings.max_pixels} pixels and {settings.max_side_px} px a side are allowed"
        raise _Unusable(f"too large: {width}×{height}, and {allowed}")
    if min(width, height) < settings.min_side_px and width and height:  # 0: the header does not say
        raise _Unusable(f"too small: {width}×{height}, and a side has at least {settings.min_side_px} px")


# times


class _Times:
    """When the frames are, out of packets: memory is bounded, however many there are.

    Frames are taken in the order in which they are shown. Where times jump back (recordings one after the other in one
    stream) time goes on from the frame before, as it does for whoever decodes the video and counts.

    Args:
        tick_s: the stream's time base.
        rate: frames a second, as the container tells; 0 when it does not.
    """

    def __init__(self, tick_s: Fraction, rate: float) -> None:
        self.count = self.packets = 0
        self.faults: list[str] = []
        self.lowest = self.highest = 0  # of the stream's own times, in ticks
        self.last_has_duration = False
        self._tick_s, self._usual = tick_s, max(1, round(1 / (rate or _USUAL_FPS) / tick_s))
        self._held: list[tuple[int, int]] = []  # time and duration of frames that may not be shown yet
        self._dts: int | None = None
        self._shown: int | None = None  # the frame shown last: its time, and its duration
        self._lasts = 0
        self._elapsed = 0
        self._ticks = array("q")

    def add(self, packet: Any) -> None:
        self.packets += 1
        at = packet.pts if packet.pts is not None else packet.dts
        if packet.is_discard or at is None:  # an edit list may hide frames
            return
        self.lowest = min(self.lowest, at) if self.count else at
        self.highest = max(self.highest, at) if self.count else at
        self.count += 1
        if packet.dts is not None:
            if self._dts is not None and packet.dts < self._dts:
                self._show(0)
            self._dts = packet.dts
        heapq.heappush(self._held, (at, packet.duration or 0))
        self._show(_REORDERED)

    def finish(self) -> None:
        """No packet comes any more."""
        self._show(0)

    def _show(self, held: int) -> None:
        while len(self._held) > held:
            at, duration = heapq.heappop(self._held)
            if self._shown is not None:
                step = at - self._shown
                self._elapsed += step if step > 0 else self._lasts
            self._shown, self._lasts, self.last_has_duration = at, duration or self._usual, bool(duration)
            if len(self._ticks) < _TIMED:
                self._ticks.append(self._elapsed)

    @property
    def span_s(self) -> float:
        """From the first frame to the last."""
        return float(self._elapsed * self._tick_s)

    @property
    def duration_s(self) -> float:
        """From the first frame to the end of the last, where that is told."""
        return float((self._elapsed + (self._lasts if self.last_has_duration else 0)) * self._tick_s)

    def rate(self, nominal: float) -> tuple[bool, float, float]:
        """Whether frames come irregularly, their rate (the container's for regular ones, else the mean), the duration.

        Regular is what lies on one grid: an index divided by the rate is a frame's time, to half a frame.
        """
        times = np.frombuffer(self._ticks, dtype=np.int64) * float(self._tick_s)
        steps = np.diff(times)
        span, usual, tick_s = float(times[-1] - times[0]), float(np.median(steps)), float(self._tick_s)
        if span <= 0 or usual <= 0:
            return False, nominal, self.duration_s
        off_grid = np.abs(times - (times[0] + np.arange(len(times)) * span / (len(times) - 1))).max()
        uneven = np.abs(steps - usual) > max(0.2 * usual, 1.5 * tick_s)
        variable = bool(off_grid > 0.5 * usual + tick_s or uneven.mean() > 0.01)
        drift = abs((len(times) - 1) / nominal - span) if nominal > 0 else span
        regular = drift < 0.1 * usual + 1.5 * tick_s
        fps = nominal if regular and not variable else (self.count - 1) / self.span_s
        duration_s = self.duration_s + (0 if self.last_has_duration else 1 / fps)
        late = abs((self.count - 1) / fps - self.span_s) > max(1.5 / fps, 0.02 * self.span_s)  # behind those looked at
        held = not 0.75 < self.count / fps / duration_s < 1.33  # the last frame is shown for long
        variable = variable or late or held
        return variable, self.count / duration_s if variable else fps, duration_s


def _packets(container: Any, stream: Any, faults: list[str]) -> Iterator[Any]:
    """All packets with bytes; where reading breaks off the packets end, and a fault says so."""
    damaged = 0
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError as error:
            faults.append(f"breaks off while reading ({_told(error)})")
            break
        if packet is None:
            break
        if packet.size:
            damaged += packet.is_corrupt
            yield packet
    if damaged:
        faults.append(f"{damaged} damaged packets")


# pictures


@dataclass
class _Looked:
    """What the decoded frames show."""

    frames: int = 0
    width: int = 0  # as displayed
    height: int = 0
    rotation: int = 0
    pixel_aspect: float = 1.0
    transfer: str | None = None
    interlaced_frames: int = 0
    why: str = "there is none"
    faults: list[str] = field(default_factory=list)
    pictures: list[np.ndarray] = field(default_factory=list)
    bars: BarFinder = field(default_factory=BarFinder)

    @property
    def interlaced(self) -> bool:
        return 2 * self.interlaced_frames > self.frames


def _look(
    container: Any, stream: Any, places_s: list[float], start: int, looked: _Looked, settings: ProbeSettings
) -> None:
    """Decode a few frames at each place, one in memory at a time besides the decoder's own."""
    bad_places = other_sizes = 0
    seen: set[int] = set()
    for number, place_s in enumerate(places_s):
        target = start + int(place_s / stream.time_base)
        if number:
            try:
                container.seek(target, stream=stream)
            except av.error.FFmpegError:  # says nothing of the frames: some containers cannot be sought in
                break
        faults: list[str] = []
        chosen = None
        for frame in islice(_frames(container, stream, faults), _FRAMES_A_PLACE):
            _check_size(frame.width, frame.height, settings)
            if not looked.frames:
                _first_look(frame, stream, looked)
            looked.frames += 1
            looked.interlaced_frames += bool(frame.interlaced_frame)
            if chosen is None or (frame.pts or 0) <= target:
                chosen = frame
            if number and (frame.pts or 0) >= target:
                break
        if faults:
            bad_places, looked.why = bad_places + 1, faults[0]
        if chosen is None or (chosen.pts or 0) in seen:
            continue
        seen.add(chosen.pts or 0)
        luma = np.rot90(chosen.to_ndarray(format="gray", threads=1), k=-(looked.rotation // 90))
        other_sizes += luma.shape != (looked.height, looked.width)
        looked.bars.add(luma)
        if not looked.pictures or (number >= len(places_s) // 2 and len(looked.pictures) < 2):
            looked.pictures.append(_thumbnail(chosen, looked.rotation))
    if bad_places:
        looked.faults.append(f"does not decode at {bad_places} of {len(places_s)} places ({looked.why})")
    if other_sizes:
        looked.faults.append("its size changes")


def _frames(container: Any, stream: Any, faults: list[str]) -> Iterator[Any]:
    """Frames from where the container stands; packets that do not decode are passed over, and noted."""
    try:
        for packet in islice(container.demux(stream), _PACKETS_A_PLACE):
            try:
                frames = packet.decode()
            except av.error.FFmpegError as error:
                faults.append(_told(error))
                continue
            for frame in frames:
                if frame.is_corrupt:
                    faults.append("damaged frames")
                yield frame
    except av.error.FFmpegError as error:
        faults.append(_told(error))


def _first_look(frame: Any, stream: Any, looked: _Looked) -> None:
    angle = int(-getattr(frame, "rotation", 0)) % 360
    looked.rotation = round(angle / 90) % 4 * 90
    if angle != looked.rotation:
        looked.faults.append(f"is turned by {angle} degrees, taken as {looked.rotation}")
    turned = looked.rotation in (90, 270)
    looked.width, looked.height = (frame.height, frame.width) if turned else (frame.width, frame.height)
    aspect = float(stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1)
    if not _PIXEL_ASPECTS[0] <= aspect <= _PIXEL_ASPECTS[1]:
        looked.faults.append(f"says its pixels are {aspect:.4g} times as wide as high, taken as square")
        aspect = 1.0
    looked.pixel_aspect = 1 / aspect if turned else aspect
    looked.transfer = _TRANSFERS.get(int(frame.color_trc)) or _TRANSFERS.get(int(stream.codec_context.color_trc))


def _thumbnail(frame: Any, rotation: int) -> np.ndarray:
    """A small upright RGB picture of a frame."""
    scale = min(
        1.0, _THUMBNAIL_PX / (frame.width if rotation in (90, 270) else frame.height), 4 * _THUMBNAIL_PX / frame.width
    )
    small = frame.reformat(
        width=max(2, round(frame.width * scale)), height=max(2, round(frame.height * scale)), format="rgb24"
    )
    return np.ascontiguousarray(np.rot90(small.to_ndarray(), k=-(rotation // 90)))


def _jpeg(pictures: list[np.ndarray]) -> bytes:
    """Pictures side by side."""
    from PIL import Image

    height = min(picture.shape[0] for picture in pictures)
    buffer = io.BytesIO()
    side_by_side = np.concatenate([picture[:height] for picture in pictures], axis=1)
    Image.fromarray(side_by_side).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _told(error: BaseException) -> str:
    """What FFmpeg says; running out of memory is no fault of one packet."""
    if isinstance(error, MemoryError) or getattr(error, "errno", 0) == errno.ENOMEM:
        raise MemoryError
    return getattr(error, "strerror", None) or type(error).__name__
