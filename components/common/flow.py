"""Dense optical flow between frames and what is read off it: figures over a frame, and small maps to keep."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cv2
import numpy as np

# video2dataset's arguments, which two of the paper's authors wrote
FARNEBACK = {"pyr_scale": 0.5, "levels": 3, "winsize": 15, "iterations": 3, "poly_n": 5, "poly_sigma": 1.2, "flags": 0}
DIS_PRESET = "fast"
MAP_SHORT_SIDE_PX = 16  # paper, App. C


def frames_at_rate(times_s: np.ndarray, interval_s: float) -> list[int]:
    """Indices of the first frame at or after each tick of a clock; in a clip with one tick, of first and last frame."""
    taken, next_tick = [], 0
    for index, time_s in enumerate(times_s):
        if time_s + 1e-6 >= next_tick * interval_s:
            taken.append(index)
            next_tick = int((time_s + 1e-6) / interval_s) + 1
    return taken if len(taken) > 1 else [0, len(times_s) - 1]


def scaled_size(height: int, width: int, short_side_px: int) -> tuple[int, int]:
    """Height and width of a frame whose short side is brought to ``short_side_px``."""
    scale = short_side_px / min(height, width)
    return max(round(height * scale), short_side_px), max(round(width * scale), short_side_px)


def flow_frame(rgb: np.ndarray, short_side_px: int) -> np.ndarray:
    """A frame as Farneback and DIS see it: uint8 grey, its short side scaled to ``short_side_px``."""
    return _scaled(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), short_side_px)


def colour_flow_frame(rgb: np.ndarray, short_side_px: int) -> np.ndarray:
    """A frame as RAFT sees it: uint8 RGB, its short side scaled to ``short_side_px``."""
    return _scaled(rgb, short_side_px)


def dense_flow(earlier: np.ndarray, later: np.ndarray) -> np.ndarray:
    """Farneback flow between grey frames, px, float32 [H, W, 2] (x to the right, y down)."""
    return cv2.calcOpticalFlowFarneback(earlier, later, None, *FARNEBACK.values())  # type: ignore[call-overload]


def dis_flow(earlier: np.ndarray, later: np.ndarray) -> np.ndarray:
    """DIS flow (Kroeger et al. 2016, OpenCV's preset "fast") between grey frames, as ``dense_flow``."""
    return _dis().calc(earlier, later, None)


def flow_figures(flow_px: np.ndarray) -> np.ndarray:
    """Four means over space: magnitude, dx, dy and outward (radial) motion from the middle of the frame.

    The magnitude is taken per pixel before the mean, so that opposite motions do not cancel.
    """
    height, width = flow_px.shape[:2]
    x = np.arange(width) - (width - 1) / 2
    y = (np.arange(height) - (height - 1) / 2)[:, None]
    distance = np.maximum(np.hypot(x, y), 1e-6)
    radial = (flow_px[..., 0] * x + flow_px[..., 1] * y) / distance
    magnitude = np.linalg.norm(flow_px.astype(np.float64), axis=-1)
    return np.array([magnitude.mean(), flow_px[..., 0].mean(), flow_px[..., 1].mean(), radial.mean()], dtype=np.float64)


def flow_map(flow_px: np.ndarray) -> np.ndarray:
    """Flow [H, W, 2] averaged over areas to a short side of 16 px, float16 [h, w, 2], still in px of its full size.

    Within an area opposite motions cancel: take ``flow_figures`` of the flow itself, not of this.
    """
    height, width = scaled_size(flow_px.shape[0], flow_px.shape[1], MAP_SHORT_SIDE_PX)
    limit = float(np.finfo(np.float16).max)
    small = cv2.resize(flow_px.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    return np.clip(small, -limit, limit).astype(np.float16)


def _scaled(picture: np.ndarray, short_side_px: int) -> np.ndarray:
    height, width = scaled_size(picture.shape[0], picture.shape[1], short_side_px)
    shrinks = short_side_px < min(picture.shape[:2])
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


@lru_cache(maxsize=1)
def _dis() -> Any:
    return cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
