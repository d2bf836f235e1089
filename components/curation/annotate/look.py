"""The one decode of a clip: planned from the packets' time stamps, so that only frames somebody wants are finished."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import av
import numpy as np

from ...common.errors import BadInputError
from ...common.picture import shrink
from ...common.video import VideoFrame, open_video, upright_rgb
from .annotator import Watcher

_Request = tuple[int, Callable[[VideoFrame], None]]  # index of a frame, and who gets it
# Their decoders can leave out frames that no other refers to. (HEVC's also some that higher temporal layers refer to.)
_SKIPPING_CODECS = {"h264", "mpeg4", "mpeg2video"}


def key_indices(times_s: np.ndarray) -> tuple[int, int, int]:
    """Indices of the first, middle and last of frames with these times; the middle is that of the time between."""
    return 0, frame_at(times_s, (times_s[0] + times_s[-1]) / 2), len(times_s) - 1


def frame_at(times_s: np.ndarray, time_s: float) -> int:
    """Index of the frame that is on show at a time."""
    return max(int(np.searchsorted(times_s, time_s + 1e-6, side="right")) - 1, 0)


def look(mp4: bytes, watchers: Iterable[Watcher] = (), spread: int = 0) -> tuple[list[VideoFrame], list[np.ndarray]]:
    """Decode a clip once.

    Frames that nobody wants are not converted, and not even decoded where no other frame refers to them. Where a
    wanted frame does not decode, the last one before it stands in.

    Args:
        mp4: its bytes.
        watchers: each sees the frames it asks for, in order.
        spread: frames wanted evenly over the clip's time.

    Returns:
        First, middle and last frame at full size; the spread frames, made small. Beside these and the decoder's own
        few frames, memory holds the clip's bytes once, and one packet at a time.

    Raises:
        BadInputError: no frame decodes, or decoding breaks off.
    """
    keys: list[VideoFrame] = []
    small: list[np.ndarray] = []
    stamps, tick_s = _stamps(mp4)
    with open_video(mp4) as container:
        stream = container.streams.video[0]
        try:
            times_s = (np.array(stamps) - stamps[0]) * tick_s
            requests: list[_Request] = [(index, keys.append) for index in key_indices(times_s)]
            requests += [(frame_at(times_s, t), _small_into(small)) for t in np.linspace(0, times_s[-1], spread)]
            requests += [(int(index), watcher.see) for watcher in watchers for index in watcher.wants(times_s)]
            requests.sort(key=lambda request: request[0])
            wanted = {stamps[index] for index, _ in requests}
            if not _hand_out(deque(requests), _frames(container, stream, wanted), stamps, times_s):
                raise BadInputError("no frame of the clip decodes")
        except av.error.FFmpegError as error:
            raise BadInputError(f"decoding the clip breaks off ({error.strerror or error})") from error
    return keys, small


def glance(mp4: bytes) -> np.ndarray:
    """A picture of a clip, uint8 RGB [H, W, 3]: the last key frame before its middle, the only one that is decoded.

    Raises:
        BadInputError: no frame decodes.
    """
    with open_video(mp4) as container:
        stream = container.streams.video[0]
        try:
            container.seek((stream.start_time or 0) + (stream.duration or 0) // 2, stream=stream)
            return upright_rgb(next(container.decode(stream)))
        except (av.error.FFmpegError, StopIteration):
            raise BadInputError("no frame of the clip decodes") from None


def _stamps(mp4: bytes) -> tuple[list[int], float]:
    """Time stamps of the frames to be shown, rising, and their unit in s; read off the packets, none of which is kept.

    Raises:
        BadInputError: there is none, or reading breaks off.
    """
    with open_video(mp4) as container:
        stream = container.streams.video[0]
        try:
            packets = container.demux(stream)
            stamps = sorted({p.pts for p in packets if p.size and p.pts is not None and not p.is_discard})
        except av.error.FFmpegError as error:
            raise BadInputError(f"reading the clip breaks off ({error.strerror or error})") from error
        if not stamps:
            raise BadInputError("no frame of the clip decodes")
        return stamps, float(stream.time_base)


def _small_into(small: list[np.ndarray]) -> Callable[[VideoFrame], None]:
    return lambda frame: small.append(shrink(frame.rgb))


def _frames(container: Any, stream: Any, wanted: set[int]) -> Iterator[Any]:
    """Decoded frames in display order; unwanted ones are left out where the decoder can do without them."""
    context = stream.codec_context
    skips = context.codec.name in _SKIPPING_CODECS
    for packet in container.demux(stream):
        if skips:
            context.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in wanted else "NONREF"
        yield from context.decode(packet if packet.size else None)


def _hand_out(requests: deque[_Request], frames: Iterator[Any], stamps: list[int], times_s: np.ndarray) -> bool:
    """Give each requester its frame; whether any frame came."""
    before: Any = None

    def serve(frame: Any, until: int | None) -> None:
        shown: VideoFrame | None = None
        while requests and (until is None or requests[0][0] <= until):
            if shown is None:
                index = min(bisect_left(stamps, frame.pts), len(stamps) - 1)
                shown = VideoFrame(index, float(times_s[index]), upright_rgb(frame))
            requests.popleft()[1](shown)

    for frame in frames:
        if frame.pts is None:
            continue
        place = bisect_left(stamps, frame.pts)
        serve(before or frame, place - 1)  # what lies before this one did not decode
        if place < len(stamps) and stamps[place] == frame.pts:
            serve(frame, place)
        before = frame
    if before is not None:
        serve(before, None)
    return before is not None
