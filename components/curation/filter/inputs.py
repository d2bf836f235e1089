"""The filter's tables in DuckDB, out of manifests of any number of shards; what does not fit in memory is on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...common.errors import BadInputError
from ...common.identity import file_sha256
from ...common.manifest_views import open_views
from ...common.manifests import read_manifest
from .settings import FilterSettings
from .values import ANNOTATED, value_sql

Manifest = Path | Sequence[Path]  # a Parquet file, a folder of them, or a list


def shards_of(kind: str, manifest: Manifest) -> list[Path]:
    """The Parquet files of a manifest, in no order that means anything.

    Raises:
        BadInputError: there is none.
    """
    if isinstance(manifest, Path):
        shards = sorted(manifest.rglob("*.parquet")) if manifest.is_dir() else [manifest]
    else:
        shards = list(manifest)
    if not shards:
        raise BadInputError(
            f"{manifest}: there is no Parquet file of the {kind} manifest here; run the step that writes it"
        )
    for path in shards:
        if not path.is_file():
            read_manifest(kind, path)  # says what is wrong
    return shards


def content_of(shards: Sequence[Path]) -> list[str]:
    """Identity of the shards' bytes, whatever their names and their order."""
    with ThreadPoolExecutor(2) as pool:  # hashing releases the interpreter
        return sorted(pool.map(file_sha256, shards))


@contextmanager
def open_tables(shards: Mapping[str, Sequence[Path]], scratch: Path, settings: FilterSettings) -> Iterator[Any]:
    """A connection with the views ``clips`` and ``annotations``, and the tables ``sources`` and ``scored``.

    ``sources``: video (its number), video_id, source. ``scored``: a row per clip, in
    the order of the ids, with video, span_us, frames, embedded (whether it has an embedding) and <axis>_value: a
    finite number, NaN for what is no number, NULL for what was not annotated.

    Args:
        shards: of "videos", "clips" and "annotations".
        scratch: an empty folder for what spills.
        settings: of the step.

    Raises:
        BadInputError: a manifest cannot be used.
        StorageError: memory or disk do not suffice.
    """
    with open_views("filter", shards, scratch, settings.memory_limit, settings.threads) as connection:
        _score(connection, settings)
        _refuse_doubles(connection, shards)
        yield connection


def _score(connection: Any, settings: FilterSettings) -> None:
    known = "SELECT video_id, min(source) AS source FROM videos WHERE status = 'ok' GROUP BY video_id"
    _number_sources(connection, known)
    _join(connection, settings)
    if connection.execute("SELECT count(*) FROM scored WHERE video IS NULL").fetchall()[0][0]:
        # Clips of videos that the manifest lacks. Only then are the clips' own videos gathered: they are many.
        _number_sources(
            connection, f"SELECT * FROM (SELECT DISTINCT video_id FROM clips) LEFT JOIN ({known}) USING (video_id)"
        )
        _join(connection, settings)


def _number_sources(connection: Any, videos: str) -> None:
    connection.execute(
        f"""CREATE OR REPLACE TABLE sources AS
            SELECT (row_number() OVER () - 1)::INTEGER AS video, video_id, coalesce(source, 'footage') AS source
            FROM ({videos})"""
    )


def _join(connection: Any, settings: FilterSettings) -> None:
    """Narrow types: the table is joined, sorted and kept, in memory or on disk."""
    values = ", ".join(f"{value_sql(axis, settings)} AS {axis}_value" for axis in ANNOTATED)
    # a mean of the largest doubles can overflow: then it is no number either
    sound = ", ".join(
        f"CASE WHEN isinf({a}_value) THEN 'nan'::DOUBLE ELSE {a}_value END AS {a}_value" for a in ANNOTATED
    )
    connection.execute(
        f"""CREATE OR REPLACE TABLE scored AS
            SELECT clip_id, video, span_us, frames, coalesce(embedded, false) AS embedded, {sound}
            FROM (SELECT clip_id, video, round((end_s - start_s) * 1e6)::BIGINT AS span_us, frames::INTEGER AS frames
                  FROM clips LEFT JOIN sources USING (video_id))
            LEFT JOIN (SELECT clip_id, embedding_uri IS NOT NULL AS embedded, {values} FROM annotations) USING (clip_id)
            ORDER BY clip_id"""
    )


def _refuse_doubles(connection: Any, shards: Mapping[str, Sequence[Path]]) -> None:
    """A clip with two annotations would be decided on twice; clips that stand twice are found when they are written."""
    clips, scored = (connection.execute(f"SELECT count(*) FROM {of}").fetchall()[0][0] for of in ("clips", "scored"))
    if scored == clips:
        return
    repeated = connection.execute(
        "SELECT clip_id FROM annotations GROUP BY clip_id HAVING count(*) > 1 ORDER BY clip_id LIMIT 1"
    ).fetchall()[0]
    raise BadInputError(
        f"{shards['annotations'][0]}: clip {repeated[0]} has more than one row; run validate to see all such faults"
    )
