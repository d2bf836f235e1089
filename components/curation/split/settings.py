"""Settings of the split step."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ...common.config import Settings


class CutLevel(Settings):
    """One level of the cascade: a ContentDetector that sees so many frames a second."""

    fps: float | None = Field(None, gt=0)  # None: every frame
    threshold: float = Field(30.0, gt=0)  # of PySceneDetect's content score, 0 to 255


class SplitSettings(Settings):
    """How videos are split into clips.

    The paper cascades three detectors at three frame rates with three thresholds (section 3.1, appendix C) and
    publishes neither rates nor thresholds: the levels here are ours. So are the limits of length: there it is silent.
    """

    levels: tuple[CutLevel, ...] = Field(
        (CutLevel(fps=None, threshold=30.0), CutLevel(fps=8.0, threshold=35.0), CutLevel(fps=2.0, threshold=45.0)),
        min_length=1,
    )
    detect_width_px: int = Field(64, ge=16)  # frames are made this wide for detection, as video2dataset does
    # where a clip ends: at a key frame (appendix C), or at the last frame that stream copy can save (ours: keeps more)
    end: Literal["key_frame", "cut"] = "key_frame"
    min_s: float = Field(2.0, gt=0)  # shorter clips are dropped
    max_s: float = Field(20.0, gt=0)  # a longer shot becomes several clips
    verify: bool = True  # decode every clip and compare it with the source, frame by frame
    timeout_s: float = 7200.0  # for one video

    @model_validator(mode="after")
    def _lengths(self) -> SplitSettings:
        if self.min_s >= self.max_s:
            raise ValueError(f"min_s ({self.min_s:g}) must be less than max_s ({self.max_s:g})")
        return self
