"""Settings of the split step."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ...common.config import Settings


class CutLevel(Settings):
    """One level of the cascade: one of PySceneDetect's detectors, how often it looks, and from which score on it finds.

    The score's unit is the detector's: ``content`` is the mean change of hue, saturation and brightness (0 to 255),
    ``adaptive`` that change over the mean change of its four neighbours, ``histogram`` one minus the correlation of the
    brightness histograms (0 to 2), ``hash`` the share of a perceptual hash's bits that differ (0 to 1).
    """

    detector: Literal["content", "adaptive", "histogram", "hash"] = "content"
    fps: float | None = Field(None, gt=0)  # None: every frame
    threshold: float = Field(27.0, gt=0)
    # a find takes in the looks beside it that reach this score: the middle of a slow dissolve
    weak: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _weak(self) -> CutLevel:
        if self.weak is not None and (self.fps is None or self.detector == "adaptive" or self.weak > self.threshold):
            raise ValueError("weak is for content, histogram and hash at a frame rate, and at most threshold")
        return self


class SplitSettings(Settings):
    """How videos are split into clips.

    The paper cascades three detectors at three frame rates with three thresholds (section 3.1, appendix C) and
    publishes neither rates nor thresholds: the levels here are ours. So are the limits of length: there it is silent.
    """

    backend: Literal["cascade", "transnetv2"] = "cascade"
    levels: tuple[CutLevel, ...] = Field(
        (
            CutLevel(detector="adaptive", fps=None, threshold=3.5),
            CutLevel(detector="content", fps=8.0, threshold=35.0),
            CutLevel(detector="histogram", fps=3.0, threshold=0.5, weak=0.12),
        ),
        min_length=1,
    )
    detect_width_px: int = Field(64, ge=16)  # frames are made this wide for detection, as video2dataset does
    transnet_weights: str = ""  # safetensors file, see transnet_weights.py
    transnet_sha256: str = ""  # of that file; checked when given
    transnet_threshold: float = Field(0.5, gt=0, lt=1)  # of the transition probability: its authors' choice
    # where a clip ends: at a key frame (appendix C), or at the last frame that stream copy can save (ours: keeps more)
    end: Literal["key_frame", "cut"] = "key_frame"
    min_s: float = Field(2.0, gt=0)  # shorter clips are dropped
    max_s: float = Field(20.0, gt=0)  # a longer shot becomes several clips
    audio: Literal["drop", "keep"] = "drop"
    # Compare each clip with the source: by its packets where these tell its frames (H.264 and HEVC, from a refresh on),
    # else by decoding its first and last GOP, where stream copy can go wrong; or always so; or by decoding all of it.
    verify: Literal["packets", "ends", "every_frame", "off"] = "packets"
    workers: int | None = Field(None, ge=1)  # videos at once; all cores by default
    timeout_s: float = 7200.0  # for one video

    @model_validator(mode="after")
    def _lengths(self) -> SplitSettings:
        if self.min_s >= self.max_s:
            raise ValueError(f"min_s ({self.min_s:g}) must be less than max_s ({self.max_s:g})")
        if self.backend == "transnetv2" and not self.transnet_weights:
            raise ValueError("backend transnetv2 needs transnet_weights, the path of a safetensors file")
        return self
