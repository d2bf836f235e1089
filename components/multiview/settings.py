"""Settings of rendering and of the multi-view measurement."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from ..common.config import Settings


class RenderSettings(Settings):
    """How orbits are rendered. [P] is the SVD paper, section 4.5 and appendix D.6."""

    views: int = Field(21, ge=2, le=999)  # [P]: frames per orbit; the first one is the input view
    size_px: int = Field(576, ge=16, le=2048, multiple_of=2)  # [P]: 576x576
    elevation_min_deg: float = Field(-5.0, gt=-90)  # [P]: elevation in [-5, 30], constant within an orbit
    elevation_max_deg: float = Field(30.0, lt=90)  # [P]; that it is drawn uniformly is ours: the paper says "randomly"
    orbits_per_object: int = Field(1, ge=1)  # ours: the paper is silent; each with its own elevation, start and light
    field_of_view_deg: float = Field(33.8, gt=1, lt=120)  # ours: the paper is silent
    background: tuple[int, int, int] = (255, 255, 255)  # ours: the paper is silent
    lights: int = Field(
        3, ge=1, le=8
    )  # ours: [P] lights with random HDRI maps; these are random lamps of random strength
    supersampling: int = Field(2, ge=1, le=4)  # ours: rendered this many times larger, then averaged
    train_objects: int = Field(12, ge=1)  # ours, generated objects only
    held_out_objects: int = Field(4, ge=0)  # ours, generated objects only
    held_out_percent: float = Field(1.0, ge=0, le=100)  # ours: of the objects in a folder, by a hash of their content
    max_object_mb: float = Field(256.0, gt=0)  # ours: larger files are set aside
    timeout_s: float = Field(600.0, gt=0)  # ours: an orbit that takes longer is set aside
    seed: int = 0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.elevation_min_deg > self.elevation_max_deg:
            raise ValueError("elevation_min_deg must not exceed elevation_max_deg")
        return self


class MeasureSettings(Settings):
    """How the multi-view model is measured."""

    # [P]: 50 objects (there: Google Scanned Objects); here held-out ones, one orbit each at first; null for all
    orbits: int | None = Field(50, ge=1)
    steps: int = Field(50, ge=1)  # ours: the paper is silent
    guidance_min: float = Field(1.0, ge=0)  # ours: the released image-to-video default
    guidance_max: float = Field(3.0, ge=0)
    noise_aug: float = Field(0.02, ge=0)  # ours: the released image-to-video default
    fps: float = Field(7.0, gt=0)  # for a model before it that is conditioned on frame rate and motion; ours
    motion_bucket: int = Field(127, ge=0, le=255)  # same; ours: the released default
    sheets: int = Field(4, ge=0)  # orbits shown in the report
    seed: int = 0
    # LPIPS and CLIP-S are measured where weights are given; [P, figure 10a] has both, of networks not known
    lpips_backbone: str = ""  # safetensors file of torchvision's AlexNet or VGG-16
    lpips_heads: str = ""  # safetensors file of the package lpips' heads for it
    clip_model: str = ""  # hub id, directory, or "open_clip:ARCHITECTURE/FILE.safetensors"
    clip_revision: str | None = None

    def sampler(self) -> dict[str, object]:
        """What a generated orbit depends on beside its model, input view and elevation."""
        other = {"orbits", "sheets", "lpips_backbone", "lpips_heads", "clip_model", "clip_revision"}
        return self.model_dump(mode="json", exclude=other)
