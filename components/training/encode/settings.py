"""What the encode step can be told. Cheap to import."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from ...common.config import Settings, merge


class EncodeSettings(Settings):
    """How clips become training samples. Defaults are the base video model's; [P] is the paper's section."""

    # what is encoded
    height: int = Field(320, ge=8)  # px [P D.2]
    width: int = Field(576, ge=8)
    sizes: tuple[tuple[int, int], ...] = ()  # (height, width) in place of these: a clip takes the nearest by aspect
    crops: tuple[Literal["centre", "start", "end"], ...] = ("centre",)  # what is kept along the longer axis. Ours
    flips: bool = False  # ours: captions and camera motion tell left from right
    max_fps: float | None = Field(None, gt=0)  # every k-th frame of faster clips; None: each at its own rate. Ours
    max_frames: int = Field(384, ge=1)  # of a clip; of longer ones the middle. Ours: 13 s at 30 frames/s
    starts_per_clip: int | None = Field(8, ge=1)  # frames whose pixels are kept, where windows start; None: all. Ours
    half: bool = True  # store moments and text states in 16 bits. Ours
    autoencoder: str = "shipped"  # or a diffusers directory
    text_encoder: str = "local"  # or a transformers directory
    image_encoder: str = "local"  # or a transformers directory

    # the reference window, which is evaluated, and trained on where a stage does not ask for others; encodes nothing
    frames: int = Field(14, ge=1)  # [P D.2]; clips that do not hold them are set aside
    fps: float = Field(7.0, gt=0)  # aimed at; the nearest whole stride is taken. Ours

    # how it is stored
    cache: bool = True  # false: clips are checked and not encoded; training decodes and encodes them at every step
    samples_per_shard: int = Field(256, ge=1)  # ours
    shard_mib: int = Field(512, ge=1)  # a shard is closed when it holds so much: it is held in memory until then. Ours

    @model_validator(mode="after")
    def _sides(self) -> EncodeSettings:
        for height, width in (*self.sizes, (self.height, self.width)):
            if height < 8 or width < 8 or height % 8 or width % 8:
                raise ValueError(f"{width}x{height} px: both sides must be multiples of 8, the autoencoder's factor")
        if not self.crops or len(set(self.crops)) < len(self.crops):
            raise ValueError(f"crops {self.crops} must name one or more of centre, start and end, each once")
        if self.max_frames < self.frames:
            raise ValueError(f"max_frames {self.max_frames} is fewer than the {self.frames} frames of a window")
        return self

    @property
    def targets(self) -> tuple[tuple[int, int], ...]:
        """The sizes that clips are encoded at, (height, width)."""
        return self.sizes or ((self.height, self.width),)


class EncodeImagesSettings(EncodeSettings):
    """How a folder of pictures becomes training samples: as clips do, unless the section says otherwise."""

    source: str | None = None  # the folder; None: there are no pictures


def with_image_section(sections: Mapping[str, Any]) -> dict[str, Any]:
    """A profile's sections with ``encode_images`` completed by ``encode``: pictures fit the clips that they join."""
    of_clips = merge(sections.get("encode") or {}, {"cache": True})
    return {**sections, "encode_images": merge(of_clips, sections.get("encode_images") or {})}
