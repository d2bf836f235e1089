"""Lists of videos: CSV or Parquet with a column ``uri``. A list may come from somebody else: what it names is checked.

``licence`` (or ``license``), ``description`` and ``name`` are read; every other column is carried along as JSON.
"""

from __future__ import annotations

import csv
import json
import math
import os
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import unquote, urlsplit

from ..common.errors import BadInputError
from .sources import ListSettings, Source
from .uris import scheme_of, split_s3, text_without_secrets, without_secrets

_OWN_COLUMNS = ("uri", "name", "licence", "license", "description")
_BATCH = 4096
_LONGEST_HEADER = 1 << 16


class _Refused(Exception):
    """A row names what a list may not, or what cannot be understood: ``<short name>: <why>``."""


def read_list(path: Path, location: str, settings: ListSettings) -> Iterator[Source]:
    """The rows of a list as sources. A row that cannot be followed is a source with a fault, and counted.

    Args:
        path: the list, a local file.
        location: where the list lies (absolute path or ``s3://``): relative URIs are relative to its folder.
        settings: what it may name.

    Raises:
        BadInputError: the file is no CSV or Parquet, has no column ``uri``, or too many rows.
    """
    rows = _csv_rows(path, location) if location.lower().endswith(".csv") else _parquet_rows(path, location)
    for number, row in enumerate(rows, 1):
        if number > settings.max_rows:
            raise BadInputError(f"{location}: has more than {settings.max_rows} rows; split it, or set lists.max_rows")
        yield _source(row, number, location, settings)


def _source(row: dict[str, Any], number: int, location: str, settings: ListSettings) -> Source:
    uri = _text(row.get("uri"))
    fault = None
    place, recorded = "", without_secrets(uri, settings.kept_query)
    try:
        place, recorded = _resolve(uri, location, settings)
    except _Refused as refused:
        fault = str(refused)
    kept = settings.kept_query
    others = {name: _plain(value, kept) for name, value in row.items() if name and name not in _OWN_COLUMNS}
    return Source(
        name=text_without_secrets(_text(row.get("name")), kept) or recorded or f"row {number}",
        uri=recorded,
        place=place,
        licence=_text(row.get("licence")) or _text(row.get("license")) or None,
        description=text_without_secrets(_text(row.get("description")), kept) or None,
        metadata=json.dumps(others, sort_keys=True, ensure_ascii=False) if others else None,
        fault=fault,
    )


def _resolve(uri: str, location: str, settings: ListSettings) -> tuple[str, str]:
    """The place that a row's URI means, and the URI as it may be recorded."""
    scheme = scheme_of(uri)
    if not uri:
        raise _Refused("no uri: the row names no place")
    if "\0" in uri:
        raise _Refused("unreadable: the name of the place holds a zero byte")
    if scheme in ("http", "https"):
        try:
            if not urlsplit(uri).hostname:
                raise ValueError
        except ValueError:
            raise _Refused("unreadable: this is no URL") from None
        return uri, without_secrets(uri, settings.kept_query)
    if not scheme and location.startswith("s3://") and not os.path.isabs(uri):
        folder = location[: location.rfind("/") + 1]
        place = folder[:5] + posixpath.normpath(folder[5:] + uri)
        if not place.startswith(folder) and not settings.local_anywhere:
            raise _Refused("refused: it lies outside the list's folder (lists.local_anywhere allows that)")
        uri, scheme = place, "s3"
    if scheme == "s3":
        located = split_s3(uri)
        if located is None or not located[1]:
            raise _Refused("unreadable: this is no s3://bucket/key")
        own = split_s3(location)
        if located[0] not in (*settings.buckets, *(own or ())[:1]) and "*" not in settings.buckets:
            raise _Refused(f"refused: bucket {located[0]} is none that a list may name (lists.buckets allows it)")
        return uri, uri
    if scheme not in ("", "file"):
        raise _Refused(f"unsupported: {scheme} is none of file, s3, http and https")
    return _resolve_local(uri, location, settings)


def _resolve_local(uri: str, location: str, settings: ListSettings) -> tuple[str, str]:
    path = uri
    if scheme_of(uri) == "file":
        parts = urlsplit(uri)
        if parts.netloc not in ("", "localhost"):
            raise _Refused("unsupported: a file:// URI of another host")
        path = unquote(parts.path)
    if location.startswith("s3://"):
        if not settings.local_anywhere:
            raise _Refused("refused: a list in S3 may name no local file (lists.local_anywhere allows that)")
        return os.path.abspath(path), f"file://{path}"
    folder = os.path.dirname(location)
    place = os.path.normpath(os.path.join(folder, path))
    real, real_folder = os.path.realpath(place), os.path.realpath(folder)
    if not settings.local_anywhere and os.path.commonpath([real, real_folder]) != real_folder:
        raise _Refused("refused: it lies outside the list's folder (lists.local_anywhere allows that)")
    return real, os.path.relpath(place, folder)


def _csv_rows(path: Path, location: str) -> Iterator[dict[str, Any]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True, delimiter=_delimiter(stream))
            reader.fieldnames = _columns([name or "" for name in reader.fieldnames or []], location)
            for row in reader:
                if None in row:
                    raise BadInputError(
                        f"{location}: line {reader.line_num} has more fields than the header; quote fields with commas"
                    )
                yield row
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise BadInputError(f"{location}: cannot be read as CSV in UTF-8: {error}") from None


def _delimiter(stream: TextIO) -> str:
    """What parts the fields: the comma, else what spreadsheets write where the comma is the decimal point."""
    header = stream.readline(_LONGEST_HEADER)
    stream.seek(0)
    named = (d for d in ",;\t" if any(name.strip().strip('"').lower() == "uri" for name in header.split(d)))
    return next(named, ",")


def _parquet_rows(path: Path, location: str) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = _columns(file.schema_arrow.names, location)
            for batch in file.iter_batches(batch_size=_BATCH):
                for row in batch.to_pylist():
                    yield dict(zip(names, row.values(), strict=True))
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise BadInputError(f"{location}: cannot be read as Parquet: {str(error).splitlines()[0]}") from None


def _columns(names: list[str], location: str) -> list[str]:
    """The header, our own columns in lower case."""
    names = [name.strip().lower() if name.strip().lower() in _OWN_COLUMNS else name.strip() for name in names]
    if "uri" not in names:
        raise BadInputError(f"{location}: has no column uri, only {', '.join(names) or 'none at all'}; add it")
    if twice := sorted({name for name in names if name and names.count(name) > 1}):
        raise BadInputError(f"{location}: has the column {twice[0]!r} twice; rename one")
    return names


def _text(value: Any) -> str:
    if isinstance(value, bytes):  # texts of a file whose writer did not mark them as such
        value = value.decode("utf-8", "replace")
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value).strip()


def _plain(value: Any, kept_query: tuple[str, ...]) -> Any:
    """A cell as JSON can hold it, without secrets."""
    if isinstance(value, str):
        return text_without_secrets(value, kept_query)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): _plain(inner, kept_query) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner, kept_query) for inner in value]
    if value is None or isinstance(value, (bool, int)):
        return value
    return text_without_secrets(value.hex() if isinstance(value, bytes) else str(value), kept_query)
