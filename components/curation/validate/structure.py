"""A manifest as a file: whether it can be read and has the declared columns, and its rows in bounded pieces."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ...common.manifests import SCHEMAS

READABLE = "the manifest can be read"
COLUMNS = "columns are the declared ones"
TYPES = "types are the declared ones"


def faults_of_file(kind: str, path: Path) -> dict[str, list[str]]:
    """Faults of a file before any row is read, by expectation."""
    schema = SCHEMAS[kind]
    found: dict[str, list[str]] = {READABLE: [], COLUMNS: [], TYPES: []}
    try:
        actual = pq.read_schema(path)
    except FileNotFoundError:
        found[READABLE].append("there is no such file; run the step that writes it")
        return found
    except (pa.ArrowInvalid, OSError) as error:
        found[READABLE].append(f"it is no Parquet file: {error}")
        return found
    if actual.names != schema.names:
        found[COLUMNS] += [f"{name} is missing" for name in schema.names if name not in actual.names]
        found[COLUMNS] += [f"{name} is not declared" for name in actual.names if name not in schema.names]
        found[COLUMNS] += [] if found[COLUMNS] else ["the order differs"]
        return found
    found[TYPES] = [
        f"{f.name} is {actual.field(f.name).type}, declared is {f.type}"
        for f in schema
        if not _same(actual.field(f.name).type, f.type)
    ]
    return found


def _same(actual: pa.DataType, declared: pa.DataType) -> bool:
    if pa.types.is_list(actual) and pa.types.is_list(declared):
        return _same(actual.value_type, declared.value_type)  # the name of the inner field does not matter
    if pa.types.is_fixed_size_list(actual) and pa.types.is_fixed_size_list(declared):
        return actual.list_size == declared.list_size and _same(actual.value_type, declared.value_type)
    if pa.types.is_struct(actual) and pa.types.is_struct(declared):
        return [(f.name, f.type) for f in actual] == [(f.name, f.type) for f in declared]  # nulls are for links to find
    if pa.types.is_dictionary(declared):
        return _same(actual.value_type if pa.types.is_dictionary(actual) else actual, declared.value_type)
    return actual == declared or (pa.types.is_large_string(actual) and pa.types.is_string(declared))


def batches(kind: str, path: Path, size: int) -> Iterator[pa.Table]:
    """The rows in bounded pieces; one empty piece when there is none."""
    schema = pa.schema([f.with_type(_nullable(f.type)).with_nullable(True) for f in SCHEMAS[kind]])
    empty = True
    # buffered reading: else the columns of a whole row group, a million rows, are held beside each piece
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 16) as file:
        for batch in file.iter_batches(batch_size=size):
            empty = False
            yield pa.Table.from_batches([batch]).cast(schema)
    if empty:
        yield schema.empty_table()


def _nullable(declared: pa.DataType) -> pa.DataType:
    if pa.types.is_list(declared):
        return pa.list_(_nullable(declared.value_type))
    if pa.types.is_struct(declared):
        return pa.struct([f.with_nullable(True) for f in declared])
    return declared
