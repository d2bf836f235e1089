"""Black bars around a picture, found on a few frames."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_SAMPLES = 256  # of a line, taken at equal distances: more does not make the answer better
_DARK = 28  # luma; black is 16 in the usual limited range, and compression adds to it
_BRIGHT = 40
_TELLING = 60  # a frame whose brightest hundredth is below this says nothing: it is black, or a fade
_AGREEING = 0.75  # of the frames have to agree that a place is dark: the others may show words in the bar
_DARK_SHARE = 0.99  # of a line's samples that must be dark
_EDGE_LINES = 4  # within so many lines the picture begins
_EDGE_SHARE = 0.5  # of a line's samples that are bright there: a picture begins over the whole line, a title does not
_MOST = 0.75  # of a side: a portrait film in a landscape frame has 0.68


class BarFinder:
    """Collects frames, then tells the bars. Memory is that of a few lines a frame, whatever its size."""

    def __init__(self) -> None:
        self._rows: list[np.ndarray] = []  # each [H, n]
        self._columns: list[np.ndarray] = []  # each [W, n]

    def add(self, luma_HW: np.ndarray) -> None:
        """Take note of a frame, uint8 luma [H, W]; frames of another size than the first are passed over."""
        height, width = luma_HW.shape
        columns = np.linspace(0, width - 1, min(width, _SAMPLES)).astype(int)
        rows = np.linspace(0, height - 1, min(height, _SAMPLES)).astype(int)
        sampled = luma_HW[:, columns]
        if self._rows and (self._rows[0].shape[0], self._columns[0].shape[0]) != (height, width):
            return
        if np.percentile(sampled, 99) >= _TELLING:
            self._rows.append(sampled)
            self._columns.append(np.ascontiguousarray(luma_HW[rows].T))

    def bars(self) -> list[int] | None:
        """Bars in px: left, top, right, bottom; None when fewer than two frames had anything to tell."""
        if len(self._rows) < 2:
            return None
        top, bottom = _ends(self._rows)
        left, right = _ends(self._columns)
        return [left, top, right, bottom]


def _ends(frames: Sequence[np.ndarray]) -> tuple[int, int]:
    """Dark lines at the beginning and at the end of [L, n] samples."""
    stack_FLn = np.stack(frames)
    usual_Ln = np.sort(stack_FLn, axis=0)[math.ceil(_AGREEING * len(frames)) - 1]
    peak_Ln = stack_FLn.max(axis=0)
    dark_L = (usual_Ln <= _DARK).mean(axis=1) >= _DARK_SHARE
    across = (usual_Ln > _DARK).any(axis=0)  # the picture's part of a line, when there are bars on all sides
    if dark_L.all() or across.mean() < 1 - _MOST:
        return 0, 0
    bright_L = (peak_Ln[:, across] >= _BRIGHT).mean(axis=1)
    before, after = _end(dark_L, bright_L), _end(dark_L[::-1], bright_L[::-1])
    return (before, after) if before + after <= _MOST * len(dark_L) else (0, 0)


def _end(dark_L: np.ndarray, bright_L: np.ndarray) -> int:
    lines = int(np.argmin(dark_L))
    if lines < max(2, len(dark_L) // 100):
        return 0
    return lines if bright_L[lines : lines + _EDGE_LINES].max() >= _EDGE_SHARE else 0
