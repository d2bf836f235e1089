"""Where videos come from: a folder, an S3 prefix or a list, each as a sequence of places with what is said of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from ..common.config import Settings
from ..common.errors import BadInputError
from ..common.manifests import valid_text
from .uris import scheme_of, split_s3

LIST_SUFFIXES = (".csv", ".parquet")
_SIDECARS = (".json", ".txt")
_MAX_SIDECAR_BYTES = 1 << 20
REMEDY = "name a folder of video files, an s3://bucket/prefix, or a list (.csv or .parquet with a column uri)"
_READERS = 8  # sidecars of an S3 prefix are read by so many threads


class ListSettings(Settings):
    """What a list may name: it may come from somebody else."""

    local_anywhere: bool = False  # also files outside the list's own folder
    buckets: tuple[str, ...] = ()  # whose objects it may name, besides the bucket it lies in itself; "*" for any
    kept_query: tuple[str, ...] = ()  # query parameters of a URL that are recorded: they are no secret
    max_rows: int = 1_000_000


@dataclass(frozen=True, slots=True)
class Source:
    """One place that holds, or should hold, a video.

    Attributes:
        name: what it is called in manifest and report; unique within a run.
        uri: the place as it may be recorded.
        place: absolute path, ``s3://`` or ``http(s)://`` with all that opens it: never to be shown.
        licence: of this place; None when nobody says.
        description: caption that came with it.
        metadata: JSON of the list's other columns.
        kind: "footage", or "generated".
        fault: why the place cannot be read, as ``<short name>: <why>``.
        sidecar_fault: why what lies beside it cannot be read.
    """

    name: str
    uri: str
    place: str = field(repr=False)
    licence: str | None = None
    description: str | None = None
    metadata: str | None = None
    kind: Literal["footage", "generated"] = "footage"
    fault: str | None = None
    sidecar_fault: str | None = None


def find_sources(source: str, settings: ListSettings) -> list[Source]:
    """All places that a source names, in a fixed order, with unique names.

    Args:
        source: a folder, searched recursively; ``s3://bucket/prefix``; or a list, a file (or S3 object) that ends in
            ``.csv`` or ``.parquet`` (see ``lists``).
        settings: what a list may name.

    Raises:
        BadInputError: there is nothing of the kind, or the list cannot be read. StorageError: S3 does not answer.
    """
    from . import fetch_s3, lists

    if source.lower().startswith("s3://"):
        located = split_s3(source)
        if located is None:
            raise BadInputError(f"{source}: is no S3 location; write it as s3://bucket/prefix")
        if source.lower().endswith(LIST_SUFFIXES):
            with fetch_s3.local_copy(*located) as path:
                found = list(lists.read_list(path, source, settings))
        else:
            found = list(_below_prefix(*located))
    elif Path(source).is_dir():
        found = list(_below_folder(Path(source), ""))
    elif Path(source).suffix.lower() in LIST_SUFFIXES and Path(source).is_file():
        found = list(lists.read_list(Path(source), str(Path(source).absolute()), settings))
    else:
        raise BadInputError(f"{source}: is not there, or nothing to read videos from; {REMEDY}")
    return with_unique_names(found)


def with_unique_names(sources: list[Source]) -> list[Source]:
    """The same sources; of those with one name the later ones get a number."""
    taken: set[str] = set()
    numbers: dict[str, int] = {}  # the last one given to a name: what was taken once stays taken
    out = []
    for source in sources:
        name, number = source.name, numbers.get(source.name, 1)
        while name in taken:
            number += 1
            name = f"{source.name} ({number})"
        numbers[source.name] = number
        taken.add(name)
        out.append(source if name == source.name else replace(source, name=name))
    return out


def about_file(path: Path) -> dict[str, Any]:
    """What the sidecars beside a file say: fields of Source, and ``source``; a broken one is a ``sidecar_fault``."""

    def read(suffix: str) -> bytes | None:
        beside = path.with_suffix(suffix)
        if beside == path or not beside.is_file():
            return None
        with open(beside, "rb") as stream:
            return stream.read(_MAX_SIDECAR_BYTES + 1)

    return _about(path.stem, read)


def _about(stem: str, read: Callable[[str], bytes | None]) -> dict[str, Any]:
    about: dict[str, Any] = {}
    for suffix in reversed(_SIDECARS):  # what the JSON says wins
        try:
            data = read(suffix)
            if data is None:
                continue
            if len(data) > _MAX_SIDECAR_BYTES:
                raise ValueError(f"larger than {_MAX_SIDECAR_BYTES} bytes")
            if suffix == ".txt":
                about["description"] = data.decode("utf-8").strip() or None
                continue
            loaded = json.loads(data)
            if not isinstance(loaded, dict):
                raise ValueError("no JSON object")
            for name in ("description", "licence", "source"):
                if isinstance(loaded.get(name), str):
                    about[name] = valid_text(loaded[name]).strip() or None
        except (OSError, ValueError, RecursionError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            about["sidecar_fault"] = f"{stem}{suffix}: {(why or type(error).__name__).splitlines()[0]}"
    return about


def _source(name: str, uri: str, place: str, about: dict[str, Any]) -> Source:
    kind = about.pop("source", None)
    return Source(name, uri, place, kind=kind if kind == "generated" else "footage", **about)


def _below_folder(directory: Path, prefix: str) -> Iterator[Source]:
    """Files below a folder in sorted order; hidden ones, and sidecars of others, are passed over."""
    entries = sorted(
        (e for e in os.scandir(directory) if not e.name.startswith(".")), key=lambda e: os.fsencode(e.name)
    )
    stems = {Path(e.name).stem for e in entries if Path(e.name).suffix.lower() not in _SIDECARS}
    for entry in entries:
        name = prefix + os.fsencode(entry.name).decode("utf-8", "backslashreplace")  # names need not be text
        path = Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            yield from _below_folder(path, name + "/")
        elif path.suffix.lower() not in _SIDECARS or path.stem not in stems:
            yield _source(name, name, str(path.absolute()), about_file(path))


def _below_prefix(bucket: str, prefix: str) -> Iterator[Source]:
    """Objects below an S3 prefix in the order of their keys, with the rules of a folder."""
    from . import fetch_s3

    start = f"{prefix.rstrip('/')}/" if prefix.strip("/") else ""
    names = [name for name in fetch_s3.keys_below(bucket, start) if not _is_hidden(name)]
    if not names and start and fetch_s3.size_of(bucket, prefix) is not None:  # one object, named itself
        start, names = prefix[: prefix.rfind("/") + 1], [prefix[prefix.rfind("/") + 1 :]]
    there = set(names)
    videos = {_stem(name) for name in names if PurePosixPath(name).suffix.lower() not in _SIDECARS}
    wanted = [n for n in names if PurePosixPath(n).suffix.lower() not in _SIDECARS or _stem(n) not in videos]

    def about(name: str) -> dict[str, Any]:
        def read(suffix: str) -> bytes | None:
            beside = _stem(name) + suffix
            if beside == name or beside not in there:
                return None
            return fetch_s3.read_start(bucket, start + beside, _MAX_SIDECAR_BYTES + 1)

        return _about(PurePosixPath(name).stem, read)

    with ThreadPoolExecutor(_READERS) as threads:
        for name, said in zip(wanted, threads.map(about, wanted), strict=True):
            place = f"s3://{bucket}/{start}{name}"
            yield _source(name, place, place, said)


def _stem(name: str) -> str:
    return name[: len(name) - len(PurePosixPath(name).suffix)]


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/")) or name.endswith("/")


def is_remote(place: str) -> bool:
    """Whether a place is reached over the network."""
    return scheme_of(place) in ("s3", "http", "https")
