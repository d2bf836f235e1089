"""Kept clips to training samples: latents, image embedding, text states of three captions, the conditioning frame."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...common.manifests import read_rows
from ...common.report import StepReport
from ...common.storage import DataRoot
from ...common.video import decode
from .samples import Unit, Unusable, encode_units
from .settings import EncodeSettings
from .windows import plan_windows, take_windows


def encode_clips(
    clips: Path, annotations: Path, selection: Path, out: Path, root: DataRoot, settings: EncodeSettings
) -> StepReport:
    """Encode the kept clips of a selection.

    Args:
        clips: clips manifest.
        annotations: annotations manifest; captions and motion scores come from it.
        selection: which clips are kept, and the split of each.
        out: the samples manifest to write.
        root: where clip bytes lie and shards go.
        settings: frames, size, rate, encoders.

    Raises:
        BadInputError: a manifest cannot be read. A clip that cannot be used is set aside and counted.
    """
    kept = {row["clip_id"]: row for row in read_rows("selection", selection) if row["keep"]}
    notes = {row["clip_id"]: row for row in read_rows("annotations", annotations) if row["clip_id"] in kept}
    units = [
        _unit(clip, kept[clip["clip_id"]]["split"], notes.get(clip["clip_id"], {}), root, settings)
        for clip in read_rows("clips", clips)
        if clip["clip_id"] in kept
    ]
    return encode_units(units, out, root, settings, "Encode", "encode")


def _unit(clip: dict[str, Any], split: str, note: dict[str, Any], root: DataRoot, settings: EncodeSettings) -> Unit:
    # Three captions always: where an annotator gave none, the next best stands in for it.
    given = [note.get("caption_image"), note.get("caption_video"), note.get("caption_summary")]
    stand_in = next((text for text in given if text), "")
    return Unit(
        unit_id=clip["clip_id"],
        key_parts={},
        captions=[text or stand_in for text in given],
        row={"split": split, "motion_score": note.get("motion_score"), "elevation_deg": None},
        load=partial(load_clip, clip, root, settings),
    )


def load_clip(clip: dict[str, Any], root: DataRoot, settings: EncodeSettings) -> list[tuple[np.ndarray, float]]:
    """The windows of one clip: frames [F, H, W, 3] and frame rate.

    Raises:
        Unusable: it is too short.
        BadInputError: its bytes do not decode.
    """
    windows = plan_windows(clip["frames"], clip["fps"], settings)
    if not windows:
        raise Unusable("too_short")
    data = root.read_range(clip["shard_uri"], clip["offset"], clip["bytes"])
    taken = take_windows(decode(data), windows, settings.height, settings.width)
    if taken is None:
        raise Unusable("ends_early")
    return [(frames, window.fps) for frames, window in zip(taken, windows, strict=True)]
