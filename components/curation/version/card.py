"""The card of a dataset version: what is in it, counted and described, from its manifests alone. No clock, no paths."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...common.errors import BadInputError
from ...common.identity import identity
from ...common.manifests import AXES, SCHEMA_VERSION, read_manifest

CARD_VERSION = "1"
MANIFESTS = ("videos", "clips", "annotations", "selection")


@dataclass(frozen=True)
class Members:
    """The kept clips of a dataset, with what is known about them.

    Attributes:
        videos, annotations, selection: the whole manifests.
        kept: the kept rows of the clips manifest, with the column ``split``, sorted by clip.
        shards: URIs of the shards they lie in, sorted.
    """

    videos: pa.Table
    annotations: pa.Table
    selection: pa.Table
    kept: pa.Table
    shards: list[str]

    @property
    def identity(self) -> str:
        """Of the kept clips, their split and their bytes."""
        columns = ("clip_id", "split", "shard_uri", "offset", "bytes")
        return identity(members=list(zip(*[self.kept[name].to_pylist() for name in columns], strict=True)))


def read_members(manifests: Mapping[str, Path], may_be_empty: bool = False) -> Members:
    """Join the selection with the clips it keeps.

    Raises:
        BadInputError: it keeps no clip (unless it may), or one that the clips manifest lacks, or one without a split.
    """
    tables = {kind: read_manifest(kind, manifests[kind]) for kind in MANIFESTS}
    selection = tables["selection"].filter(pc.field("keep")).select(["clip_id", "split"])
    where = manifests["selection"]
    if not len(selection) and not may_be_empty:
        raise BadInputError(
            f"{where}: the selection keeps no clip, so there is no dataset to register; lower the filter's cuts"
        )
    if selection["split"].null_count:
        raise BadInputError(f"{where}: a kept clip has no split; run the filter step again")
    kept = tables["clips"].join(selection, "clip_id", join_type="inner").sort_by("clip_id")
    if len(kept) != len(selection):
        lost = sorted(set(selection["clip_id"].to_pylist()) - set(kept["clip_id"].to_pylist()))
        raise BadInputError(
            f"{where}: keeps {len(lost)} clips that {manifests['clips']} lacks, such as {lost[0]}; they are of two runs"
        )
    shards = sorted(pc.unique(kept["shard_uri"]).to_pylist())
    return Members(tables["videos"], tables["annotations"], tables["selection"], kept, shards)


def make_card(name: str, members: Members, files: Mapping[str, tuple[str, int]], svdflow: str) -> dict[str, Any]:
    """The card.

    Args:
        name: the dataset's.
        members: its clips.
        files: shards and manifests, path in the dataset to (md5, bytes).
        svdflow: version of the code that registered it.
    """
    kept, selection = members.kept, members.selection
    shards = {path: entry for path, entry in files.items() if path.startswith("shards/")}
    splits = Counter(kept["split"].to_pylist())
    videos = members.videos.filter(pc.is_in(members.videos["video_id"], kept["video_id"]))
    annotations = members.annotations.filter(pc.is_in(members.annotations["clip_id"], kept["clip_id"]))
    seconds = pc.subtract(kept["end_s"], kept["start_s"]).to_numpy()
    dropped = Counter(reason for reasons in selection["reasons"].to_pylist() for reason in reasons)
    shapes = Counter(f"{w}x{h}" for w, h in zip(kept["width"].to_pylist(), kept["height"].to_pylist(), strict=True))
    values = selection.filter(pc.field("keep"))
    return {
        "card_version": CARD_VERSION,
        "name": name,
        "content": identity(name=name, files=sorted((path, md5) for path, (md5, _) in files.items())),
        "members": members.identity,
        "manifest_schema": SCHEMA_VERSION,
        "counts": {
            "videos": len(set(kept["video_id"].to_pylist())),
            "clips": len(kept),
            "train": splits["train"],
            "held_out": splits["held_out"],
            "frames": int(pc.sum(kept["frames"]).as_py() or 0),
            "seconds": round(float(seconds.sum()), 3),
            "considered": len(selection),
            "dropped": len(selection) - len(kept),
            "dropped_by_reason": dict(sorted(dropped.items())),
            "shards": len(shards),
            "shard_bytes": sum(size for _, size in shards.values()),
            "member_bytes": int(pc.sum(kept["bytes"]).as_py() or 0),
        },
        "thresholds": _one_or_all(selection["thresholds"]),
        "statistics": {
            "clip_seconds": _spread(seconds),
            "fps": _spread(kept["fps"].to_numpy()),
            "shapes": dict(sorted(shapes.items())),
            **{axis: _spread(values[f"{axis}_value"].drop_null().to_numpy()) for axis in AXES},
        },
        "provenance": {
            "svdflow": svdflow,
            "annotators": _one_or_all(annotations["annotators"]),
            "motion_unit": _distinct(annotations["motion_unit"]),
            "captions": {
                kind: _distinct(annotations[f"caption_{kind}_model"]) for kind in ("image", "video", "summary")
            },
            "sources": dict(sorted(Counter(videos["source"].to_pylist()).items())),
            "licences": dict(sorted(Counter(each or "unknown" for each in videos["licence"].to_pylist()).items())),
        },
    }  # fmt: skip


def card_bytes(card: Mapping[str, Any]) -> bytes:
    """The card as a file."""
    return (json.dumps(card, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def next_number(
    latest: tuple[int, int, int] | None, previous: Mapping[str, Any], members: str, schema: str = SCHEMA_VERSION
) -> tuple[int, int, int]:
    """The number of a version whose content is new, after the latest one and its card.

    Major: the manifests' schema changed, readers must follow. Minor: other clips, another split, or other bytes. Patch:
    the same clips, only what is said about them (scores, captions, thresholds) changed. The first is 1.0.0.
    """
    if latest is None:
        return (1, 0, 0)
    major, minor, patch = latest
    if previous.get("manifest_schema") != schema:
        return (major + 1, 0, 0)
    if previous.get("members") != members:
        return (major, minor + 1, 0)
    return (major, minor, patch + 1)


def _spread(values: np.ndarray) -> dict[str, float] | None:
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    points = np.quantile(values, [0, 0.05, 0.5, 0.95, 1])
    out = dict(zip(("min", "p5", "median", "p95", "max"), points, strict=True)) | {"mean": values.mean()}
    return {key: round(float(value), 6) for key, value in out.items()}


def _distinct(column: pa.ChunkedArray) -> list[str]:
    return sorted(value for value in pc.unique(column).to_pylist() if value is not None)


def _one_or_all(column: pa.ChunkedArray) -> Any:
    """The JSON value that all rows share, or the list of the different ones."""
    found = [json.loads(value) for value in _distinct(column) if value]
    return found[0] if len(found) == 1 else found
