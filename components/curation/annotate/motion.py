"""Motion score and camera motion from dense optical flow (paper, App. C)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...common.errors import BadInputError
from ...common.flow import FARNEBACK, dense_flow, flow_figures, flow_frame
from ...common.video import VideoFrame
from .annotator import Annotator, ClipView, Watcher, register


class FlowWatcher(Watcher):
    """Adds up flow figures between frames taken at a fixed rate by their time stamps; holds one small frame."""

    def __init__(self, fps: float, short_side_px: int) -> None:
        self.interval_s, self.short_side_px = 1 / fps, short_side_px
        self.total, self.pairs = np.zeros(4), 0
        self._taken = 0
        self._last: tuple[float, np.ndarray] | None = None

    def see(self, frame: VideoFrame) -> None:
        """Take the frame when its time has come."""
        if frame.time_s + 1e-6 < self._taken * self.interval_s:
            return
        self.add(frame)
        self._taken = int((frame.time_s + 1e-6) / self.interval_s) + 1

    def add(self, frame: VideoFrame) -> None:
        """Measure from the last frame taken to this one, as if exactly one interval lay between them."""
        grey = flow_frame(frame.rgb, self.short_side_px)
        if self._last is not None and frame.time_s > self._last[0]:
            scale = self.interval_s / (frame.time_s - self._last[0])
            self.total += flow_figures(dense_flow(self._last[1], grey)) * scale
            self.pairs += 1
        self._last = (frame.time_s, grey)


@register
class FarnebackFlow(Annotator):
    """Mean flow magnitude over time and space at 2 fps and a fixed resolution, which is part of the unit."""

    name, version, axis = "farneback-flow", "1", "motion"
    columns = ("motion_score", "motion_unit", "camera_motion")

    def config(self) -> dict[str, Any]:
        """The settings its result depends on."""
        return {
            "fps": self.settings.flow_fps,
            "short_side_px": self.settings.flow_short_side_px,
            "farneback": FARNEBACK,
        }

    def watcher(self) -> FlowWatcher:
        """A fresh one for each clip."""
        return FlowWatcher(self.settings.flow_fps, self.settings.flow_short_side_px)

    def annotate(self, clip: ClipView) -> dict[str, Any]:
        """Its columns for one clip."""
        watcher: FlowWatcher = clip.watched[self.axis]
        if not watcher.pairs:  # shorter than an interval: from its first frame to its last
            watcher = self.watcher()
            watcher.add(clip.key_frames[0])
            watcher.add(clip.key_frames[-1])
        if not watcher.pairs:
            raise BadInputError("has a single moment in time: motion needs two frames")
        score, *camera = (watcher.total / watcher.pairs).tolist()
        unit = f"px/{1 / self.settings.flow_fps:g}s@short{self.settings.flow_short_side_px}"
        return {"motion_score": score, "motion_unit": unit, "camera_motion": camera}
