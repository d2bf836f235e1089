"""A version's description as Croissant 1.0 (JSON-LD), for catalogues and loaders that know no svdflow.

https://docs.mlcommons.org/croissant/docs/croissant-spec-1.0.html. The manifests are record sets, with the columns that
are single values or lists of them; the shards are a file set. No clock: when a version was made is said by its tag.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
_KEYS = {"videos": "video_id", "clips": "clip_id", "annotations": "clip_id", "selection": "clip_id"}
# one level deep: mlcroissant 1.1 follows no chains, so that clips do not refer to videos here
_REFERENCES = {("annotations", "clip_id"): "clips", ("selection", "clip_id"): "clips"}
_ABOUT = {
    "videos": "The source videos: what they are and where they came from.",
    "clips": "The clips cut out of them: span, cut evidence, and where the bytes lie (shard, member, offset).",
    "annotations": "What was measured on every clip, and its captions.",
    "selection": "Which clips are kept, in which split, and for each axis the value and the cut.",
}


def make_croissant(
    card: Mapping[str, Any],
    number: tuple[int, int, int],
    files: Mapping[str, tuple[str, int]],
    schemas: Mapping[str, pa.Schema],
) -> dict[str, Any]:
    """The description of a version.

    Args:
        card: the version's card.
        number: of the version.
        files: path in the dataset to (md5, bytes); manifests and shards.
        schemas: columns of each manifest.
    """
    counts, provenance = card["counts"], card["provenance"]
    licences = [each for each in provenance["licences"] if each != "unknown"]
    manifests = [path for path in sorted(files) if path.startswith("manifests/")]
    shards = {path: files[path] for path in sorted(files) if path.endswith(".tar")}
    described: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": card["name"],
        "version": ".".join(map(str, number)),
        "description": (
            f"{counts['clips']} video clips ({counts['seconds']:g} s) of {counts['videos']} videos: {counts['train']} "
            f"to train on, {counts['held_out']} held out. Shards may hold clips that are not in the dataset: which are "
            "is said by the record set selection (keep)."
        ),
        "license": licences or ["unknown"],
        "isLiveDataset": False,
        "distribution": [
            *[_file(path, *files[path], "application/x-parquet") for path in manifests],
            *[_file(path, *entry, "application/x-tar") for path, entry in shards.items()],
        ],
        "recordSet": [_records(_kind(path), path, schemas[_kind(path)]) for path in manifests],
    }
    return described


def croissant_bytes(described: Mapping[str, Any]) -> bytes:
    """The description as a file; the context first, as readers expect it."""
    return (json.dumps(described, indent=1, ensure_ascii=False) + "\n").encode()


def _kind(path: str) -> str:
    return path.removeprefix("manifests/").removesuffix(".parquet")


def _file(path: str, md5: str, size: int, encoding: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": path,
        "name": path,
        "contentUrl": path,
        "contentSize": f"{size} B",
        "encodingFormat": encoding,
        "md5": md5,
    }


def _records(kind: str, path: str, schema: pa.Schema) -> dict[str, Any]:
    fields = [_field(kind, path, column) for column in schema if _data_type(column.type)]
    key = {"@id": f"{kind}/{_KEYS[kind]}"}
    named = {"@type": "cr:RecordSet", "@id": kind, "name": kind, "description": _ABOUT[kind]}
    return {**named, "key": key, "field": fields}


def _field(kind: str, path: str, column: pa.Field) -> dict[str, Any]:
    field: dict[str, Any] = {
        "@type": "cr:Field",
        "@id": f"{kind}/{column.name}",
        "name": f"{kind}/{column.name}",
        "dataType": _data_type(column.type),
        "source": {"fileObject": {"@id": path}, "extract": {"column": column.name}},
    }
    if pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
        field["repeated"] = True
    if other := _REFERENCES.get((kind, column.name)):
        field["references"] = {"field": {"@id": f"{other}/{column.name}"}}
    return field


def _data_type(kind: pa.DataType) -> str | None:
    """Of a value, or of a list's values; None for what is nested deeper."""
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_string(kind):
        return "sc:Text"
    if pa.types.is_boolean(kind):
        return "sc:Boolean"
    if pa.types.is_integer(kind):
        return "sc:Integer"
    return "sc:Float" if pa.types.is_floating(kind) else None
