"""Which part of the clips is dropped on each axis. The defaults are the paper's choice (§3.3, App. E.2.2)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ...common.config import Settings

Reduce = Literal["mean", "min", "max"]
Percent = Field(0.0, ge=0, lt=100)
Top = Field(None, ge=1)


class FilterSettings(Settings):
    """Settings of the filter step.

    A percentage is taken on the unfiltered set, of the clips that have a value; so is ``<axis>_top``, which keeps that
    many of the best. A limit of ``None`` is no limit. Several on one axis join to the strictest.
    """

    motion_percent: float = Field(25.0, ge=0, lt=100)  # the most static; paper, App. E.2.2
    aesthetic_percent: float = Field(25.0, ge=0, lt=100)  # the lowest; paper, App. E.2.2
    similarity_percent: float = Field(50.0, ge=0, lt=100)  # the lowest; paper, App. E.2.2
    text_percent: float = Field(25.0, ge=0, lt=100)  # those with most text; paper, App. E.2.2
    watermark_percent: float = Percent  # ours: the most likely watermarked
    nsfw_percent: float = Percent  # ours: the most likely unsafe

    text_max_area: float | None = Field(0.07, ge=0, le=1)  # paper, App. C: more than 7 % of the frame is dropped
    motion_min: float | None = None  # ours: absolute limits beside the percentages
    aesthetic_min: float | None = None
    similarity_min: float | None = None
    watermark_max: float | None = None
    nsfw_max: float | None = None

    motion_top: int | None = Top  # ours: keep at most about this many, the best of the axis
    aesthetic_top: int | None = Top
    similarity_top: int | None = Top
    text_top: int | None = Top
    watermark_top: int | None = Top
    nsfw_top: int | None = Top

    text_reduce: Reduce = "mean"  # ours: over first, middle and last frame; the paper is silent
    aesthetic_reduce: Reduce = "mean"  # ours
    watermark_reduce: Reduce = "max"  # ours: one marked frame marks the clip
    nsfw_reduce: Reduce = "max"  # ours: one unsafe frame makes the clip unsafe
    similarity_reduce: Reduce = "mean"  # ours: over three frames of each caption
    similarity_captions: tuple[Literal["image", "video", "summary"], ...] = Field(
        ("image", "video", "summary"), min_length=1
    )  # ours: which captions count
    similarity_caption_reduce: Reduce = "mean"  # ours: over the captions

    near_duplicate_cosine: float | None = Field(
        0.95, gt=0, le=1
    )  # ours: clips this alike share a group, which never straddles train and held out; null looks for none
    drop_duplicates: bool = False  # ours: keep one clip of each group
    duplicates_exact_up_to: int = Field(200_000, ge=0)  # clips; beyond, only neighbouring clusters are compared

    held_out_fraction: float = Field(0.05, ge=0, lt=1)  # ours: of the source videos
    split_seed: str = "svdflow"  # another seed holds out other videos

    memory_limit: str = Field(
        "2.5GB", pattern=r"^\d+(\.\d+)? ?([KMGT]i?B)$"
    )  # of DuckDB, which spills to disk beyond it
    threads: int = Field(2, ge=1)
    shown: int = Field(12, ge=0)  # thumbnails of kept and of dropped clips

    @model_validator(mode="after")
    def _groups_are_looked_for(self) -> FilterSettings:
        if self.drop_duplicates and self.near_duplicate_cosine is None:
            raise ValueError("drop_duplicates needs near_duplicate_cosine, from which clips are duplicates")
        return self

    def limit(self, axis: str) -> float | None:
        """The absolute limit of an axis, if any."""
        return getattr(self, limit_name(axis))

    def asked(self) -> dict[str, object]:
        """What decides on the clips, as plain values: what only costs time, memory or pictures is left out."""
        return self.model_dump(mode="json", exclude={"memory_limit", "threads", "shown"})


def limit_name(axis: str) -> str:
    """The setting that is the absolute limit of an axis."""
    names = {"text": "text_max_area", "watermark": "watermark_max", "nsfw": "nsfw_max"}
    return names.get(axis, f"{axis}_min")
