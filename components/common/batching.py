"""Batches of one fixed shape, so that what a model says of one input does not depend on the others beside it.

Kernels for matrices of other sizes add in another order, and padding that follows the longest neighbour changes sums:
so every batch has the same number of rows, of the same size, and the last is filled up.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def in_batches_of(size: int, rows: np.ndarray, run: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Run a model over rows [N, …], ``size`` at a time; the last batch is filled up with its first row."""
    found = []
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        filled = np.concatenate([batch, np.repeat(batch[:1], size - len(batch), axis=0)])
        found.append(run(filled)[: len(batch)])
    return np.concatenate(found)
