"""Tells a run that learns from one that has gone astray."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from statistics import median

_WINDOW, _LEAST = 50, 10  # steps that the median is over, and how many it takes


class Divergence:
    """Looks at every step's loss and gradient norm.

    A run has diverged when one of them is no number, or exceeds ``ratio`` times its median over the last 50 good steps
    for ``steps`` steps in a row. One bad batch is no divergence: its gradient is clipped.
    """

    def __init__(self, ratio: float, steps: int) -> None:
        self.ratio, self.steps = ratio, steps
        self._good: dict[str, deque[float]] = {name: deque(maxlen=_WINDOW) for name in ("loss", "gradient norm")}
        self._bad = 0

    def remember(self, losses: Sequence[float], gradient_norms: Sequence[float]) -> None:
        """Take in the curves of a run that goes on, so that it is judged by what was usual before."""
        for loss, norm in zip(losses[-2 * _WINDOW :], gradient_norms[-2 * _WINDOW :], strict=True):
            self.look(loss, norm)
        self._bad = 0  # the checkpoint was written at a good step

    @property
    def suspicious(self) -> bool:
        """Whether the last step was a bad one: not the moment for a checkpoint."""
        return self._bad > 0

    def look(self, loss: float, gradient_norm: float) -> str | None:
        """What is wrong after this step, in words, or None."""
        reasons = []
        for (name, good), value in zip(self._good.items(), (loss, gradient_norm), strict=True):
            if not math.isfinite(value):
                return f"the {name} is not a number"
            usual = median(good) if len(good) >= _LEAST else math.inf
            if value > self.ratio * usual > 0:
                reasons.append(f"the {name} is {value:.3g}, its median was {usual:.3g}")
        if not reasons:
            self._bad = 0
            for good, value in zip(self._good.values(), (loss, gradient_norm), strict=True):
                good.append(value)
            return None
        self._bad += 1
        return f"{reasons[0]}, for {self._bad} steps in a row" if self._bad >= self.steps else None
