"""How faithfully a generated video begins with the picture it was given."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..common.psnr import psnr_db
from .metric import Clip, Metric, Videos


def measure(clips: Sequence[Clip], truth: Videos, generated: Videos) -> dict[str, float | None]:
    """Mean PSNR of frame 0 to the conditioning picture."""
    values = [psnr_db(true[:1], made[:1]).mean() for true, made in zip(truth.frames, generated.frames, strict=True)]
    return {"first_frame_psnr_db": float(np.mean(values))}


METRIC = Metric(
    name="first_frame",
    title="PSNR of the first frame to the given picture",
    measure=measure,
    units={"first_frame_psnr_db": "dB"},
    better={"first_frame_psnr_db": "higher"},
    protocol="8-bit RGB, peak 255, frame 0; the autoencoder bounds it",
)
