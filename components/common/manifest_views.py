"""Manifests as views of DuckDB: joins, sorts and sums over more rows than memory holds; what does not fit is on disk.

``manifests.py`` defines what a manifest is; here are those that are too large to be read whole.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .errors import BadInputError, StorageError
from .manifests import ROW_GROUP, SCHEMAS, current_file, read_manifest

_BATCH = 1 << 14  # rows


@contextmanager
def alone_in(folder: Path) -> Iterator[Path]:
    """A folder for what spills, empty, and ours alone until the block ends: a second one for it waits.

    What a killed process left there goes first.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def open_views(
    step: str, shards: Mapping[str, Path | Sequence[Path]], scratch: Path, memory_limit: str = "1GB", threads: int = 2
) -> Iterator[Any]:
    """A connection with a view for every kind of manifest; those of an older schema are brought up to this one.

    Args:
        step: who asks, for messages.
        shards: kind to the Parquet file, or the files, of its manifest.
        scratch: a folder for what spills.
        memory_limit: of DuckDB.
        threads: of DuckDB.

    Raises:
        BadInputError: a manifest cannot be used.
        StorageError: memory or disk do not suffice.
    """
    import duckdb

    files = {kind: [paths] if isinstance(paths, Path) else list(paths) for kind, paths in shards.items()}
    try:
        with duckdb.connect() as connection:
            connection.execute("SET memory_limit = ?", [memory_limit])
            connection.execute("SET temp_directory = ?", [str(scratch / "spilled")])
            connection.execute("SET threads = ?", [threads])
            connection.execute("SET enable_progress_bar = false")  # it writes to standard output, which is not ours
            for kind, paths in files.items():
                _view(connection, kind, paths, scratch)
            yield connection
    except duckdb.OutOfMemoryException as error:
        raise StorageError(
            f"{step}: {_first_line(error)}; free disk space below {scratch}, or raise its memory limit"
        ) from error
    except duckdb.IOException as error:
        raise StorageError(f"{step}: {_first_line(error)}") from error
    except duckdb.Error as error:
        names = ", ".join(str(paths[0]) for paths in files.values())
        raise BadInputError(
            f"{step}: the manifests {names} cannot be read: {_first_line(error)}; run validate to see what is wrong"
        ) from error


def row_groups(kind: str, query: Any) -> Iterator[pa.Table]:
    """The rows of a query, in the manifest's schema and as ``write_in_order`` takes them.

    Args:
        kind: a key of SCHEMAS.
        query: a DuckDB relation with the manifest's columns, sorted by id.
    """
    schema = SCHEMAS[kind]
    waiting: list[pa.Table] = []
    rows = 0
    for batch in query.to_arrow_reader(_BATCH):
        table = pa.Table.from_batches([batch]).select(schema.names).cast(schema)
        while rows + len(table) >= ROW_GROUP:
            waiting.append(table.slice(0, ROW_GROUP - rows))
            table, rows = table.slice(ROW_GROUP - rows), 0
            yield joined(waiting)
        waiting.append(table)
        rows += len(table)
    if rows:
        yield joined(waiting)


def joined(tables: list[pa.Table]) -> pa.Table:
    """Tables of one schema as one, a chunk a column. The list is emptied: one column alone is held twice."""
    schema, pieces = tables[0].schema, pa.concat_tables(tables)
    tables.clear()
    columns = []
    for name in schema.names:
        columns.append(pieces[name].combine_chunks())
        pieces = pieces.drop_columns([name])
    return pa.table(columns, schema=schema)


def _view(connection: Any, kind: str, shards: Sequence[Path], scratch: Path) -> None:
    """Make the view ``kind`` of the shards."""
    files = []
    for number, shard in enumerate(shards):
        path = current_file(kind, shard, scratch / f"{kind}-{number}")
        try:
            names = pq.read_schema(path).names
        except (OSError, ValueError):
            read_manifest(kind, path)
            raise
        if names != SCHEMAS[kind].names:
            read_manifest(kind, path)  # says which columns are odd
        files.append(str(path))
    quoted = ", ".join("'" + file.replace("'", "''") + "'" for file in sorted(files))
    connection.execute(f"CREATE VIEW {kind} AS SELECT * FROM read_parquet([{quoted}])")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
