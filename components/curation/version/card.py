"""The card of a dataset version: what is in it, counted and described, from its manifests alone. No clock, no paths.

The manifests are read by DuckDB and in batches: of a clip, memory holds nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...common.errors import BadInputError
from ...common.identity import identity
from ...common.manifest_views import open_views
from ...common.manifests import AXES, SCHEMA_VERSION

CARD_VERSION = "1"
MANIFESTS = ("videos", "clips", "annotations", "selection")
_MEMBER = ("clip_id", "split", "shard_uri", "offset", "bytes")
_BATCH = 1 << 14  # rows
_QUANTILES = {"min": 0.0, "p5": 0.05, "median": 0.5, "p95": 0.95, "max": 1.0}


@dataclass(frozen=True)
class Members:
    """The kept clips of a dataset, counted and described.

    Attributes:
        clips: how many there are.
        shards: URIs of the shards they lie in, sorted.
        identity: of the kept clips, their split and their bytes.
        counts, thresholds, statistics, provenance: parts of the card that hang on the manifests alone.
    """

    clips: int
    shards: list[str]
    identity: str
    counts: dict[str, Any]
    thresholds: Any
    statistics: dict[str, Any]
    provenance: dict[str, Any]


@contextmanager
def open_kept(manifests: Mapping[str, Path], may_be_empty: bool = False) -> Iterator[Any]:
    """A connection with views of the manifests and the table ``kept``: the kept clips with the column ``split``.

    Raises:
        BadInputError: the selection keeps no clip (unless it may), or one that the clips manifest lacks, or one without
            a split.
    """
    shards = {kind: manifests[kind] for kind in MANIFESTS}
    with tempfile.TemporaryDirectory() as scratch, open_views("version", shards, Path(scratch), "1GB") as connection:
        connection.execute(
            """CREATE TABLE kept AS SELECT clips.*, chosen.split
               FROM clips JOIN (SELECT clip_id, split FROM selection WHERE keep) chosen USING (clip_id)"""
        )
        where = manifests["selection"]
        wanted, split = _row(connection, "SELECT count(*), count(split) FROM selection WHERE keep")
        if not wanted and not may_be_empty:
            raise BadInputError(
                f"{where}: the selection keeps no clip, so there is no dataset to register; lower the filter's cuts"
            )
        if split != wanted:
            raise BadInputError(f"{where}: a kept clip has no split; run the filter step again")
        lost, first = _row(
            connection,
            "SELECT count(*), min(clip_id) FROM selection WHERE keep AND clip_id NOT IN (FROM kept SELECT clip_id)",
        )
        if lost:
            raise BadInputError(
                f"{where}: keeps {lost} clips that {manifests['clips']} lacks, such as {first}; they are of two runs"
            )
        yield connection


def read_members(manifests: Mapping[str, Path], may_be_empty: bool = False) -> Members:
    """Join the selection with the clips it keeps, and describe them.

    Raises:
        BadInputError: as ``open_kept``.
    """
    with open_kept(manifests, may_be_empty) as connection:
        return members_of(connection)


def members_of(connection: Any) -> Members:
    """As ``read_members``, over a connection that ``open_kept`` made."""
    clips, videos, frames, member_bytes = _row(
        connection, "SELECT count(*), count(DISTINCT video_id), sum(frames), sum(bytes) FROM kept"
    )
    considered, kept = _row(connection, "SELECT count(*), count(*) FILTER (keep) FROM selection")
    splits = _counted(connection, "SELECT split FROM kept")
    notes = "SELECT {} FROM annotations WHERE clip_id IN (FROM kept SELECT clip_id)"
    sources = "SELECT {} FROM videos WHERE video_id IN (FROM kept SELECT video_id)"
    seconds = _Spread(_values(connection, "SELECT end_s - start_s AS v FROM kept"))
    axes = {axis: f"SELECT {axis}_value AS v FROM selection WHERE keep" for axis in AXES}
    return Members(
        clips=clips,
        shards=[uri for (uri,) in connection.execute("SELECT DISTINCT shard_uri FROM kept ORDER BY 1").fetchall()],
        identity=_identity(connection),
        counts={
            "videos": videos,
            "clips": clips,
            "train": splits.get("train", 0),
            "held_out": splits.get("held_out", 0),
            "frames": int(frames or 0),
            "seconds": round(seconds.total, 3),
            "considered": considered,
            "dropped": considered - kept,
            "dropped_by_reason": _counted(connection, "SELECT unnest(reasons) FROM selection"),
            "member_bytes": int(member_bytes or 0),
        },
        thresholds=_one_or_all(_distinct(connection, "SELECT thresholds FROM selection")),
        statistics={
            "clip_seconds": seconds.told(),
            "fps": _Spread(_values(connection, "SELECT fps AS v FROM kept")).told(),
            "shapes": _counted(connection, "SELECT width || 'x' || height FROM kept"),
            **{axis: _Spread(_values(connection, query)).told() for axis, query in axes.items()},
        },
        provenance={
            "annotators": _one_or_all(_distinct(connection, notes.format("annotators"))),
            "motion_unit": _distinct(connection, notes.format("motion_unit")),
            "captions": {
                kind: _distinct(connection, notes.format(f"caption_{kind}_model"))
                for kind in ("image", "video", "summary")
            },
            "sources": _counted(connection, sources.format("source")),
            "licences": _counted(connection, sources.format("coalesce(nullif(licence, ''), 'unknown')")),
        },
    )


def make_card(name: str, members: Members, files: Mapping[str, tuple[str, int]], svdflow: str) -> dict[str, Any]:
    """The card.

    Args:
        name: the dataset's.
        members: its clips.
        files: shards and manifests, path in the dataset to (md5, bytes).
        svdflow: version of the code that registered it.
    """
    shards = {path: entry for path, entry in files.items() if path.startswith("shards/")}
    return {
        "card_version": CARD_VERSION,
        "name": name,
        "content": identity(name=name, files=sorted((path, md5) for path, (md5, _) in files.items())),
        "members": members.identity,
        "manifest_schema": SCHEMA_VERSION,
        "counts": {
            **members.counts,
            "shards": len(shards),
            "shard_bytes": sum(size for _, size in shards.values()),
        },
        "thresholds": members.thresholds,
        "statistics": members.statistics,
        "provenance": {"svdflow": svdflow, **members.provenance},
    }


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


def _identity(connection: Any) -> str:
    """``identity(members=[…])`` of all kept clips in the order of their ids, without a list of them."""
    digest = hashlib.sha256(b'{"members":[')
    columns, comma = ", ".join(f'"{name}"' for name in _MEMBER), ""
    for batch in connection.sql(f"SELECT {columns} FROM kept ORDER BY clip_id").to_arrow_reader(_BATCH):
        rows = list(zip(*[batch[name].to_pylist() for name in _MEMBER], strict=True))
        digest.update((comma + json.dumps(rows, separators=(",", ":"))[1:-1]).encode())
        comma = ","
    digest.update(b"]}")
    return digest.hexdigest()[:32]


class _Spread:
    """Quantiles and mean of numbers that come rising, of which it holds those it needs."""

    def __init__(self, values: tuple[int, Iterable[np.ndarray]]) -> None:
        self.count, batches = values
        places = {name: share * (self.count - 1) for name, share in _QUANTILES.items()}
        self.wanted = {name: (math.floor(place), math.ceil(place), place % 1) for name, place in places.items()}
        found: dict[int, float] = {}
        sums: list[float] = []
        at = 0
        for batch in batches:
            for low, high, _ in self.wanted.values():
                found |= {n: float(batch[n - at]) for n in (low, high) if at <= n < at + len(batch)}
            sums.append(math.fsum(batch))
            at += len(batch)
        self.found, self.total = found, math.fsum(sums)

    def told(self) -> dict[str, float] | None:
        """Least, 5 %, median, 95 %, most and mean; None where there is no number."""
        if not self.count:
            return None
        points = {name: self.found[a] + (self.found[b] - self.found[a]) * t for name, (a, b, t) in self.wanted.items()}
        return {name: round(value, 6) for name, value in (points | {"mean": self.total / self.count}).items()}


def _values(connection: Any, query: str) -> tuple[int, Iterable[np.ndarray]]:
    """How many finite numbers the column ``v`` of a query has, and these, rising."""
    finite = f"SELECT v::DOUBLE AS v FROM ({query}) WHERE isfinite(v)"
    (count,) = _row(connection, f"SELECT count(*) FROM ({finite})")
    reader = connection.sql(f"{finite} ORDER BY v").to_arrow_reader(_BATCH)
    return count, (batch["v"].to_numpy() for batch in reader)


def _row(connection: Any, query: str) -> Any:
    return connection.execute(query).fetchall()[0]


def _counted(connection: Any, query: str) -> dict[str, int]:
    """How often each value of a query of one column comes, by value."""
    return dict(connection.execute(f"SELECT v, count(*) FROM ({query}) t(v) GROUP BY v ORDER BY v").fetchall())


def _distinct(connection: Any, query: str) -> list[str]:
    found = connection.execute(f"SELECT DISTINCT v FROM ({query}) t(v) WHERE v IS NOT NULL ORDER BY v").fetchall()
    return [value for (value,) in found]


def _one_or_all(values: list[str]) -> Any:
    """The JSON value that all rows share, or the list of the different ones."""
    found = [json.loads(value) for value in values if value]
    return found[0] if len(found) == 1 else found
