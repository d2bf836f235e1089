"""The held-out clips as they are compared: chosen samples with their true frames, decoded from the clips themselves.

Latents are not the truth: decoding them would forgive what the autoencoder loses.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..common.errors import BadInputError, SvdflowError
from ..common.frames import fit_frame
from ..common.manifests import read_rows
from ..common.sample_tensors import first_picture
from ..common.storage import DataRoot
from ..common.video import VideoFrame, decode
from .metric import Clip


def choose_samples(samples: Path, count: int) -> list[dict[str, Any]]:
    """Held-out rows of a samples manifest: one of each clip, then another of each, until there are ``count``.

    Raises:
        BadInputError: there are fewer than two, too few to compare distributions.
    """
    by_clip: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in read_rows("samples", samples):
        if row["split"] == "held_out":
            by_clip[row["clip_id"]].append(row)
    ranked = [(place, clip_id, row) for clip_id, rows in by_clip.items() for place, row in enumerate(rows)]
    chosen = [row for _, _, row in sorted(ranked, key=lambda entry: entry[:2])[:count]]
    if len(chosen) < 2:
        raise BadInputError(
            f"{samples}: holds {len(chosen)} held-out samples, evaluation needs two; "
            "add footage or raise filter.held_out_fraction"
        )
    return chosen


def check_held_out(rows: list[dict[str, Any]], selection: Path) -> None:
    """Hold the samples' split against the selection that decides it.

    Raises:
        BadInputError: a sample is of a clip that the selection does not hold out.
    """
    splits = {row["clip_id"]: row["split"] for row in read_rows("selection", selection) if row["keep"]}
    if strays := sorted({row["clip_id"] for row in rows if splits.get(row["clip_id"]) != "held_out"}):
        raise BadInputError(
            f"{selection}: does not hold out clip {strays[0]}, the samples do; encode the selection again"
        )


def motion_unit(annotations: Path) -> str | None:
    """The unit of the annotated motion scores, if there are any."""
    units = {row["motion_unit"] for row in read_rows("annotations", annotations)} - {None}
    return ", ".join(sorted(units)) or None


def load_clips(rows: list[dict[str, Any]], clips: Path, root: DataRoot) -> tuple[list[Clip], dict[str, str]]:
    """The true frames of samples.

    Returns:
        The clips, and for each sample that cannot be used the reason.
    """
    wanted = {row["clip_id"] for row in rows}
    places = {row["clip_id"]: row for row in read_rows("clips", clips) if row["clip_id"] in wanted}
    loaded, refused = [], {}
    for row in rows:
        try:
            loaded.append(_load(row, places.get(row["clip_id"]), root))
        except SvdflowError as error:
            refused[row["sample_id"]] = str(error)
    return loaded, refused


def _load(row: dict[str, Any], place: dict[str, Any] | None, root: DataRoot) -> Clip:
    if place is None:
        raise BadInputError(f"sample {row['sample_id']}: its clip {row['clip_id']} is not in the clips manifest")
    given = first_picture(root, row)
    data = root.read_range(place["shard_uri"], place["offset"], place["bytes"])
    frames = frames_from(decode(data), given, row["frames"], row["fps"])
    if frames is None:
        raise BadInputError(
            f"sample {row['sample_id']}: its frames are not found in clip {row['clip_id']}; encode the clip again"
        )
    captions = tuple(text for text in row["captions"] if text)
    return Clip(row["sample_id"], frames, row["fps"], row["motion_score"], captions)


def frames_from(decoded: Iterable[VideoFrame], given_HWC: np.ndarray, frames: int, fps: float) -> np.ndarray | None:
    """``frames`` frames at ``fps``, starting with the one that is ``given_HWC``, at its size; None if one is missing.

    Args:
        decoded: a clip's frames, in order.
        given_HWC: uint8, the conditioning frame as it was encoded.
        frames: how many to take; each is the nearest to its time.
        fps: their rate.
    """
    height, width = given_HWC.shape[:2]
    start_s: float | None = None
    taken: list[np.ndarray] = []
    before, before_s, gap_s = given_HWC, 0.0, 0.0
    for frame in decoded:
        if start_s is None:
            if np.array_equal(fit_frame(frame.rgb, height, width), given_HWC):
                start_s, before_s = frame.time_s, frame.time_s
                taken.append(given_HWC)
            continue
        now: np.ndarray | None = None
        while len(taken) < frames and (due_s := start_s + len(taken) / fps) <= frame.time_s:
            earlier = due_s - before_s < frame.time_s - due_s
            if not earlier and now is None:
                now = fit_frame(frame.rgb, height, width)
            taken.append(before if earlier or now is None else now)
        if len(taken) == frames:
            return np.stack(taken)
        # the frame may be the nearest to the next time due: keep it, made small, only then
        due_s = start_s + len(taken) / fps
        gap_s = frame.time_s - before_s
        before_s = frame.time_s
        if due_s - frame.time_s <= gap_s:
            before = now if now is not None else fit_frame(frame.rgb, height, width)
    if start_s is not None and len(taken) == frames - 1 and start_s + len(taken) / fps - before_s <= 0.5 * gap_s:
        taken.append(before)  # the last frame due lies a rounding error behind the last one there is
    return np.stack(taken) if len(taken) == frames else None
