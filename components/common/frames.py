"""Bringing a frame to the size a model works at."""

from __future__ import annotations

import cv2
import numpy as np


def fit_frame(rgb: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize so that the frame covers height x width, keeping its aspect, and cut out the centre."""
    scale = max(height / rgb.shape[0], width / rgb.shape[1])
    size = (max(width, round(rgb.shape[1] * scale)), max(height, round(rgb.shape[0] * scale)))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    resized = cv2.resize(rgb, size, interpolation=interpolation)
    top, left = (size[1] - height) // 2, (size[0] - width) // 2
    return np.ascontiguousarray(resized[top : top + height, left : left + width])
