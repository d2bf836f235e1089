"""The held-out clips as they are compared: chosen samples with their true frames, decoded from the clips themselves.

Latents are not the truth: decoding them would forgive what the autoencoder loses.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..common.decoding import decode_each, in_cluster
from ..common.errors import BadInputError, SvdflowError
from ..common.fanout import in_pods
from ..common.frames import fit_frame
from ..common.identity import identity
from ..common.manifests import read_rows
from ..common.pixels import keep_frames, kept_frames
from ..common.sample_tensors import first_picture
from ..common.storage import DataRoot
from ..common.video import VideoFrame, decode
from .metric import Clip

_TRUTH, _VERSION = "evaluation_truth", "1"


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
    works = [TruthWork(root.location, row, _place(places.get(row["clip_id"]))) for row in rows]
    truth = _truth_from_pods(works, root) if in_cluster() else _truth_here(works, root)
    for work, frames in zip(works, truth, strict=True):
        row = work.row
        if isinstance(frames, str):
            refused[row["sample_id"]] = frames
            continue
        captions = tuple(text for text in row["captions"] if text)
        video_id = places[row["clip_id"]]["video_id"]
        loaded.append(Clip(row["sample_id"], frames, row["fps"], row["motion_score"], captions, video_id))
    return loaded, refused


@dataclass(frozen=True)
class TruthWork:
    """A sample whose true frames are wanted: its row, and that of its clip, if there is one."""

    root: str
    row: dict[str, Any]
    place: dict[str, Any] | None

    def key(self) -> str:
        """Names the frames: which of what bytes, and how they are brought to size."""
        return identity(version=_VERSION, row=self.row, place=self.place)


@in_pods
def keep_true_frames(work: TruthWork) -> str:
    """Put a sample's true frames into the data root as they are, one tensor; returns the URI.

    Raises:
        BadInputError: see ``true_frames``.
    """
    root = DataRoot.open(work.root)
    return keep_frames(true_frames(work, root), root)


def true_frames(work: TruthWork, root: DataRoot) -> np.ndarray:
    """A sample's true frames, decoded from its clip, uint8 [F, H, W, 3].

    Raises:
        BadInputError: the clip is not known or does not decode, or its frames are not those that were encoded.
    """
    row, place = work.row, work.place
    if place is None:
        raise BadInputError(f"sample {row['sample_id']}: its clip {row['clip_id']} is not in the clips manifest")
    given = first_picture(root, row)
    data = root.read_range(place["shard_uri"], place["offset"], place["bytes"])
    frames = frames_from(decode(data), given, row["frames"], row["fps"])
    if frames is None:
        raise BadInputError(
            f"sample {row['sample_id']}: its frames are not found in clip {row['clip_id']}; encode the clip again"
        )
    return frames


def _place(row: dict[str, Any] | None) -> dict[str, Any] | None:
    return {name: row[name] for name in ("shard_uri", "offset", "bytes")} if row else None


def _truth_here(works: list[TruthWork], root: DataRoot) -> Iterator[np.ndarray | str]:
    for work in works:
        try:
            yield true_frames(work, root)
        except SvdflowError as error:
            yield str(error)


def _truth_from_pods(works: list[TruthWork], root: DataRoot) -> Iterator[np.ndarray | str]:
    """The frames of each sample, or why there are none; those that an earlier run had decoded are found."""
    kept = [root.find(_TRUTH, work.key()) for work in works]
    missing = [work for work, found in zip(works, kept, strict=True) if found is None]
    outcomes = iter(decode_each(keep_true_frames, missing, root, "truth"))
    for work, found in zip(works, kept, strict=True):
        if found is None:
            outcome = next(outcomes)
            if outcome.value is None:
                yield outcome.error or ""
                continue
            found = {"uri": outcome.value, "clip_id": work.row["clip_id"]}  # by its id it is found when it is to go
            root.record(_TRUTH, work.key(), found)
        try:
            yield kept_frames(root, found["uri"], *(work.row[name] for name in ("frames", "height", "width")))
        except BadInputError as error:
            yield str(error)


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
