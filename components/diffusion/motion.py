"""The map from a clip's motion score to the motion bucket that conditions the model.

The paper conditions on a motion score and the released models take an id of 0 to 255; the map between them was never
published. Ours: the score's rank among the training clips, so that buckets are evenly used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..common.errors import BadInputError

BUCKETS = 256
MAX_KNOTS = 65


@dataclass(frozen=True)
class MotionCalibration:
    """Monotonic piecewise-linear map of motion score to bucket, fitted on a dataset.

    Attributes:
        scores: rising scores, at least one.
        buckets: the bucket at each of them, not falling, within 0 and 255.
        unit: what the score measures, as the annotation states it.
    """

    scores: tuple[float, ...]
    buckets: tuple[float, ...]
    unit: str = ""

    def __post_init__(self) -> None:
        scores, buckets = np.asarray(self.scores, float), np.asarray(self.buckets, float)
        if len(scores) != len(buckets) or not len(scores):
            raise BadInputError("a motion calibration needs as many scores as buckets, and at least one")
        if not (np.isfinite(scores).all() and (np.diff(scores) > 0).all()):
            raise BadInputError("the scores of a motion calibration must rise")
        if not ((np.diff(buckets) >= 0).all() and buckets[0] >= 0 and buckets[-1] <= BUCKETS - 1):
            raise BadInputError(f"the buckets of a motion calibration must not fall and lie within 0 and {BUCKETS - 1}")

    @staticmethod
    def fit(scores: Sequence[float] | np.ndarray, unit: str = "") -> MotionCalibration:
        """Spread the scores' quantiles evenly over the buckets; scores that are not finite are left out.

        Raises:
            BadInputError: no finite score.
        """
        values = np.asarray(scores, float)
        values = np.sort(values[np.isfinite(values)])
        if not len(values):
            raise BadInputError("no finite motion score to fit the calibration on")
        shares = np.linspace(0, 1, min(MAX_KNOTS, len(values))) if len(values) > 1 else np.array([0.5])
        knots = np.quantile(values, shares)
        distinct = np.unique(knots)  # equal scores share the middle of their ranks
        buckets = np.array([(BUCKETS - 1) * shares[knots == k].mean() for k in distinct])
        return MotionCalibration(tuple(map(float, distinct)), tuple(map(float, buckets)), unit)

    def apply(self, score: float) -> int:
        """The bucket of a score; scores beyond the fitted range take the first or last bucket."""
        return int(round(float(np.interp(score, self.scores, self.buckets))))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"scores": list(self.scores), "buckets": list(self.buckets), "unit": self.unit}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> MotionCalibration:
        """Inverse of ``to_dict``.

        Raises:
            BadInputError: a field is missing or the map is not monotonic.
        """
        try:
            return MotionCalibration(
                tuple(map(float, values["scores"])), tuple(map(float, values["buckets"])), str(values.get("unit", ""))
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BadInputError(f"no motion calibration: {error!r}") from error
