"""Videos that were taken down: their receipts lie in the registry, and no version may hold them again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ...common.errors import BadInputError
from ...common.manifests import read_blocks
from .registry import BRANCH, Registry

FOLDER = "forgotten"


def receipt_path(video_id: str) -> str:
    """Where a takedown's receipt lies in the registry."""
    return f"{FOLDER}/{video_id}.json"


def forgotten_videos(registry: Registry) -> set[str]:
    """The videos that were taken down."""
    return {Path(path).stem for path in registry.names(BRANCH, FOLDER)}


def read_receipt(registry: Registry, video_id: str) -> dict[str, Any] | None:
    """The receipt of a takedown, or None when there was none."""
    data = registry.read(BRANCH, receipt_path(video_id))
    return json.loads(data) if data else None


def refuse_forgotten(registry: Registry, manifests: Mapping[str, Path]) -> None:
    """Refuse manifests with clips of a video that was taken down, or with such a video as a usable one.

    Raises:
        BadInputError: names the video, when it was taken down, and the remedy.
    """
    denied = forgotten_videos(registry)
    if not denied:
        return
    present: set[str] = set()
    names: dict[str, str] = {}
    wanted = pa.array(sorted(denied), pa.string())
    for table in read_blocks("videos", manifests["videos"], ("video_id", "name", "status")):
        found = table.filter(pc.is_in(table["video_id"], wanted)).to_pylist()
        present |= {row["video_id"] for row in found if row["status"] == "ok"}
        names |= {row["video_id"]: row["name"] for row in found}
    for table in read_blocks("clips", manifests["clips"], ("video_id",)):
        present |= set(table.filter(pc.is_in(table["video_id"], wanted))["video_id"].to_pylist())
    if taken := sorted(present):
        receipt = read_receipt(registry, taken[0]) or {}
        raise BadInputError(
            f"{manifests['videos']}: {len(taken)} of its videos were taken down, such as {taken[0]} "
            f"({names.get(taken[0], 'not named')}; forgotten {receipt.get('forgotten_at', 'before')}, receipt "
            f"{receipt_path(taken[0])} in {registry.directory}); remove the file from the source and run again"
        )
