"""Measured figures of a picture."""

from __future__ import annotations

import cv2
import numpy as np

_SHORT_SIDE_PX = 224


def shrink(rgb: np.ndarray, short_side_px: int = _SHORT_SIDE_PX) -> np.ndarray:
    """Scale a picture down so that its short side is at most ``short_side_px``."""
    scale = short_side_px / min(rgb.shape[:2])
    if scale >= 1:
        return rgb
    return cv2.resize(rgb, (round(rgb.shape[1] * scale), round(rgb.shape[0] * scale)), interpolation=cv2.INTER_AREA)


def colourfulness(rgb: np.ndarray) -> float:
    """Hasler and Süsstrunk's measure (2003): 0 for grey pictures, above 100 for very colourful ones."""
    red, green, blue = (rgb[..., i].astype(np.float64) for i in range(3))
    rg, yb = red - green, (red + green) / 2 - blue
    return float(np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean()))


def contrast(rgb: np.ndarray) -> float:
    """Standard deviation of luma, 0 to 127.5."""
    return float(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float64).std())


def sharpness(rgb: np.ndarray) -> float:
    """Logarithm of one plus the variance of the Laplacian of luma; 0 for a flat picture."""
    return float(np.log1p(cv2.Laplacian(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var()))
