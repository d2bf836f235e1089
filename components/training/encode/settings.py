"""What the encode step can be told. Cheap to import."""

from __future__ import annotations

from pydantic import Field, model_validator

from ...common.config import Settings


class EncodeSettings(Settings):
    """How clips become training samples. Defaults are the base video model's; [P] is the paper's section."""

    frames: int = Field(14, ge=1)  # [P D.2]
    height: int = Field(320, ge=8)  # px [P D.2]
    width: int = Field(576, ge=8)
    fps: float = Field(7.0, gt=0)  # frame rate aimed at; the nearest whole stride of the clip's own rate is taken. Ours
    windows_per_clip: int = Field(4, ge=1)  # ours: at most so many, none overlapping, spread over the clip
    samples_per_shard: int = Field(256, ge=1)  # ours
    half: bool = True  # store latents and text states in 16 bits. Ours
    autoencoder: str = "shipped"  # or a diffusers directory
    text_encoder: str = "local"  # or a transformers directory
    image_encoder: str = "local"  # or a transformers directory

    @model_validator(mode="after")
    def _sides(self) -> EncodeSettings:
        if self.height % 8 or self.width % 8:
            raise ValueError(
                f"{self.width}x{self.height} px: both sides must be multiples of 8, the autoencoder's factor"
            )
        return self
