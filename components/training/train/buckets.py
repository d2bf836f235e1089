"""Which samples a stage can use, and the bucket of each: the size (frames, height, width) of its window.

A batch is of one bucket. Samples that hold no window of the stage's are left out, and counted by reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

from ...common.errors import BadInputError
from ...common.sample_tensors import CLIP, WINDOW
from .settings import StageSettings

Bucket = tuple[int, int, int]  # frames, height, width
NO_LAST_EMBEDDING = "it is one window, which holds the embedding of its first frame alone; encode the clips again"
COLUMNS = ("layout", "frames", "sequence_frames", "height", "width")  # that tell a sample's bucket


def is_window(row: Mapping[str, Any]) -> bool:
    """Whether a sample is one window ready made, and no sequence."""
    return row.get("layout") in (None, WINDOW)


def sequence_frames(row: Mapping[str, Any]) -> int:
    """Frames out of which a sample's windows are taken."""
    return int(row["frames"] if is_window(row) else row["sequence_frames"])


def sequence_fps(row: Mapping[str, Any]) -> float:
    """The rate of the frames out of which a sample's windows are taken."""
    return float(row["fps"] if is_window(row) else row["sequence_fps"])


def window_frames(row: Mapping[str, Any], lengths: Sequence[int]) -> int | None:
    """Frames of a sample's windows: the longest of ``lengths`` that it holds; without lengths its reference window's.

    None when it holds none of them.
    """
    if not lengths:
        return int(row["frames"])
    return max((length for length in lengths if length <= sequence_frames(row)), default=None)


def window_lengths(stage: str, settings: StageSettings) -> tuple[int, ...]:
    """The lengths of windows that a stage takes; none for the samples' reference windows."""
    if stage == "image":
        return (1,)
    return () if settings.frames is None else (settings.frames, *settings.short_frames)


def usable_rows(rows: Sequence[dict[str, Any]], stage: str, settings: StageSettings) -> tuple[list[bool], Counter[str]]:
    """Whether each sample holds a window of the stage's, and how many do not, by reason."""
    lengths = window_lengths(stage, settings)
    usable = [window_frames(row, lengths) is not None for row in rows]
    dropped = Counter[str]()
    if not all(usable):
        dropped[f"fewer than {min(lengths)} frames"] = usable.count(False)
    return usable, dropped


def bucket(row: Mapping[str, Any], lengths: Sequence[int]) -> Bucket:
    """The bucket of a usable sample."""
    frames = window_frames(row, lengths)
    assert frames is not None
    return frames, int(row["height"]), int(row["width"])


def check_samples(rows: Sequence[dict[str, Any]], stage: str, settings: StageSettings, path: Path) -> None:
    """Refuse what a stage cannot be trained on: no sample long enough, another size than asked for, or its layout.

    Raises:
        BadInputError: names the sizes and the remedy.
    """
    usable, _ = usable_rows(rows, stage, settings)
    if rows and not any(usable):
        longest = max(sequence_frames(row) for row in rows)
        raise BadInputError(
            f"{path}: no sample holds {settings.frames} frames, the longest holds {longest}; "
            f"lower train_{stage}.frames, or encode more frames of each clip"
        )
    if stage == "interpolation" and any(is_window(row) for row in rows):
        raise BadInputError(f"{path}: holds a sample that interpolation cannot be learned from: {NO_LAST_EMBEDDING}")
    if stage == "decoder" and any(row.get("layout") != CLIP for row in rows):
        raise BadInputError(f"{path}: holds encoded samples, and a decoder learns from frames; set encode.cache=false")
    for row in compress(rows, usable):
        for name, asked in (("height", settings.height), ("width", settings.width)):
            if asked not in (None, row[name]):
                raise BadInputError(
                    f"{path}: samples have {name} {row[name]}, the stage asks for {asked}; "
                    f"encode at that size, or set {name} of the stage to null, which takes every size as a bucket"
                )
