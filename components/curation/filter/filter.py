"""Select clips: a cut per axis on the unfiltered set, the masks joined, and the split by source video."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...common.errors import BadInputError
from ...common.identity import identity
from ...common.manifest_views import alone_in
from ...common.manifests import ROW_GROUP, SCHEMAS, write_in_order
from ...common.report import StepReport
from ...common.storage import DataRoot
from .duplicates import Duplicates, find_duplicates
from .inputs import Manifest, content_of, open_tables, shards_of
from .settings import FilterSettings, limit_name
from .show import fill_report
from .sides import bar_from_training, divide
from .tally import BARRED, bit, count, count_per_video, reasons_of
from .thresholds import Cut, find_cut, number
from .values import ANNOTATED, DROPS_ABOVE

VERSION = "2"


def filter_clips(
    videos: Manifest, clips: Manifest, annotations: Manifest, out: Path, root: DataRoot, settings: FilterSettings
) -> StepReport:
    """Decide on every clip and write the selection manifest.

    Each manifest is a Parquet file, a folder of them, or a list; their number and order change nothing.

    Args:
        videos: the videos manifest; gives the kind of source.
        clips: the clips manifest; every clip of it is decided on.
        annotations: the annotations manifest; a clip that has no row there misses every axis.
        out: the selection manifest.
        root: the data root, for embeddings, thumbnails and the record of sides.
        settings: what to drop.

    Raises:
        BadInputError: a manifest cannot be used, or an axis that is asked about has no value on any clip.
        StorageError: memory or disk do not suffice.
    """
    manifests = {"videos": videos, "clips": clips, "annotations": annotations}
    shards = {kind: shards_of(kind, manifest) for kind, manifest in manifests.items()}
    content = {kind: content_of(paths) for kind, paths in shards.items()}
    key = identity(step="filter", version=VERSION, settings=settings.asked(), **content)
    with alone_in(root.scratch("filter") / key) as scratch:
        if found := root.find("filter", key):
            out.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root.fetch(found["selection"]), out)
            report = StepReport.from_json(root.read(found["report"]))
            report.done, report.reused = 0, report.done + report.reused
            return report
        with open_tables(shards, scratch, settings) as connection:
            cuts = [find_cut(connection, axis, settings) for axis in ANNOTATED]
            clips_in = cuts[0].there + cuts[0].missing + cuts[0].nan
            _require_values(cuts, clips_in)
            duplicates = _judge(connection, cuts, root, scratch, settings)
            cuts.append(_duplicate_cut(duplicates, clips_in, settings))
            count_per_video(connection, "judged")
            sides = divide(connection, root, settings)
            _decide(connection)
            tally = count(connection)
            _write(connection, cuts, tally.masks, settings, out)
            with ThreadPoolExecutor(1) as thread:
                stored = thread.submit(root.put_file, out)
                report = StepReport(step="filter", title="Filter clips", done=tally.clips)
                fill_report(report, connection, tally, cuts, duplicates, sides, root, settings)
        root.record("filter", key, {"selection": stored.result(), "report": root.put_bytes(report.to_json())})
    return report


def _require_values(cuts: Iterable[Cut], clips: int) -> None:
    """An axis that is asked about and has no value at all would drop every clip, and nobody would see why."""
    for cut in cuts:
        if clips and cut.active and not cut.there:
            asked = [f"filter.{cut.axis}_percent=0"] if cut.asked_percent else []
            asked += [f"filter.{cut.axis}_top=null"] if cut.asked_top is not None else []
            asked += [f"filter.{limit_name(cut.axis)}=null"] if cut.limit is not None else []
            raise BadInputError(
                f"annotations manifest: clips shall be dropped by {cut.axis}, none of {clips} has a value of it, "
                f"so that all would go; annotate it (annotate.{cut.axis}), or set {' and '.join(asked)}"
            )


def _judge(connection: Any, cuts: list[Cut], root: DataRoot, scratch: Path, settings: FilterSettings) -> Duplicates:
    """Make the table ``places`` and the view ``judged``: what all axes say, before train and held out are known.

    ``judged``: scored, with clip (its row), group and barred (of near-duplicates), duplicate_value, mask and keep.
    """
    annotated = " | ".join(_mask_sql(cut) for cut in cuts)
    found = find_duplicates(connection, f"(({annotated}) = 0)", root, scratch, settings)
    # without groups the join would cost time for nothing
    places = "LEFT JOIN places p ON p.clip = s.rowid" if found.groups else "CROSS JOIN (SELECT NULL AS place) p"
    group, barred = ('p."group"', "coalesce(p.barred, false)") if found.groups else ("NULL::VARCHAR", "false")
    place = "CASE WHEN embedded THEN coalesce(p.place, 0)::DOUBLE END" if found.looked else "NULL::DOUBLE"
    duplicate = "0"
    if settings.drop_duplicates:
        duplicate = f"""CASE WHEN duplicate_value > 0 THEN {bit("duplicate")}
                             WHEN duplicate_value IS NULL THEN {bit("duplicate", "missing_")} ELSE 0 END"""
    connection.execute(
        f"""CREATE VIEW judged AS SELECT *, mask = 0 AS keep FROM (
                SELECT *, ({annotated} | {duplicate})::INTEGER AS mask FROM (
                    SELECT s.rowid AS clip, s.*, {group} AS "group", {barred} AS barred, {place} AS duplicate_value
                    FROM scored s {places}))"""
    )
    return found


def _mask_sql(cut: Cut) -> str:
    """The bits of one axis: failed, missing, no number; 0 when the clip passes or nothing is asked."""
    if not cut.active:
        return "0"
    value, fails = f"{cut.axis}_value", ""
    if cut.value is not None:
        fails = f"WHEN {value} {'>' if cut.above else '<'} {number(cut.value)} THEN {bit(cut.axis)}"
    return f"""(CASE WHEN {value} IS NULL THEN {bit(cut.axis, "missing_")}
                     WHEN isnan({value}) THEN {bit(cut.axis, "nan_")} {fails} ELSE 0 END)"""


def _duplicate_cut(found: Duplicates, clips: int, settings: FilterSettings) -> Cut:
    """Of the place within a group: 0 is kept, when duplicates are dropped at all."""
    asked = 0.0 if settings.drop_duplicates else None
    there = found.embedded if found.looked else 0
    dropped = found.clips - found.groups if settings.drop_duplicates else 0
    return Cut(
        axis="duplicate",
        above=DROPS_ABOVE["duplicate"],
        asked_percent=0.0,
        asked_top=None,
        limit=asked,
        value=asked,
        from_percent=None,
        from_top=None,
        realised_percent=100 * dropped / there if there else 0.0,
        dropped=dropped,
        there=there,
        missing=clips - there,
        nan=0,
        low=0.0 if there else None,
        high=max(found.largest - 1.0, 0.0) if there else None,
    )


def _decide(connection: Any) -> None:
    """Make the view ``decided``: ``judged`` with the last word on every clip, now that the sides are known."""
    mask = "mask"
    if bar_from_training(connection):
        mask = f"CASE WHEN barred THEN {BARRED} ELSE mask END AS mask"
    connection.execute(f"CREATE VIEW decided AS SELECT * EXCLUDE (mask, keep), {mask} FROM judged")
    if mask != "mask":
        count_per_video(connection, "decided")


def _write(connection: Any, cuts: list[Cut], masks: Iterable[int], settings: FilterSettings, out: Path) -> None:
    """The selection, a row group at a time: the next is fetched while one is encoded."""
    asked = {"asked": settings.asked(), "cuts": {c.axis: c.to_dict() for c in cuts}, "version": VERSION}
    thresholds = pa.array([json.dumps(asked, sort_keys=True)])
    reasons = pa.array([reasons_of(mask) for mask in sorted(masks)], pa.list_(pa.string()))
    columns = ", ".join(f"CASE WHEN NOT isnan({c.axis}_value) THEN {c.axis}_value END AS {c.axis}_value" for c in cuts)
    # Joined as written, with the clips on the probing side, and by one thread, while another one encodes: so they come
    # in the order of the table, which is that of their ids, and nothing has to be sorted again.
    connection.execute("SET disabled_optimizers = 'join_order,build_side_probe_side'")
    connection.execute("SET threads = 1")
    known = ", ".join(map(str, sorted(masks)))
    rows = connection.sql(
        f"""SELECT clip_id, video_id, mask, list_position([{known}], mask) - 1 AS way,
                   CASE WHEN mask = 0 THEN side END AS split, "group", {columns}
            FROM decided LEFT JOIN sides USING (video)"""
    ).to_arrow_reader(ROW_GROUP)
    tables = (_selection(table, cuts, reasons, thresholds) for table in _row_groups(rows))
    write_in_order("selection", _ahead(tables), out)
    connection.execute("SET threads = ?", [settings.threads])
    connection.execute("SET disabled_optimizers = ''")


def _ahead(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same, the next of which is made by another thread while one is used."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, tables, None)
        while (table := coming.result()) is not None:
            coming = thread.submit(next, tables, None)
            yield table


def _row_groups(rows: pa.RecordBatchReader) -> Iterator[pa.Table]:
    """Tables of ROW_GROUP rows, the last one fewer; the clips are held to come once each and in order."""
    waiting, last = pa.Table.from_batches([], rows.schema), ""
    for batch in rows:
        last = _in_order(batch["clip_id"], last)
        waiting = pa.concat_tables([waiting, pa.Table.from_batches([batch])])
        while len(waiting) >= ROW_GROUP:
            yield waiting.slice(0, ROW_GROUP)
            waiting = waiting.slice(ROW_GROUP)
    if len(waiting):
        yield waiting


def _in_order(ids: pa.Array, last: str) -> str:
    """Hold a run of clip ids against the one before it; returns its last."""
    if not len(ids):
        return last
    before = pa.concat_arrays([pa.array([last], ids.type), ids.slice(0, len(ids) - 1)])
    if not pc.all(pc.less(before, ids)).as_py():
        at = pc.index(pc.less(before, ids), False).as_py()
        if before[at] != ids[at]:
            raise RuntimeError(f"clip {ids[at]} comes after {before[at]}: DuckDB did not keep the order of the table")
        raise BadInputError(
            f"clips manifest: clip {ids[at]} stands in more than one row; run validate to see all such faults"
        )
    return ids[len(ids) - 1].as_py()


def _selection(table: pa.Table, cuts: list[Cut], reasons: pa.Array, thresholds: pa.Array) -> pa.Table:
    """Rows of the selection manifest; what failed follows from the mask, and the reasons from the way of failing."""
    mask = table["mask"].to_numpy()
    columns = {name: table[name] for name in ("clip_id", "video_id", "split", "group")}
    columns |= {"keep": pa.array(mask == 0), "reasons": reasons.take(table["way"])}
    for cut in cuts:
        columns[f"{cut.axis}_value"] = table[f"{cut.axis}_value"]
        columns[f"{cut.axis}_cut"] = pa.repeat(pa.scalar(cut.value, pa.float64()), len(mask))
        columns[f"{cut.axis}_failed"] = pa.array(mask & bit(cut.axis) != 0)
    columns["thresholds"] = pa.DictionaryArray.from_arrays(np.zeros(len(mask), np.int32), thresholds)
    schema = SCHEMAS["selection"]
    return pa.table([columns[name] for name in schema.names], schema.names).cast(schema)
