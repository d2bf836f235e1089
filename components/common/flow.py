"""Dense optical flow (OpenCV's Farneback) and what is read off it."""

from __future__ import annotations

import cv2
import numpy as np

# video2dataset's arguments, which two of the paper's authors wrote
FARNEBACK = {"pyr_scale": 0.5, "levels": 3, "winsize": 15, "iterations": 3, "poly_n": 5, "poly_sigma": 1.2, "flags": 0}


def flow_frame(rgb: np.ndarray, short_side_px: int) -> np.ndarray:
    """A frame as flow sees it: uint8 grey, its short side scaled to ``short_side_px``."""
    height, width = rgb.shape[:2]
    scale = short_side_px / min(height, width)
    size = (max(round(width * scale), short_side_px), max(round(height * scale), short_side_px))
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def dense_flow(earlier: np.ndarray, later: np.ndarray) -> np.ndarray:
    """Farneback flow between grey frames, px, float32 [H, W, 2] (x to the right, y down)."""
    return cv2.calcOpticalFlowFarneback(earlier, later, None, *FARNEBACK.values())  # type: ignore[call-overload]


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
