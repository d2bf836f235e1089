"""What becomes samples: a clip, an orbit or a picture, as a sequence of frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...common.windows import Window
from .variants import Variant


@dataclass(frozen=True)
class Sequence:
    """The frames of a clip that are encoded: so many, at a rate, from a time in the clip on.

    Attributes:
        frames: how many, if the clip holds what it claims.
        fps: their rate.
        start_s: time of the first one from the clip's first frame.
        available: how many there would be without a limit.
    """

    frames: int
    fps: float
    start_s: float
    available: int

    @property
    def times_s(self) -> list[float]:
        """The time of each frame in the clip."""
        return [self.start_s + i / self.fps for i in range(self.frames)]


@dataclass(frozen=True)
class Unit:
    """What becomes a sample.

    Attributes:
        unit_id: identity of the clip or orbit.
        sequence: its frames.
        size: height and width to encode it at.
        variants: the ways to bring it to that size; each gives a sample.
        key_parts: what else names the encoded frames.
        starts: at most so many frames keep their pixels; None for all.
        window: frames and stride of the reference window.
        captions: three, or none.
        row: manifest values that the sample takes over: split, source_id, group, group_sources, motion_score,
            elevation_deg.
        load: the frames as decoded, uint8 [H, W, 3] one at a time.
        clip: manifest values that say where the clip lies, for training without the cache; None: that cannot be.
    """

    unit_id: str
    sequence: Sequence
    size: tuple[int, int]
    variants: list[Variant]
    key_parts: dict[str, Any]
    starts: int | None
    window: tuple[int, int]
    captions: list[str]
    row: dict[str, Any]
    load: Callable[[], Iterator[np.ndarray]]
    clip: dict[str, Any] | None = None

    def fits(self, frames: int) -> bool:
        """Whether the reference window fits so many frames."""
        return Window(0, self.window[1], self.window[0]).span <= frames
