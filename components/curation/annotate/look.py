"""The one decode of a clip: key frames and spread frames are kept, watchers see the rest go by."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...common.errors import BadInputError
from ...common.picture import shrink
from ...common.video import VideoFrame, decode
from .annotator import Watcher


def key_indices(frames: int) -> tuple[int, int, int]:
    """Indices of the first, middle and last of ``frames`` frames."""
    return 0, (frames - 1) // 2, frames - 1


def look(
    mp4: bytes, frames: int, watchers: Mapping[str, Watcher], spread: int = 0
) -> tuple[list[VideoFrame], list[np.ndarray]]:
    """Decode a clip once.

    Args:
        mp4: its bytes.
        frames: how many frames the manifest promises; when fewer decode, the last ones stand in for those that lack.
        watchers: each sees every frame, in order.
        spread: frames wanted evenly over the clip.

    Returns:
        First, middle and last frame at full size; the spread frames, made small.

    Raises:
        BadInputError: no frame decodes.
    """
    wanted = key_indices(frames)
    places = np.linspace(0, frames - 1, spread).round().astype(int).tolist() if spread else []
    keys: dict[int, VideoFrame] = {}
    small: list[np.ndarray] = []
    last: VideoFrame | None = None
    for frame in decode(mp4):
        last = frame
        if frame.index in wanted:
            keys[frame.index] = frame
        small += [shrink(frame.rgb)] * places.count(frame.index)
        for watcher in watchers.values():
            watcher.see(frame)
    if last is None:
        raise BadInputError("no frame of the clip decodes")
    small += [shrink(last.rgb)] * (len(places) - len(small))
    if last.index < wanted[2]:
        keys[wanted[2]] = last
    return [keys.get(index, last) for index in wanted], small
