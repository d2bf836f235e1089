"""Which training samples of a mix show what one of its datasets holds out: each dataset was split by itself.

A side goes by source video, near-duplicates together. Two datasets may share videos and know other near-duplicates, so
what one of them holds out another may train on. Held out wins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SAME = "their video is held out"
ALIKE = "near-duplicates of a video that another dataset holds out"
Rows = Sequence[Mapping[str, Any]]
COLUMNS = ("split", "source_id", "clip_id", "group", "group_sources")  # that it is told by


def why_left_out(manifests: Sequence[Rows]) -> list[list[str | None]]:
    """For each sample of each samples manifest, why it must not be trained on; None where it may be.

    A sample is left out when a dataset (its own included) holds out its source or its clip. It is left out too when it
    is tied to what another dataset holds out by near-duplicates that either of the two found: then one has a clip of
    the other's group of sources. Within one dataset the filter has seen to near-duplicates, clip by clip.
    """
    groups = [_sources_of_groups(rows) for rows in manifests]
    same: dict[str, set[int]] = {}  # source or clip -> the datasets that hold it out
    alike: dict[str, set[int]] = {}  # source -> the datasets that hold out a near-duplicate of it
    for number, rows in enumerate(manifests):
        for row in rows:
            if row["split"] == "held_out":
                _note(same, _names(row), number)
                _note(alike, groups[number].get(row["group"], ()), number)

    def why(number: int, row: Mapping[str, Any]) -> str | None:
        if row["split"] != "train":
            return None
        names = _names(row)
        if any(name in same for name in names):
            return SAME
        kin = {*names, *groups[number].get(row["group"], ())}
        tied = set().union(*(found.get(name, ()) for name in kin for found in (same, alike)))
        return ALIKE if tied - {number} else None

    return [[why(number, row) for row in rows] for number, rows in enumerate(manifests)]


def _names(row: Mapping[str, Any]) -> list[str]:
    """What a sample is of. Manifests of before schema 4 tell the clip alone."""
    return [name for name in (row["source_id"], row["clip_id"]) if name is not None]


def _sources_of_groups(rows: Rows) -> dict[str | None, list[str]]:
    return {row["group"]: row["group_sources"] for row in rows if row["group_sources"]}


def _note(where: dict[str, set[int]], names: Iterable[str], number: int) -> None:
    for name in names:
        where.setdefault(name, set()).add(number)
