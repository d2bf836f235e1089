"""Bringing a frame to the size a model works at."""

from __future__ import annotations

import cv2
import numpy as np

CENTRE = 0.5


def fit_frame(rgb: np.ndarray, height: int, width: int, place: float = CENTRE, flip: bool = False) -> np.ndarray:
    """Resize so that the frame covers height x width, keeping its aspect, and cut out a part of that size.

    Args:
        rgb: uint8 [H, W, 3].
        height: of the result, px.
        width: of the result, px.
        place: where along the longer axis: 0 keeps the left (or top) end, 0.5 the centre, 1 the right (or bottom) end.
        flip: exchange left and right afterwards.
    """
    size = covering_size(rgb.shape[0], rgb.shape[1], height, width)
    interpolation = cv2.INTER_AREA if size[1] < rgb.shape[0] or size[0] < rgb.shape[1] else cv2.INTER_CUBIC
    resized = cv2.resize(rgb, size, interpolation=interpolation)
    top, left = int((size[1] - height) * place), int((size[0] - width) * place)
    cut = resized[top : top + height, left : left + width]
    return np.ascontiguousarray(cut[:, ::-1] if flip else cut)


def crop_shares(
    source_height: int, source_width: int, height: int, width: int, place: float = CENTRE
) -> tuple[float, float, float, float]:
    """What ``fit_frame`` cuts off: shares of the picture's width and height, at left, top, right and bottom."""
    size = covering_size(source_height, source_width, height, width)
    free_x, free_y = size[0] - width, size[1] - height
    left, top = int(free_x * place), int(free_y * place)
    return left / size[0], top / size[1], (free_x - left) / size[0], (free_y - top) / size[1]


def covering_size(source_height: int, source_width: int, height: int, width: int) -> tuple[int, int]:
    """Width and height, px, of what ``fit_frame`` makes of a picture before it cuts a part out."""
    scale = max(height / source_height, width / source_width)
    return max(width, round(source_width * scale)), max(height, round(source_height * scale))
