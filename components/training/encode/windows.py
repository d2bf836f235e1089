"""Which frames of a clip make a sample."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ...common.frames import fit_frame
from ...common.video import VideoFrame
from .settings import EncodeSettings


@dataclass(frozen=True)
class Window:
    """A span of a clip: the times (s from the clip's first frame) of its frames, and the frame rate they have."""

    times_s: tuple[float, ...]
    fps: float


def plan_windows(frames: int, fps: float, settings: EncodeSettings) -> list[Window]:
    """Windows that fit a clip of so many frames; none if it is too short.

    Every k-th frame is taken, with k such that the rate comes nearest to the one aimed at. Windows do not overlap, and
    are spread evenly from the clip's start to its end.
    """
    stride = max(1, round(fps / settings.fps))
    span = (settings.frames - 1) * stride + 1
    if frames < span:
        return []
    count = min(settings.windows_per_clip, max(1, frames // (settings.frames * stride)))
    free = frames - span
    starts = [round(i * free / (count - 1)) for i in range(count)] if count > 1 else [free // 2]
    return [Window(tuple((start + k * stride) / fps for k in range(settings.frames)), fps / stride) for start in starts]


def take_windows(
    decoded: Iterable[VideoFrame], windows: list[Window], height: int, width: int
) -> list[np.ndarray] | None:
    """The frames nearest to the windows' times, at the training size: one uint8 array [F, H, W, 3] per window.

    One pass over the clip; only frames that are asked for are kept, already small. None when the clip ends too early.
    """
    wanted = sorted({time for window in windows for time in window.times_s})
    kept: dict[float, np.ndarray] = {}
    place = 0
    before: tuple[float, np.ndarray] | None = None  # the frame before this one, as decoded
    gap = 0.0
    for frame in decoded:
        if before is not None:
            gap = frame.time_s - before[0]
        while place < len(wanted) and wanted[place] <= frame.time_s:
            earlier = before is not None and wanted[place] - before[0] < frame.time_s - wanted[place]
            kept[wanted[place]] = fit_frame(before[1] if earlier and before else frame.rgb, height, width)
            place += 1
        before = (frame.time_s, frame.rgb)
        if place == len(wanted):
            break
    while place < len(wanted) and before is not None and wanted[place] <= before[0] + 0.5 * gap:
        kept[wanted[place]] = fit_frame(before[1], height, width)
        place += 1
    if place < len(wanted):
        return None
    return [np.stack([kept[time] for time in window.times_s]) for window in windows]
