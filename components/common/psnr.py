"""Peak signal-to-noise ratio of 8-bit pictures."""

from __future__ import annotations

import numpy as np

EQUAL_DB = 100.0  # stands for infinity, so that means stay finite


def psnr_db(a_NHWC: np.ndarray, b_NHWC: np.ndarray) -> np.ndarray:
    """PSNR of each picture in dB, float64 [N]; EQUAL_DB where they are equal.

    Args:
        a_NHWC: uint8 [N, H, W, 3].
        b_NHWC: the same shape.

    Raises:
        ValueError: the shapes differ.
    """
    if a_NHWC.shape != b_NHWC.shape:
        raise ValueError(f"PSNR of pictures of different shapes: {a_NHWC.shape} and {b_NHWC.shape}")
    squares = (a_NHWC.astype(np.float64) - b_NHWC.astype(np.float64)) ** 2
    error = squares.reshape(len(squares), -1).mean(1)
    with np.errstate(divide="ignore"):
        return np.minimum(10 * np.log10(255.0**2 / error), EQUAL_DB)
