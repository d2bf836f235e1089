"""Train and held out: by source video, near-duplicates together, decided by a hash of the video and by nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from ...common.storage import DataRoot

_BLOCK = 4096


def assign_splits(sources: Mapping[str, str], groups: Mapping[str, str], fraction: float, seed: str) -> dict[str, str]:
    """Video id to "train" or "held_out".

    A group is held out when its hash falls below ``fraction``, so that nearly every video keeps its
    side when others come or go.
    Each kind of source is looked at alone: where chance gives it less than its share (or none, with two groups to
    choose from), the next hashes are taken; one group is always left to train on.

    Args:
        sources: video id to kind of source ("footage", "generated").
        groups: video id to the group it cannot be parted from; one of its own where missing.
        fraction: share to hold out; nothing is held out at 0.
        seed: another seed, another choice.
    """
    members: dict[str, list[str]] = {}
    for video in sorted(sources):
        members.setdefault(groups.get(video, video), []).append(video)
    strata: dict[str, list[str]] = {}
    for group, videos in members.items():
        strata.setdefault(min(sources[video] for video in videos), []).append(group)
    held: set[str] = set()
    for names in strata.values():
        drawn = sorted((_draw(seed, min(members[name])), name) for name in names)
        if fraction > 0 and len(drawn) > 1:
            share = max(1, int(fraction * len(drawn)), sum(value < fraction for value, _ in drawn))
            held.update(name for _, name in drawn[: min(share, len(drawn) - 1)])
    return {video: "held_out" if group in held else "train" for group, videos in members.items() for video in videos}


def _draw(seed: str, name: str) -> float:
    return int.from_bytes(hashlib.sha256(f"{seed}\0{name}".encode()).digest()[:8], "big") / 2**64


def group_near_duplicates(clips: Iterable[tuple[str, str | None]], root: DataRoot, cosine: float) -> dict[str, str]:
    """Video id to group, for videos with clips whose middle frames are alike in embedding or in a tiny grey picture.

    Memory is that of two vectors per clip; time grows with the square of the number of clips.

    Args:
        clips: video id and URI of the embeddings, per clip.
        root: where the embeddings lie.
        cosine: from which similarity on two clips are near-duplicates.
    """
    from safetensors.numpy import load

    videos: list[str] = []
    vectors: dict[str, list[np.ndarray]] = {"image": [], "thumbnail": []}
    for video, uri in clips:
        if uri:
            stored = load(root.read(uri))
            videos.append(video)
            for name, rows in vectors.items():
                rows.append(stored[name][1].astype(np.float32))
    parent = {video: video for video in videos}

    def find(video: str) -> str:
        while parent[video] != video:
            parent[video] = parent[parent[video]]
            video = parent[video]
        return video

    for rows in vectors.values():
        for a, b in _alike(rows, cosine):
            one, two = find(videos[a]), find(videos[b])
            parent[max(one, two)] = min(one, two)
    return {video: find(video) for video in sorted(set(videos))}


def _alike(rows: list[np.ndarray], cosine: float) -> Iterator[tuple[int, int]]:
    """Pairs of rows whose cosine reaches a bound; a row of zeros is like nothing."""
    if not rows:
        return
    matrix = np.stack(rows)
    matrix /= np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)
    for start in range(0, len(matrix), _BLOCK):
        for other in range(start, len(matrix), _BLOCK):
            close = matrix[start : start + _BLOCK] @ matrix[other : other + _BLOCK].T >= cosine
            for a, b in zip(*np.nonzero(close), strict=True):
                yield start + int(a), other + int(b)
