"""What becomes samples: a clip, an orbit or a picture, as a sequence of frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...common.windows import Window
from .sources import Sequence, Source
from .variants import Variant


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
            motion_unit, elevation_deg.
        source: where its frames come from.
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
    source: Source
    clip: dict[str, Any] | None = None

    def fits(self, frames: int) -> bool:
        """Whether the reference window fits so many frames."""
        return Window(0, self.window[1], self.window[0]).span <= frames
