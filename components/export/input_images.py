"""The images that the serving check sends: first frames of different clips, held-out ones first."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..common.decoding import ClipFrame, ClipPlace, clip_frame, decode_each, in_cluster, pictures
from ..common.errors import BadInputError
from ..common.manifests import read_manifest
from ..common.storage import DataRoot

_ORIGINS = ("held out", "train", "dropped")
_ALIKE_LEVELS = 2.0  # mean absolute difference, of 255, below which two images are one (two black first frames)


@dataclass(frozen=True)
class InputImage:
    """The first frame of a clip at the model's size: uint8 [H, W, 3]; origin is how the selection has the clip."""

    clip_id: str
    origin: str
    rgb: np.ndarray


def choose_images(clips: Path, selection: Path, root: DataRoot, count: int, size: tuple[int, int]) -> list[InputImage]:
    """Up to ``count`` images that differ; content alone decides the order: by origin, one per source video in turn.

    Raises:
        BadInputError: there are not two different images.
    """
    chosen: list[InputImage] = []
    ordered = _ordered(read_manifest("clips", clips).to_pylist(), read_manifest("selection", selection).to_pylist())
    at_once = 2 * count if in_cluster() else 1  # a round of pods takes its time
    for start in range(0, len(ordered), at_once):
        tried = ordered[start : start + at_once]
        wanted = [ClipFrame(ClipPlace.of(row, root), 0, size) for _, row in tried]
        # a clip that does not decode is the curation's matter
        for place, rgb in pictures(decode_each(clip_frame, wanted, root, "serve")):
            origin, row = tried[place]
            if len(chosen) < count and all(_differ(rgb, other.rgb) for other in chosen):
                chosen.append(InputImage(row["clip_id"], origin, rgb))
        if len(chosen) == count:
            break
    if len(chosen) < 2:
        raise BadInputError(
            f"{clips}: holds {len(chosen)} different first frames; the serving check needs two at least"
        )
    return chosen


def _differ(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.abs(one.astype(int) - other.astype(int)).mean() >= _ALIKE_LEVELS)


def _ordered(clips: list[dict[str, Any]], selection: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    decided = {row["clip_id"]: row for row in selection}
    ranked = []
    seen: dict[tuple[str, str], int] = defaultdict(int)
    for clip in sorted(clips, key=lambda row: row["clip_id"]):
        row = decided.get(clip["clip_id"])
        origin = "dropped" if row is None or not row["keep"] else "held out" if row["split"] == "held_out" else "train"
        turn = seen[origin, clip["video_id"]]
        seen[origin, clip["video_id"]] += 1
        ranked.append((_ORIGINS.index(origin), turn, clip["video_id"], origin, clip))
    return [(origin, clip) for _, _, _, origin, clip in sorted(ranked, key=lambda entry: entry[:3])]
