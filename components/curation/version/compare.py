"""What changed from one dataset version to another: which clips came, which went and why, and how each axis moved.

From the versions' manifests in the store, by DuckDB: nothing has to fit in memory, and a version registered under an
older schema is compared in the columns that both have.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...common.manifests import AXES, current_file
from ...common.storage import DataRoot
from .denied import forgotten_videos
from .registry import Registry, VersionTag
from .version_files import fetch_manifests, listed_files, read_card

QUANTILES = {"p5": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95}
_EXAMPLES = 5


@dataclass(frozen=True)
class AxisShift:
    """One axis over the kept clips of two versions.

    Attributes:
        old, new: ``clips`` with a value, ``mean`` and the quantiles ``p5`` to ``p95``; None where there are none.
        old_cut, new_cut: the values at which it was cut; None where it was not.
    """

    axis: str
    old: dict[str, float | None]
    new: dict[str, float | None]
    old_cut: float | None
    new_cut: float | None


@dataclass(frozen=True)
class VersionDiff:
    """Two versions compared.

    Attributes:
        old, new: their tags.
        kept: clips in both.
        added, dropped: clips in one alone, by why: the reasons of the selection that dropped them (joined by +), or
            ``not considered`` where the other version did not have the clip at all, or ``taken down``.
        examples: under ``added`` and ``dropped``, reason to a few clip ids.
        splits: clips in both that changed split, by ``train → held_out``. Each is a held-out clip that one of the two
            trains on.
        axes: shifts of the axes that have values in either.
        fields: dotted field of the cards to (old, new), for those that differ and are not told above.
    """

    old: str
    new: str
    kept: int
    added: dict[str, int]
    dropped: dict[str, int]
    splits: dict[str, int]
    axes: list[AxisShift]
    fields: dict[str, tuple[Any, Any]]
    examples: dict[str, dict[str, list[str]]] = field(default_factory=dict)


def compare_versions(registry: Registry, old: VersionTag, new: VersionTag, remote: DataRoot) -> VersionDiff:
    """Compare two versions, of one dataset or of two.

    Args:
        registry: holds both.
        old: the earlier one.
        new: the later one.
        remote: the store of their manifests.

    Raises:
        StorageError: the store lacks a manifest.
    """
    import duckdb

    with tempfile.TemporaryDirectory() as folder, duckdb.connect() as connection:
        connection.execute("SET temp_directory = ?", [folder])
        for side, tag in (("old", old), ("new", new)):
            manifests = fetch_manifests(listed_files(registry, str(tag), tag.name, remote), remote)
            place = Path(folder) / side
            place.mkdir()
            path = current_file("selection", manifests["selection"], place)
            connection.execute(f"CREATE VIEW {side} AS SELECT * FROM read_parquet('{_quoted(path)}')")
        connection.execute("CREATE TEMP TABLE taken (video_id VARCHAR)")
        if denied := sorted(forgotten_videos(registry)):
            connection.executemany("INSERT INTO taken VALUES (?)", [[video] for video in denied])
        added, more = _one_sided(connection, there="new", other="old")
        dropped, fewer = _one_sided(connection, there="old", other="new")
        both = "FROM old JOIN new USING (clip_id) WHERE old.keep AND new.keep"
        kept = connection.execute(f"SELECT count(*) {both}").fetchall()[0][0]
        splits = connection.execute(
            f"SELECT old.split || ' → ' || new.split, count(*) {both} AND old.split <> new.split GROUP BY 1 ORDER BY 1"
        ).fetchall()
        axes = [shift for axis in AXES if (shift := _shift(connection, axis))]
    cards = [_flat(read_card(registry, tag)) for tag in (old, new)]
    told = ("content", "members", "counts.dropped_by_reason", "statistics")
    fields = {
        key: (cards[0].get(key), cards[1].get(key))
        for key in sorted({*cards[0], *cards[1]})
        if not key.startswith(told) and cards[0].get(key) != cards[1].get(key)
    }
    examples = {"added": more, "dropped": fewer}
    return VersionDiff(str(old), str(new), kept, added, dropped, dict(splits), axes, fields, examples)


def _one_sided(connection: Any, there: str, other: str) -> tuple[dict[str, int], dict[str, list[str]]]:
    """Clips that one version keeps and the other does not, by the other's reason; and examples of each."""
    rows = connection.execute(
        f"""SELECT CASE WHEN o.clip_id IS NOT NULL THEN coalesce(nullif(array_to_string(list_sort(o.reasons), '+'), ''),
                             'no reason given')
                        WHEN t.video_id IN (SELECT video_id FROM taken) THEN 'taken down'
                        ELSE 'not considered' END AS reason,
                   count(*), min(t.clip_id, {_EXAMPLES})
            FROM {there} t LEFT JOIN {other} o USING (clip_id)
            WHERE t.keep AND (o.keep IS NULL OR NOT o.keep) GROUP BY 1 ORDER BY 2 DESC, 1"""
    ).fetchall()
    return {reason: count for reason, count, _ in rows}, {reason: list(ids) for reason, _, ids in rows}


def _shift(connection: Any, axis: str) -> AxisShift | None:
    column = f"{axis}_value"
    points = ", ".join(str(point) for point in QUANTILES.values())
    sides: list[dict[str, float | None]] = []
    cuts = []
    for side in ("old", "new"):
        count, mean, quantiles, cut = connection.execute(
            f"""SELECT count(v), avg(v), quantile_cont(v, [{points}]), (SELECT max({axis}_cut) FROM {side}) FROM
                (SELECT {column} AS v FROM {side} WHERE keep AND isfinite({column}))"""
        ).fetchall()[0]
        spread: Mapping[str, float | None] = dict(zip(QUANTILES, quantiles or [None] * len(QUANTILES), strict=True))
        sides.append({"clips": count, "mean": mean, **spread})
        cuts.append(cut)
    if not any(side["clips"] for side in sides):
        return None
    return AxisShift(axis, sides[0], sides[1], cuts[0], cuts[1])


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        key: leaf for name, inner in value.items() for key, leaf in _flat(inner, f"{prefix}.{name}".lstrip(".")).items()
    }
