"""Select clips: a cut per axis on the unfiltered set, the masks joined, and the split by source video."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset

from ...common.errors import BadInputError
from ...common.identity import file_sha256, identity
from ...common.manifests import AXES, SCHEMAS, read_manifest, write_manifest
from ...common.report import StepReport
from ...common.storage import DataRoot
from .settings import FilterSettings
from .show import fill_report
from .splits import assign_splits, group_near_duplicates
from .thresholds import Cut, find_cut, value_sql

VERSION = "1"


def filter_clips(
    videos: Path, clips: Path, annotations: Path, out: Path, root: DataRoot, settings: FilterSettings
) -> StepReport:
    """Decide on every clip and write the selection manifest.

    Args:
        videos: the videos manifest; gives the kind of source.
        clips: the clips manifest; every clip of it is decided on.
        annotations: the annotations manifest; a clip that has no row there misses every axis.
        out: the selection manifest.
        root: the data root, for embeddings and thumbnails.
        settings: what to drop.

    Raises:
        BadInputError: a manifest cannot be used, or no clip is left.
    """
    files = {
        name: file_sha256(path)
        for name, path in (("videos", videos), ("clips", clips), ("annotations", annotations))
        if path.is_file()
    }
    asked = settings.model_dump(mode="json", exclude={"memory_limit"})
    key = identity(step="filter", version=VERSION, settings=asked, **files)
    if found := root.find("filter", key):
        shutil.copyfile(root.fetch(found["selection"]), _ready(out))
        report = StepReport.from_json(root.read(found["report"]))
        report.done, report.reused = 0, report.done + report.reused
        return report
    with _tables(videos, clips, annotations, root, settings) as connection:
        cuts = [find_cut(connection, axis, settings) for axis in AXES]
        _decide(connection, cuts)
        splits, groups = _split(connection, root, settings)
        selection = _write(connection, cuts, splits, settings, out)
        report = StepReport(step="filter", title="Filter clips", done=len(selection))
        fill_report(report, connection, cuts, splits, groups, root, settings)
    root.record("filter", key, {"selection": root.put_file(out), "report": root.put_bytes(report.to_json())})
    return report


def _ready(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def _tables(videos: Path, clips: Path, annotations: Path, root: DataRoot, settings: FilterSettings) -> Iterator[Any]:
    """A connection with the view ``scored``: a row per clip with its value on each axis."""
    import duckdb

    with duckdb.connect() as connection:
        connection.execute("SET memory_limit = ?", [settings.memory_limit])
        connection.execute("SET temp_directory = ?", [str(root.scratch("duckdb"))])
        connection.execute("SET threads = 2")
        for kind, path in (("videos", videos), ("clips", clips), ("annotations", annotations)):
            if not path.is_file():
                read_manifest(kind, path)  # says what is wrong
            data = pyarrow.dataset.dataset(path, format="parquet")
            if data.schema.names != SCHEMAS[kind].names:
                read_manifest(kind, path)
            connection.register(kind, data)
        repeated = connection.execute(
            "SELECT clip_id FROM annotations GROUP BY clip_id HAVING count(*) > 1 LIMIT 1"
        ).fetchone()
        if repeated:
            raise BadInputError(
                f"{annotations}: clip {repeated[0]} has more than one row; run validate to see all such faults"
            )
        values = ", ".join(f"{value_sql(axis, settings)} AS {axis}_value" for axis in AXES)
        connection.execute(
            f"""CREATE TEMP TABLE scored AS
                SELECT c.*, coalesce(v.source, 'footage') AS source, a.embedding_uri, {values}
                FROM clips c LEFT JOIN annotations a USING (clip_id)
                LEFT JOIN (SELECT video_id, min(source) AS source FROM videos WHERE status = 'ok' GROUP BY video_id) v
                USING (video_id)"""
        )
        yield connection


def _decide(connection: Any, cuts: list[Cut]) -> None:
    """Make the table ``decided``: scored, with failures, reasons and ``keep``."""
    failed, reasons = [], []
    for cut in cuts:
        value, axis = f"{cut.axis}_value", cut.axis
        beyond = (
            f"coalesce({value} {'>' if cut.above else '<'} {_number(cut.value)}, false)"
            if cut.value is not None
            else "false"
        )
        failed.append(f"{beyond} AS {axis}_failed")
        reasons.append(f"CASE WHEN {beyond} THEN '{axis}' END")
        if cut.active:
            reasons.append(f"CASE WHEN {value} IS NULL THEN 'missing_{axis}' END")
    listed = f"list_filter([{', '.join(reasons)}], lambda r: r IS NOT NULL)"
    connection.execute(
        f"""CREATE TEMP TABLE decided AS SELECT *, len(reasons) = 0 AS keep FROM (
            SELECT *, {", ".join(failed)}, {listed} AS reasons FROM scored)"""
    )


def _number(value: float | None) -> str:
    """A double, to the last bit, in SQL."""
    return "NULL::DOUBLE" if value is None else f"CAST('{value!r}' AS DOUBLE)"


def _split(connection: Any, root: DataRoot, settings: FilterSettings) -> tuple[dict[str, str], dict[str, str]]:
    """Splits of the videos that have kept clips, and their near-duplicate groups."""
    sources = dict(connection.execute("SELECT DISTINCT video_id, source FROM decided WHERE keep").fetchall())
    groups: dict[str, str] = {}
    if settings.near_duplicate_cosine is not None and settings.held_out_fraction > 0:
        kept = connection.execute("SELECT video_id, embedding_uri FROM decided WHERE keep ORDER BY clip_id").fetchall()
        groups = group_near_duplicates(kept, root, settings.near_duplicate_cosine)
    return assign_splits(sources, groups, settings.held_out_fraction, settings.split_seed), groups


def _write(connection: Any, cuts: list[Cut], splits: dict[str, str], settings: FilterSettings, out: Path) -> pa.Table:
    asked = settings.model_dump(mode="json", exclude={"memory_limit", "shown"})
    thresholds = json.dumps(
        {"asked": asked, "cuts": {c.axis: c.to_dict() for c in cuts}, "version": VERSION}, sort_keys=True
    )
    connection.register(
        "splits",
        pa.table(
            {"video_id": list(splits), "side": list(splits.values())},
            schema=pa.schema([("video_id", pa.string()), ("side", pa.string())]),
        ),
    )
    axes = ", ".join(f"{c.axis}_value, {_number(c.value)} AS {c.axis}_cut, {c.axis}_failed" for c in cuts)
    query = f"""SELECT clip_id, d.video_id, keep, CASE WHEN keep THEN s.side END AS split, reasons, {axes},
                       ?::VARCHAR AS thresholds
                FROM decided d LEFT JOIN splits s USING (video_id) ORDER BY clip_id"""
    return write_manifest("selection", connection.sql(query, params=[thresholds]).to_arrow_table(), out)
