"""Where one video shows beyond the versions: cached results of a data root, scratch files, files of a work directory.

A cached result can always be computed again, so what may tell of the video goes, rather than being looked into. A
result is known to tell of it by the objects, ids or captions among its values, by what its key begins with (the sha256
of a clip's bytes or the identity of a clip's place), or by its kind. Of pictures and videos that runs left in a work
directory none says whose they are: all go, and the next run shows what it still has.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...common.identity import file_sha256, identity
from ...common.progress import track
from ...common.storage import DataRoot, uri_md5
from .references import RESULTS, named_objects, with_trees
from .subject import Subject

# kinds that show clips, or list the files of a version, and do not say which clips these are
_SHOW_CLIPS = ("filter", "validate", "serve", "evaluate", "evaluation_video", "measure_interpolation", "checkout")
_SHOWN_IN = {"train": ("samples", "logs")}  # fields of records that stay: a model's samples, and their true frames
_PASSING = ("artifacts", "steps", "logs")  # what runs leave in a work directory; the newest run writes it again
_TEXTS = ("", ".json", ".jsonl", ".html", ".log", ".events", ".txt", ".md", ".yaml", ".csv")
_MAX_TEXT_BYTES = 256 << 20
_SHOWN = "generated"  # true and generated videos of held-out clips
_PICTURES = (b"data:image/", b"data:video/")  # within reports
_TOP = ("report.html", "summary.json", "selection.json", "validation*.html", "validation*_failing_rows.jsonl")
# in scratch: what unfinished trainings show of held-out clips, and what they keep of shards of an object store; folders
# stay, since a training in progress writes on into them
_REMADE = ("training/*/samples/**/*", "training/*/tensorboard/**/*", "blocks/??/*")


@dataclass
class Traces:
    """What a data root holds of a video.

    Attributes:
        results: records to drop.
        objects: what they name.
        elsewhere: what records that stay name.
        updated: records that stay, with the new place of members that are not the video's.
    """

    results: set[str] = field(default_factory=set)
    objects: set[str] = field(default_factory=set)
    elsewhere: set[str] = field(default_factory=set)
    updated: dict[str, bytes] = field(default_factory=dict)


def clips_in_results(video_id: str, root: DataRoot) -> Iterator[dict[str, Any]]:
    """Rows of its clips that records hold, as ``split`` writes them."""
    for uri in root.list(RESULTS):
        data = root.read(uri)
        if video_id.encode() in data:
            yield from _clip_rows(json.loads(data), video_id)


def _clip_rows(value: Any, video_id: str) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if value.get("video_id") == video_id and {"clip_id", "shard_uri", "member", "offset", "bytes"} <= value.keys():
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _clip_rows(inner, video_id)


def find_traces(
    subject: Subject,
    root: DataRoot,
    gone: set[str],
    digests: set[str],
    moved: Mapping[str, tuple[str, dict[str, int]]],
) -> Traces:
    """Look through the cached results of a data root.

    Args:
        subject: the video.
        root: the data root.
        gone: objects that are to be removed.
        digests: first 32 hex digits of the sha256 of each of its clips.
        moved: as ``ShardRewriter.moved``.
    """
    traces = Traces()
    told = {subject.video_id, *subject.clips, *subject.captions} | (gone - moved.keys())
    begins = digests | {identity(shard=shard, offset=at, bytes=size) for shard, at, size in subject.places}
    for uri in track(list(root.list(RESULTS)), "cached results looked through"):
        data = root.read(uri)
        kind, key = uri.split("/")[1], uri.rsplit("/", 1)[1]
        value = json.loads(data)
        if kind in _SHOW_CLIPS or key[:32] in begins or told & set(_texts(value)):
            traces.results.add(uri)
            traces.objects |= with_trees(named_objects(data), root) - moved.keys()
            continue
        if shown := {name: value.pop(name) for name in _SHOWN_IN.get(kind, ()) if name in value}:
            traces.objects |= with_trees(named_objects(json.dumps(shown).encode()), root)
        if shown or named_objects(data) & moved.keys():
            data = json.dumps(_moved(value, moved), sort_keys=True).encode()
            traces.updated[uri] = data
        traces.elsewhere |= with_trees(named_objects(data), root)
    return traces


def _texts(value: Any) -> Iterator[str]:
    """All texts among the values of a JSON value; the names of fields say nothing of whom it is about."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def _moved(value: Any, moved: Mapping[str, tuple[str, dict[str, int]]]) -> Any:
    """A record with the rows of clips whose shard was written anew pointing into the new one."""
    if isinstance(value, list):
        return [_moved(inner, moved) for inner in value]
    if not isinstance(value, dict):
        return value
    new, offsets = moved.get(value.get("shard_uri", ""), ("", {}))
    if new and value.get("member") in offsets:
        return {**value, "shard_uri": new, "offset": offsets[value["member"]]}
    return {key: _moved(inner, moved) for key, inner in value.items()}


def forget_scratch(subject: Subject, gone: Iterable[str], root: DataRoot) -> list[str]:
    """Remove what scratch has of the video: copies by work in progress, and those of folders that are gone.

    Samples and logs of unfinished trainings and their cached blocks do not say whose they are: all go.
    """
    for uri in gone:
        if uri.endswith(".dir"):
            shutil.rmtree(root.scratch("trees") / uri_md5(uri), ignore_errors=True)
    removed = []
    for path in [path for pattern in _REMADE for path in root.scratch().glob(pattern)]:
        if not path.is_dir() or path.is_symlink():
            path.unlink(missing_ok=True)
            removed.append(path.name)
    for path in [path for path in root.scratch().rglob("*") if path.is_file() and not path.is_symlink()]:
        if path.stat().st_size in subject.bytes and file_sha256(path) == subject.video_id:
            path.unlink()
            removed.append(path.name)
    return removed


def forget_in_workdir(workdir: Path, subject: Subject, remove: bool) -> list[str]:
    """Manifests lose its rows; reports, logs and passing artifacts that tell of it or may show it go.

    Args:
        workdir: the work directory.
        subject: the video.
        remove: do it; otherwise only tell.

    Returns:
        The files concerned, relative to the work directory.
    """
    tokens = [*_PICTURES, *(text.encode() for text in (subject.video_id, *subject.clips, *subject.names))]
    concerned = []
    for path in _left_by_runs(workdir):
        is_manifest = path.suffix == ".parquet" and path.parent.name == "manifests"
        if not _tells_of(path, subject, tokens):
            continue
        concerned.append(path.relative_to(workdir).as_posix())
        if remove and is_manifest:
            subject.write_without(path.stem, path, path)
        elif remove:
            path.unlink()
    return concerned


def _left_by_runs(workdir: Path) -> Iterator[Path]:
    for place in ("manifests", _SHOWN, *_PASSING):
        yield from sorted(path for path in (workdir / place).rglob("*") if path.is_file() and not path.is_symlink())
    yield from (path for pattern in _TOP for path in sorted(workdir.glob(pattern)) if path.is_file())


def _tells_of(path: Path, subject: Subject, tokens: Iterable[bytes]) -> bool:
    if manifest_kind(path):
        return subject.is_named_by(pq.read_table(path))
    if path.suffix == ".mp4":
        return True
    if path.suffix not in _TEXTS or path.stat().st_size > _MAX_TEXT_BYTES:
        return False
    content = path.read_bytes()
    return any(token in content for token in tokens)


def manifest_kind(path: Path) -> str:
    """Which manifest a file is, whatever its name; "" when it is none."""
    try:
        with open(path, "rb") as stream:
            if stream.read(4) != b"PAR1":
                return ""
        return (pq.read_schema(path).metadata or {}).get(b"svdflow.kind", b"").decode()
    except (pa.ArrowInvalid, OSError):
        return ""


def manifests_of_runs(workdir: Path) -> list[dict[str, Path]]:
    """The manifests that runs left in a work directory, kind to file, each by itself."""
    return [{kind: path} for path in _left_by_runs(workdir) if (kind := manifest_kind(path))]
