"""Settings of the zero-shot UCF-101 protocol. [P] is the paper's appendix E.4; cheap to import."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from ...common.config import Settings, fault_of

SECTION = "ucf101"


class Ucf101Settings(Settings):
    """What is generated for each class and how, and what the feature network sees of it."""

    videos: int | None = Field(None, ge=2)  # [P]: as many as the reference has, 13,320; fewer keep its distribution
    split_words: bool = False  # [P]: the raw class name, unedited; true makes "Table Tennis Shot" of TableTennisShot
    frames: int = Field(16, ge=2, le=999)  # [P]
    fps: float = Field(25.0, gt=0)  # [P]; told to the model, and the rate of the real clips
    guidance: float = Field(7.0, ge=1)  # [P]; the same for every frame is ours
    height: int = Field(320, ge=8)  # [P]: the base model's own size
    width: int = Field(576, ge=8)
    steps: int = Field(50, ge=1)  # ours: the paper names neither the sampler (here Euler, or DDIM) nor its steps
    motion_bucket: int = Field(127, ge=0, le=255)  # ours: the released default
    resized_height: int = Field(240, ge=8)  # [P]: bilinear, with antialiasing
    resized_width: int = Field(432, ge=8)
    cropped_height: int = Field(240, ge=8, multiple_of=2)  # [P]: out of the centre; the size of UCF-101 itself
    cropped_width: int = Field(320, ge=8, multiple_of=2)
    real_clip: Literal["middle", "first"] = "middle"  # ours: which frames of a real video; the paper's are not known
    real_videos: int | None = Field(None, ge=2)  # ours: all there are; fewer keep their distribution
    batch: int = Field(8, ge=1)  # videos that the feature network sees at once; no part of the protocol
    shown: int = Field(8, ge=0)  # videos on the page
    seed: int = 0  # of the noise; a video's class and number decide it besides

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        for side in ("height", "width"):
            cropped, resized = getattr(self, f"cropped_{side}"), getattr(self, f"resized_{side}")
            if cropped > resized:
                raise fault_of(f"cropped_{side}", f"{cropped} px cannot be cut out of {resized} px")
        return self

    def sampler(self) -> dict[str, object]:
        """What a generated video depends on beside its prompt and its noise."""
        own = {"frames", "fps", "guidance", "height", "width", "steps", "motion_bucket"}
        return self.model_dump(mode="json", include=own)

    def seen(self) -> dict[str, object]:
        """What the feature network's picture of a generated video depends on."""
        own = {"resized_height", "resized_width", "cropped_height", "cropped_width"}
        return self.model_dump(mode="json", include=own)
