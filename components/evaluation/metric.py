"""What a metric is: one module ``metric_<name>.py`` per metric, each with a ``METRIC``, listed in ``metrics.py``.

A metric compares generated videos with the held-out clips they were asked to continue. It returns plain figures; their
names and units are part of the report.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Clip:
    """A held-out clip as the model was asked for it.

    Attributes:
        sample_id: the sample.
        frames_FHWC: uint8, the true frames; the first one conditions the model.
        fps: frame rate of ``frames_FHWC``.
        motion_score: of the whole clip, as annotated; None when it was not.
        captions: image, video and summary caption; empty ones are left out.
        video_id: of the video that it was cut from; "" when nothing tells.
    """

    sample_id: str
    frames_FHWC: np.ndarray
    fps: float
    motion_score: float | None
    captions: tuple[str, ...]
    video_id: str = ""


@dataclass(frozen=True)
class Videos:
    """Videos to be measured, one per clip and in the clips' order, each uint8 [F, H, W, 3]."""

    frames: Sequence[np.ndarray]

    @cached_property
    def features(self) -> list[np.ndarray]:
        """Frame features of every video, float32 [F, 1280] each (see ``common.features``)."""
        from ..common.features import image_features

        return [image_features(video)[0] for video in self.frames]


@dataclass(frozen=True)
class Metric:
    """A named figure or two, and how to get them.

    Attributes:
        name: in settings and as the key in the metrics file.
        title: as the report calls it; says which features it stands on.
        measure: (clips, true videos, generated videos) to figure names and values.
        units: figure name to unit.
        better: figure name to "higher" or "lower"; figures that are neither are left out.
        protocol: what a reader must know to compare the figures.
    """

    name: str
    title: str
    measure: Callable[[Sequence[Clip], Videos, Videos], dict[str, float | None]]
    units: dict[str, str]
    better: dict[str, str]
    protocol: str
    features: dict[str, str] = field(default_factory=dict)
