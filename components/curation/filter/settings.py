"""Which part of the clips is dropped on each axis. The defaults are the paper's choice (§3.3, App. E.2.2)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...common.config import Settings

Reduce = Literal["mean", "min", "max"]


class FilterSettings(Settings):
    """Settings of the filter step.

    A percentage is taken on the unfiltered set, of the clips that have a value. A limit of ``None`` is no limit.
    """

    motion_percent: float = Field(25.0, ge=0, lt=100)  # the most static; paper, App. E.2.2
    aesthetic_percent: float = Field(25.0, ge=0, lt=100)  # the lowest; paper, App. E.2.2
    similarity_percent: float = Field(50.0, ge=0, lt=100)  # the lowest; paper, App. E.2.2
    text_percent: float = Field(25.0, ge=0, lt=100)  # those with most text; paper, App. E.2.2
    text_max_area: float | None = Field(0.07, ge=0, le=1)  # paper, App. C: more than 7 % of the frame is dropped
    motion_min: float | None = None  # ours: absolute limits beside the percentages
    aesthetic_min: float | None = None
    similarity_min: float | None = None

    text_reduce: Reduce = "mean"  # ours: over first, middle and last frame; the paper is silent
    aesthetic_reduce: Reduce = "mean"  # ours
    similarity_reduce: Reduce = "mean"  # ours: over three frames of each caption
    similarity_captions: tuple[Literal["image", "video", "summary"], ...] = (
        "image",
        "video",
        "summary",
    )  # ours: which captions count
    similarity_caption_reduce: Reduce = "mean"  # ours: over the captions

    held_out_fraction: float = Field(0.05, ge=0, lt=1)  # ours: of the source videos, in each kind of source
    split_seed: str = "svdflow"  # another seed holds out other videos
    near_duplicate_cosine: float | None = Field(
        0.95, gt=0, le=1
    )  # ours: videos with clips this alike go to the same side

    memory_limit: str = "1GB"  # of DuckDB, which spills to disk beyond it; does not change results
    shown: int = Field(12, ge=0)  # thumbnails of kept and of dropped clips
