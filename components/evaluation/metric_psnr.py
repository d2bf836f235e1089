"""PSNR of generated frames against the clip's true frames: high when the model foresees what happens next."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..common.psnr import psnr_db
from .metric import Clip, Metric, Videos


def measure(clips: Sequence[Clip], truth: Videos, generated: Videos) -> dict[str, float | None]:
    """Mean over clips of the mean over frames 1 to F-1: frame 0 is given to the model."""
    values = [psnr_db(true[1:], made[1:]).mean() for true, made in zip(truth.frames, generated.frames, strict=True)]
    return {"psnr_db": float(np.mean(values))}


METRIC = Metric(
    name="psnr",
    title="PSNR against the true frames",
    measure=measure,
    units={"psnr_db": "dB"},
    better={"psnr_db": "higher"},
    protocol="8-bit RGB, peak 255, per frame, frames 1 to F-1 (frame 0 is given), mean over frames, then over clips",
)
