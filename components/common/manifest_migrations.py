"""Manifests of an older schema, brought up to the present one when they are read.

One function a step from a version to the next; a manifest runs through all that come after its own. What an older
schema did not know is null, and never guessed. The schema itself is in ``manifests.py``; a new version adds its step
here, and a file of the version before to ``tests/data/manifests``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Any

import pyarrow as pa

from .errors import BadInputError

_AXES_ADDED_BY_2 = ("watermark", "nsfw", "duplicate")


def migrate(kind: str, table: pa.Table, version: str, current: str, path: str) -> pa.Table:
    """A table of schema ``version`` with the columns of schema ``current`` (types are the reader's to check).

    Args:
        kind: as ``videos``.
        table: as read.
        version: of the file's schema.
        current: of the schema wanted.
        path: the file's, for messages.

    Raises:
        BadInputError: the file is of a newer schema, of an unknown one, or lacks what its schema has.
    """
    if not version.isdecimal() or int(version) > int(current):
        raise BadInputError(
            f"{path}: {kind} manifest of schema {version}, and this svdflow knows schemas up to {current}; "
            "use the svdflow that wrote it, or a newer one"
        )
    while version != current:
        if version not in _STEPS:
            raise BadInputError(f"{path}: {kind} manifest of schema {version}, from which there is no way to {current}")
        try:
            table = _STEPS[version](kind, table)
        except (KeyError, pa.ArrowInvalid) as error:
            raise BadInputError(f"{path}: {kind} manifest that is not of its own schema {version}: {error}") from error
        version = str(int(version) + 1)
    return table


def _from_1(kind: str, table: pa.Table) -> pa.Table:
    """Schema 2: videos keyed by content with all their sources, more of what probing finds, more axes."""
    if kind == "videos":
        return _one_row_a_video(table)
    if kind == "annotations":
        frames3 = pa.list_(pa.float64(), 3)
        table = _with(table, {"flow_uri": pa.string()}, after="motion_unit")
        return _with(table, {"watermark": frames3, "nsfw": frames3}, after="aesthetic")
    if kind == "selection":
        table = _with(table, {"group": pa.string()}, after="split")
        axes: dict[str, pa.DataType | bool] = {}
        for axis in _AXES_ADDED_BY_2:
            axes |= {f"{axis}_value": pa.float64(), f"{axis}_cut": pa.float64(), f"{axis}_failed": False}
        return _with(table, axes, after="similarity_failed")
    return table


def _from_2(kind: str, table: pa.Table) -> pa.Table:
    """Schema 3: samples are sequences out of which windows are taken; those of schema 2 are one window each."""
    if kind != "samples":
        return table
    added: dict[str, pa.DataType | bool] = {
        "layout": pa.string(), "first_frame": pa.int32(), "stride": pa.int32(), "sequence_frames": pa.int32(),
        "sequence_fps": pa.float64(), "start_s": pa.float64(), "starts": pa.list_(pa.int32()), "flipped": pa.bool_(),
        "crop": pa.list_(pa.float64(), 4), "text_uri": pa.string(), "text_prefix": pa.string(),
        "clip_shard": pa.string(), "clip_offset": pa.int64(), "clip_bytes": pa.int64(),
    }  # fmt: skip
    return _with(table, added, after="fps")


def _from_3(kind: str, table: pa.Table) -> pa.Table:
    """Schema 4, of samples alone: what each was made of, to hold sets apart by source, and its motion score's unit."""
    if kind != "samples":
        return table
    added: dict[str, pa.DataType | bool] = {
        "source_id": pa.string(), "group": pa.string(), "group_sources": pa.list_(pa.string())
    }  # fmt: skip
    return _with(_with(table, added, after="split"), {"motion_unit": pa.string()}, after="motion_score")


def _one_row_a_video(table: pa.Table) -> pa.Table:
    """Rows of one content become one; schema 1 set the later ones aside as duplicates."""
    rows = sorted(table.to_pylist(), key=lambda row: (row["video_id"], row["name"]))
    merged: list[list[dict[str, Any]]] = []
    for video_id, same in groupby(rows, key=lambda row: row["video_id"]):
        group = list(same)
        merged += [[row] for row in group] if not video_id else [group]  # "" is a file that could not be read
    kept = []
    for group in merged:
        sources = [{"name": r["name"], "uri": r["name"], "licence": r["licence"], "metadata": None} for r in group]
        first = min(group, key=lambda row: ((row["error"] or "").startswith("duplicate: "), row["name"]))
        kept.append({**first, "name": group[0]["name"], "sources": sources})
    source = pa.struct([(name, pa.string()) for name in ("name", "uri", "licence", "metadata")])
    sources = pa.array([row.pop("sources") for row in kept], pa.list_(source))
    out = pa.Table.from_pylist(kept, schema=table.schema)
    out = out.add_column(out.schema.get_field_index("name") + 1, "sources", sources)
    probed = {
        "variable_fps": pa.bool_(), "pixel_aspect": pa.float64(), "interlaced": pa.bool_(),
        "color_transfer": pa.string(), "letterbox": pa.list_(pa.int32(), 4), "audio": pa.bool_(),
    }  # fmt: skip
    return _with(out, probed, after="rotation")


def _with(table: pa.Table, columns: Mapping[str, pa.DataType | bool], after: str) -> pa.Table:
    """New columns behind another: nulls of a type, or one truth value throughout."""
    place = table.schema.names.index(after) + 1 if after in table.schema.names else _lacks(after)
    for name, kind in columns.items():
        values = pa.repeat(pa.scalar(kind), len(table)) if isinstance(kind, bool) else pa.nulls(len(table), kind)
        table = table.add_column(place, name, values)
        place += 1
    return table


def _lacks(column: str) -> int:
    raise KeyError(f"there is no column {column}")


_STEPS: dict[str, Callable[[str, pa.Table], pa.Table]] = {"1": _from_1, "2": _from_2, "3": _from_3}
