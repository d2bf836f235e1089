"""The manifests: Parquet tables with declared Arrow schemas, the only interface between components.

Column names carry their units. A table is written in one canonical form (declared column order, rows sorted by id), so
that equal content gives equal bytes. Manifests hold no clock times.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .errors import BadInputError
from .manifest_migrations import migrate

SCHEMA_VERSION = "3"  # of the manifests that make a dataset version; the other kinds' are in SCHEMA_VERSIONS
ROW_GROUP = 1 << 20  # rows; part of the canonical form
BLOCK = 1 << 13  # rows that are plain dictionaries at a time

SOURCE = pa.struct(
    [
        pa.field("name", pa.string(), nullable=False),  # path below the source, or what the list called it
        pa.field("uri", pa.string(), nullable=False),  # where the bytes were read: a relative path, s3:// or http(s)://
        pa.field("licence", pa.string()),
        pa.field("metadata", pa.string()),  # JSON: the list's other columns, carried along
    ]
)

VIDEOS = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),  # sha256 of the bytes
        pa.field(
            "uri", pa.string(), nullable=False
        ),  # data-root URI of the bytes; "" when set aside before it was stored
        pa.field("name", pa.string(), nullable=False),  # path below the source; of several sources the first by name
        pa.field("sources", pa.list_(SOURCE), nullable=False),  # every place these bytes came from, sorted by name
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("container", pa.string()),
        pa.field("codec", pa.string()),
        pa.field("duration_s", pa.float64()),
        pa.field("fps", pa.float64()),
        pa.field("width", pa.int32()),  # as displayed: after rotation
        pa.field("height", pa.int32()),
        pa.field("frames", pa.int64()),
        pa.field("rotation", pa.int32()),  # degrees clockwise: 0, 90, 180 or 270
        pa.field("variable_fps", pa.bool_()),
        pa.field("pixel_aspect", pa.float64()),  # width of a pixel over its height; 1.0 is square
        pa.field("interlaced", pa.bool_()),
        pa.field("color_transfer", pa.string()),  # e.g. "bt709"; "smpte2084" and "arib-std-b67" are HDR
        pa.field("letterbox", pa.list_(pa.int32(), 4)),  # black bars in px as displayed: left, top, right, bottom
        pa.field("audio", pa.bool_()),
        pa.field("licence", pa.string()),
        pa.field("source", pa.string(), nullable=False),  # "footage", or "generated" for footage this project makes
        pa.field("description", pa.string()),  # caption that came with the file (sidecar), if any
        pa.field("status", pa.string(), nullable=False),  # "ok" or "set_aside"
        pa.field("error", pa.string()),  # why it was set aside
    ]
)

CLIPS = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),  # identity of video, span and cutter version
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("start_s", pa.float64(), nullable=False),  # on the source's time line
        pa.field("end_s", pa.float64(), nullable=False),
        pa.field("first_frame", pa.int64(), nullable=False),  # index in the source, display order
        pa.field("last_frame", pa.int64(), nullable=False),  # inclusive
        pa.field("cut_evidence", pa.string(), nullable=False),  # JSON: what opened and what closed the shot
        pa.field("shard_uri", pa.string(), nullable=False),  # data-root URI of the tar shard
        pa.field("member", pa.string(), nullable=False),  # name inside the tar
        pa.field("offset", pa.int64(), nullable=False),  # of the member's bytes in the tar
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("frames", pa.int64(), nullable=False),
        pa.field("fps", pa.float64(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),  # as displayed
        pa.field("height", pa.int32(), nullable=False),
    ]
)

_FRAMES3 = pa.list_(pa.float64(), 3)  # first, middle and last frame

ANNOTATIONS = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("motion_score", pa.float64()),  # mean flow magnitude, px per flow interval at the flow resolution
        pa.field("motion_unit", pa.string()),  # e.g. "px/0.5s@h128": interval and flow resolution
        pa.field("flow_uri", pa.string()),  # data-root URI of the flow maps (safetensors, float16, short side 16)
        pa.field("camera_motion", pa.list_(pa.float64(), 3)),  # mean flow dx, dy in px and radial zoom, same unit
        pa.field("text_area", _FRAMES3),  # fraction of the frame covered by text boxes, 0 to 1
        pa.field("aesthetic", _FRAMES3),
        pa.field("watermark", _FRAMES3),  # probability, 0 to 1
        pa.field("nsfw", _FRAMES3),  # probability, 0 to 1
        pa.field("caption_image", pa.string()),
        pa.field("caption_image_model", pa.string()),
        pa.field("caption_video", pa.string()),
        pa.field("caption_video_model", pa.string()),
        pa.field("caption_summary", pa.string()),
        pa.field("caption_summary_model", pa.string()),
        pa.field("similarity_image", _FRAMES3),  # of caption_image to first, middle and last frame, -1 to 1
        pa.field("similarity_video", _FRAMES3),
        pa.field("similarity_summary", _FRAMES3),
        pa.field("embedding_uri", pa.string()),  # data-root URI of the image embeddings (safetensors)
        pa.field("annotators", pa.string(), nullable=False),  # JSON: axis to "name@version"
    ]
)

# "duplicate" is the place within a group of near-duplicates: 0 for the one to keep, then 1, 2, …
AXES = ("motion", "text", "aesthetic", "similarity", "watermark", "nsfw", "duplicate")

SELECTION = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("keep", pa.bool_(), nullable=False),
        pa.field("split", pa.string()),  # "train" or "held_out"; null when dropped
        pa.field("group", pa.string()),  # near-duplicates share it and never straddle the splits; null when alone
        pa.field("reasons", pa.list_(pa.string()), nullable=False),  # axes it failed, "missing_<axis>", "nan_<axis>", …
        *[field for axis in AXES for field in (
            pa.field(f"{axis}_value", pa.float64()),
            pa.field(f"{axis}_cut", pa.float64()),  # the cut value; null when the axis is not filtered
            pa.field(f"{axis}_failed", pa.bool_(), nullable=False),
        )],
        # JSON: what was asked for. One text for all rows: kept once in memory too, however many rows there are
        pa.field("thresholds", pa.dictionary(pa.int32(), pa.string()), nullable=False),
    ]
)  # fmt: skip

# A sample is a sequence of frames out of which training takes windows. Its layout says where the frames are:
# "frames": each one encoded, in a shard (tensors: training/encode/README.md); "clip": not encoded, in the clip itself;
# "window" (and null, of schema 2): one window ready made, in a shard.
SAMPLES = pa.schema(
    [
        pa.field(
            "sample_id", pa.string(), nullable=False
        ),  # identity of clip, encoders and settings, and the variant's number
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),  # "train" or "held_out"
        pa.field("source_id", pa.string()),  # what splits go by: the source video, or an orbit's object; null: unknown
        pa.field("group", pa.string()),  # of near-duplicates, as in the selection that the clip comes from
        # every source with a clip in the group, kept or not: on one sample of a group, and where there are several
        pa.field("group_sources", pa.list_(pa.string())),
        pa.field("shard_uri", pa.string()),  # data-root URI of a safetensors shard; null for the layout "clip"
        pa.field("tensor_prefix", pa.string(), nullable=False),  # tensors are "<prefix>.<name>"
        pa.field("frames", pa.int32(), nullable=False),  # of the reference window, which evaluation looks at
        pa.field("height", pa.int32(), nullable=False),  # px
        pa.field("width", pa.int32(), nullable=False),
        pa.field("fps", pa.float64(), nullable=False),  # of the reference window
        pa.field("layout", pa.string()),
        pa.field("first_frame", pa.int32()),  # of the reference window, in the sequence
        pa.field("stride", pa.int32()),  # of the reference window
        pa.field("sequence_frames", pa.int32()),
        pa.field("sequence_fps", pa.float64()),
        pa.field("start_s", pa.float64()),  # time of the sequence's first frame in the clip
        pa.field("starts", pa.list_(pa.int32())),  # frames of the sequence whose pixels are kept: windows start there
        pa.field("flipped", pa.bool_()),  # left and right exchanged
        pa.field("crop", pa.list_(pa.float64(), 4)),  # shares of the picture cut off: left, top, right, bottom
        pa.field("text_uri", pa.string()),  # data-root URI of the shard with the captions' token states
        pa.field("text_prefix", pa.string()),
        pa.field("clip_shard", pa.string()),  # data-root URI of the tar with the clip, for the layout "clip"
        pa.field("clip_offset", pa.int64()),
        pa.field("clip_bytes", pa.int64()),
        pa.field("motion_score", pa.float64()),
        pa.field("motion_unit", pa.string()),  # of the score, as annotated; null: unknown
        pa.field("elevation_deg", pa.float64()),  # multi-view orbits only
        pa.field("captions", pa.list_(pa.string()), nullable=False),  # image, video, summary
    ]
)

ORBITS = pa.schema(
    [
        pa.field(
            "orbit_id", pa.string(), nullable=False
        ),  # identity of object, elevation, renderer version and settings
        pa.field("object_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),  # "generated" for procedural objects, else the file's name
        pa.field("split", pa.string(), nullable=False),  # by object: "train" or "held_out"
        pa.field("elevation_deg", pa.float64(), nullable=False),
        pa.field("frames", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("shard_uri", pa.string(), nullable=False),  # a tar of lossless PNG views: "<orbit_id>/<view:03d>.png"
    ]
)

SCHEMAS: dict[str, pa.Schema] = {
    "videos": VIDEOS,
    "clips": CLIPS,
    "annotations": ANNOTATIONS,
    "selection": SELECTION,
    "samples": SAMPLES,
    "orbits": ORBITS,
}
SCHEMA_VERSIONS = dict.fromkeys(SCHEMAS, SCHEMA_VERSION) | {"samples": "4"}  # none of a dataset version's own
# Parquet columns worth a dictionary, of the kind with the most rows: elsewhere it would be tried for nothing.
_REPEATING = {
    "selection": ["split", "group", "reasons.list.element", "thresholds", *(f"{axis}_cut" for axis in AXES)],
}
KEYS = {
    "videos": "video_id",
    "clips": "clip_id",
    "annotations": "clip_id",
    "selection": "clip_id",
    "samples": "sample_id",
    "orbits": "orbit_id",
}


def write_manifest(kind: str, rows: Iterable[Mapping[str, Any]] | pa.Table, path: str | Path) -> pa.Table:
    """Write a manifest atomically, in canonical form.

    Args:
        kind: a key of SCHEMAS.
        rows: mappings with the declared columns (missing nullable ones become null), or a table.
        path: the Parquet file.

    Returns:
        The table as written.

    Raises:
        BadInputError: a row has an unknown column or a value of the wrong type.
    """
    table = sorted_table(kind, rows)
    write_in_order(kind, (table.slice(at, ROW_GROUP) for at in range(0, len(table), ROW_GROUP)), path)
    return table.replace_schema_metadata(_metadata(kind))


def sorted_table(kind: str, rows: Iterable[Mapping[str, Any]] | pa.Table) -> pa.Table:
    """Rows as a table of the declared schema, sorted by id.

    Raises:
        BadInputError: as ``write_manifest``.
    """
    schema = SCHEMAS[kind]
    if not isinstance(rows, pa.Table):
        rows = list(rows)
        if unknown := {name for row in rows for name in row} - set(schema.names):
            raise BadInputError(f"{kind} manifest: unknown columns {sorted(unknown)}; the schema has {schema.names}")
        try:
            rows = pa.Table.from_pylist(rows, schema=pa.schema([field.with_nullable(True) for field in schema]))
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise BadInputError(f"{kind} manifest: {error}") from error
    table = rows.select(schema.names)
    for field in schema:
        if not field.nullable and table[field.name].null_count:
            raise BadInputError(f"{kind} manifest: column {field.name} must not be null")
    return table.cast(schema).sort_by(KEYS[kind])


def write_in_order(kind: str, tables: Iterable[pa.Table], path: str | Path) -> None:
    """Write a manifest a row group at a time, atomically: the bytes of ``write_manifest`` in the memory of one group.

    Args:
        kind: a key of SCHEMAS.
        tables: in the declared schema and sorted by id throughout, ROW_GROUP rows each, the last one fewer.
        path: the Parquet file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    schema = SCHEMAS[kind].with_metadata(_metadata(kind))
    repeating = _REPEATING.get(kind, True)
    with pq.ParquetWriter(partial, schema, compression="zstd", use_dictionary=repeating) as writer:
        for table in tables:
            # one chunk a column: where a table was pieced together must not show in the file's pages
            whole = table.replace_schema_metadata(schema.metadata).combine_chunks()
            writer.write_table(whole, row_group_size=ROW_GROUP)
    partial.replace(path)


def _metadata(kind: str) -> dict[str, str]:
    return {"svdflow.kind": kind, "svdflow.schema_version": SCHEMA_VERSIONS[kind]}


def read_manifest(kind: str, path: str | Path) -> pa.Table:
    """Read a manifest and hold it against its declared schema; one of an older schema is brought up to this one.

    Raises:
        BadInputError: no such file, not Parquet, another kind of manifest, other columns than declared, or a newer
            schema.
    """
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise BadInputError(f"{path}: there is no {kind} manifest here; run the step that writes it") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise BadInputError(f"{path}: cannot be read as a {kind} manifest: {error}") from error
    current = SCHEMA_VERSIONS[kind]
    if (version := _schema_version(kind, table.schema)) != current:
        table = migrate(kind, table, version, current, str(path))
    schema = SCHEMAS[kind]
    if table.schema.names != schema.names:
        odd = sorted(set(table.schema.names) ^ set(schema.names)) or "the same names in another order"
        raise BadInputError(f"{path}: not a {kind} manifest of schema {current}: columns differ: {odd}")
    try:
        return table.cast(schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise BadInputError(f"{path}: {kind} manifest with columns of the wrong type: {error}") from error


def read_rows(kind: str, path: str | Path) -> list[dict[str, Any]]:
    """A manifest as a list of plain dictionaries (for small ones)."""
    return read_manifest(kind, path).to_pylist()


def valid_text(text: str) -> str:
    """A text as a manifest can hold it: JSON may name halves of a surrogate pair, which UTF-8 cannot."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def read_blocks(kind: str, path: str | Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Some columns of a manifest, BLOCK rows at a time, in the order of the file.

    Raises:
        BadInputError: as ``read_manifest``.
    """
    with tempfile.TemporaryDirectory() as folder:
        current = current_file(kind, Path(path), Path(folder))
        # buffered reading: else the columns of a whole row group, a million rows, are held beside each block
        with pq.ParquetFile(current, pre_buffer=False, buffer_size=1 << 16) as file:
            if file.schema_arrow.names != SCHEMAS[kind].names:
                read_manifest(kind, current)  # says which columns are odd
            schema = pa.schema([SCHEMAS[kind].field(name) for name in columns])
            try:
                for batch in file.iter_batches(batch_size=BLOCK, columns=list(columns)):
                    yield pa.Table.from_batches([batch]).select(list(columns)).cast(schema)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError, OSError) as error:
                raise BadInputError(f"{path}: cannot be read as a {kind} manifest: {error}") from error


def current_file(kind: str, path: Path, folder: Path) -> Path:
    """A file of the present schema, for readers that go to the Parquet file itself: the file, or a migrated copy.

    Args:
        kind: a key of SCHEMAS.
        path: the manifest.
        folder: takes the copy, when one is needed.

    Raises:
        BadInputError: as ``read_manifest``.
    """
    try:
        current = _schema_version(kind, pq.read_schema(path)) == SCHEMA_VERSIONS[kind]
    except (OSError, pa.ArrowInvalid):
        current = False  # read_manifest says what is wrong
    if current:
        return path
    copy = folder / f"{kind}-of-schema-{SCHEMA_VERSIONS[kind]}.parquet"
    write_manifest(kind, read_manifest(kind, path), copy)
    return copy


def _schema_version(kind: str, schema: pa.Schema) -> str:
    """Of a Parquet file; one that does not say is taken to be of the present schema."""
    present = SCHEMA_VERSIONS[kind].encode()
    return (schema.metadata or {}).get(b"svdflow.schema_version", present).decode(errors="replace")
