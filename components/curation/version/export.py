"""Repack the kept clips of a version: fresh WebDataset shards that hold nothing else, with manifests of their own.

    <destination>/shards/train-000000.tar … held_out-000000.tar …  <clip>.mp4 (.mov, .mkv, .nut), <clip>.json of each
    <destination>/manifests/{videos,clips,annotations,selection}.parquet      kept rows alone; URIs below destination
    <destination>/dataset.json · croissant.json · SHA256SUMS                   the latter for `sha256sum -c`

Clips are read by range, a few ahead: of the bytes, memory holds a few clips, and of the manifests one shard's rows.
Which clip goes where depends on the version and the shard size alone. A shard is there whole or not at all; an export
that was cut off goes on after the last one. The destination can be used as a data root: the clips manifest is right
there.
"""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...common.errors import BadInputError, StorageError
from ...common.identity import file_md5, file_sha256, identity
from ...common.manifest_views import row_groups
from ...common.manifests import write_in_order
from ...common.progress import track
from ...common.storage import DataRoot
from .card import card_bytes, make_card, open_kept, read_members
from .croissant import croissant_bytes, make_croissant
from .provenance import own_version
from .registry import Registry, VersionTag
from .version_files import fetch_manifests, listed_files, read_card

VERSION = "1"
SHARD_MB = 256
SPLITS = ("train", "held_out")
_STATE = ".export"  # what the export is of, and a record of each finished shard, for going on
_AHEAD = 8  # clips read ahead
_BATCH = 1 << 12  # rows of the manifests
_COLUMNS = ("clip_id", "split", "shard_uri", "member", "offset", "bytes")


@dataclass(frozen=True)
class Exported:
    """What an export holds: where, how much, and how many shards were written now and found."""

    destination: str
    clips: int
    bytes: int
    written: int
    found: int


@dataclass(frozen=True)
class _Shard:
    name: str
    rows: list[dict[str, Any]]

    @property
    def record(self) -> str:
        """Where it is told that this very shard is written."""
        rows = [[row[name] for name in _COLUMNS] for row in self.rows]
        return f"{_STATE}/{identity(version=VERSION, name=self.name, rows=rows)}.json"


def export_version(
    registry: Registry,
    tag: VersionTag,
    remote: DataRoot,
    destination: DataRoot,
    splits: Iterable[str] = SPLITS,
    shard_mb: float = SHARD_MB,
) -> Exported:
    """Write a version's kept clips to a directory or an S3 prefix.

    Args:
        registry: holds the version.
        tag: which one.
        remote: its store.
        destination: where to; files of an earlier, cut-off export of the same are found.
        splits: which clips, ``train`` and ``held_out``.
        shard_mb: a shard is closed when its clips reach this size, in 10⁶ bytes.

    Raises:
        BadInputError: the destination holds an export of something else, or no clip is in these splits.
        StorageError: a shard of the version is missing or is not what the manifest says.
    """
    manifests = fetch_manifests(listed_files(registry, str(tag), tag.name, remote), remote)
    wanted = identity(version=VERSION, tag=str(tag), content=read_card(registry, tag).get("content"),
                      splits=sorted(splits), shard_mb=shard_mb)  # fmt: skip
    _claim(destination, wanted, str(tag))
    chosen = sorted(splits)
    with tempfile.TemporaryDirectory() as scratch, open_kept(manifests) as connection:
        folder = Path(scratch)
        connection.execute("DELETE FROM kept WHERE NOT list_contains($1, split)", [chosen])
        clips = connection.execute("SELECT count(*) FROM kept").fetchall()[0][0]
        if not clips:
            raise BadInputError(f"{tag}: keeps no clip in {' or '.join(chosen)}")
        connection.execute('CREATE TABLE places (clip_id VARCHAR, shard_uri VARCHAR, "offset" BIGINT)')
        records: dict[str, dict[str, Any]] = {}
        found = 0
        total = sum(1 for _ in _plan(connection, shard_mb * 1e6))
        for shard in track(_plan(connection, shard_mb * 1e6), "shards exported", total=total):
            record = _found(shard, destination)
            found += record is not None
            records[shard.name] = record or _write_shard(shard, remote, destination, folder)
            _put_places(connection, shard.name, records[shard.name].pop("offsets"))
        files = _write_manifests(connection, folder)
        sizes = {name: (record["md5"], record["bytes"]) for name, record in records.items()}
        sizes |= {f"manifests/{kind}.parquet": (file_md5(path), path.stat().st_size) for kind, path in files.items()}
        card = make_card(tag.name, read_members(files), sizes, own_version())
        schemas = {kind: pq.read_schema(path) for kind, path in files.items()}
        described = {
            "dataset.json": card_bytes({**card, "exported_from": str(tag)}),
            "croissant.json": croissant_bytes(make_croissant(card, tag.number, sizes, schemas)),
        }
        sums = {name: record["sha256"] for name, record in records.items()}
        for kind, path in files.items():
            destination.put_named(f"manifests/{kind}.parquet", path)
            sums[f"manifests/{kind}.parquet"] = file_sha256(path)
        for name, data in described.items():
            destination.put_named(name, data)
            sums[name] = sha256(data).hexdigest()
    destination.put_named("SHA256SUMS", "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)).encode())
    written_bytes = sum(record["bytes"] for record in records.values())
    return Exported(destination.location, clips, written_bytes, total - found, found)


def _claim(destination: DataRoot, wanted: str, tag: str) -> None:
    """Find out whether the place is free, or holds this export, whole or begun."""
    mark = f"{_STATE}/export.json"
    if destination.exists(mark):
        about = json.loads(destination.read(mark))
        if about.get("export") != wanted:
            raise BadInputError(
                f"{destination.location}: holds an export of {about.get('tag')}, made with other options or before the "
                "version changed; name another place"
            )
    elif next(iter(destination.list("shards")), None):
        raise BadInputError(f"{destination.location}: holds shards already, and not of an export; name another place")
    else:
        destination.put_named(mark, json.dumps({"export": wanted, "tag": tag}).encode())


def _plan(connection: Any, shard_bytes: float) -> Iterator[_Shard]:
    """Clips to shards: by split, in the order of their ids, which are digests: neighbours are of different videos."""
    columns = ", ".join(f'kept."{name}"' for name in _COLUMNS)
    for split in SPLITS:
        rows: list[dict[str, Any]] = []
        size = number = 0
        reader = (
            connection.cursor()  # others run statements meanwhile
            .sql(
                f"""SELECT {columns}, annotations AS note FROM kept LEFT JOIN annotations USING (clip_id)
                    WHERE split = '{split}' ORDER BY kept.clip_id"""
            )
            .to_arrow_reader(_BATCH)
        )
        for batch in reader:
            for row in batch.to_pylist():
                if rows and size + row["bytes"] > shard_bytes:
                    yield _Shard(f"shards/{split}-{number:06d}.tar", rows)
                    rows, size, number = [], 0, number + 1
                rows.append(row)
                size += row["bytes"]
        if rows:
            yield _Shard(f"shards/{split}-{number:06d}.tar", rows)


def _put_places(connection: Any, shard: str, offsets: Mapping[str, int]) -> None:
    connection.register("written", pa.table({"clip_id": list(offsets), "at": list(offsets.values())}))
    connection.execute(f"INSERT INTO places SELECT clip_id, '{shard}', \"at\" FROM written")
    connection.unregister("written")


def _found(shard: _Shard, destination: DataRoot) -> dict[str, Any] | None:
    """What is recorded of a shard that an earlier run wrote."""
    if not destination.exists(shard.record) or not destination.exists(shard.name):
        return None
    record = json.loads(destination.read(shard.record))
    return record if destination.size(shard.name) == record["bytes"] else None


def _write_shard(shard: _Shard, remote: DataRoot, destination: DataRoot, folder: Path) -> dict[str, Any]:
    """Write a shard, and then its record: digests, bytes, and the offset of every clip in it."""
    path, offsets = folder / "shard.tar", {}
    with open(path, "wb") as stream, tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for row, data in _read_ahead(remote, shard.rows):
            clip = row["clip_id"]
            _add(tar, clip + PurePosixPath(row["member"]).suffix, data)
            offsets[clip] = tar.offset - _blocks(len(data))
            _add(tar, f"{clip}.json", json.dumps(_note(row, row["note"] or {}), sort_keys=True).encode())
    record = {"sha256": file_sha256(path), "md5": file_md5(path), "bytes": path.stat().st_size, "offsets": offsets}
    destination.put_named(shard.name, path)
    destination.put_named(shard.record, json.dumps(record).encode())
    return record


def _read_ahead(remote: DataRoot, rows: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Clips in order, a few of them fetched ahead."""
    with ThreadPoolExecutor(_AHEAD) as pool:
        waiting: deque[tuple[dict[str, Any], Future[bytes]]] = deque()
        for row in rows:
            waiting.append((row, pool.submit(_read_clip, remote, row)))
            if len(waiting) == _AHEAD:
                first, data = waiting.popleft()
                yield first, data.result()
        for row, data in waiting:
            yield row, data.result()


def _read_clip(remote: DataRoot, row: Mapping[str, Any]) -> bytes:
    """A clip's bytes, read with the tar header before them: that tells whether this is the member meant."""
    uri, offset, size = row["shard_uri"], row["offset"], row["bytes"]
    data = remote.read_range(uri, offset - tarfile.BLOCKSIZE, tarfile.BLOCKSIZE + size)
    try:
        header = tarfile.TarInfo.frombuf(data[: tarfile.BLOCKSIZE], "utf-8", "strict")
    except tarfile.TarError:
        header = None
    if header is None or (header.name, header.size) != (row["member"], size) or len(data) != tarfile.BLOCKSIZE + size:
        raise StorageError(
            f"{remote.location}/{uri}: there is no member {row['member']} of {size} bytes at {offset}; the shard and "
            "the clips manifest do not belong together, or the shard is damaged: register the dataset again"
        )
    return data[tarfile.BLOCKSIZE :]


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    header = tarfile.TarInfo(name)  # no time, no owner: equal content gives equal shards
    header.size, header.mode = len(data), 0o644
    tar.addfile(header, io.BytesIO(data))


def _blocks(size: int) -> int:
    """Bytes that content takes in a tar file."""
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _note(row: Mapping[str, Any], note: Mapping[str, Any]) -> dict[str, Any]:
    """What lies beside a clip in its shard: its captions and scores."""
    said = {key: value for key, value in note.items() if value is not None and not key.endswith("_uri")}
    return {"clip_id": row["clip_id"], "split": row["split"], **said}


def _write_manifests(connection: Any, folder: Path) -> dict[str, Path]:
    """The manifests of the kept clips alone; ``clips`` points into the new shards."""
    queries = {
        "videos": "SELECT * FROM videos WHERE video_id IN (FROM kept SELECT video_id) ORDER BY video_id",
        "clips": """SELECT kept.* EXCLUDE (shard_uri, "offset", member), places.shard_uri, places."offset",
                           clip_id || regexp_extract(member, '[.][^./]+$') AS member
                    FROM kept JOIN places USING (clip_id) ORDER BY clip_id""",
        "annotations": "SELECT * FROM annotations WHERE clip_id IN (FROM kept SELECT clip_id) ORDER BY clip_id",
        "selection": "SELECT * FROM selection WHERE clip_id IN (FROM kept SELECT clip_id) ORDER BY clip_id",
    }
    out = {kind: folder / f"{kind}.parquet" for kind in queries}
    for kind, query in queries.items():
        write_in_order(kind, row_groups(kind, connection.sql(query)), out[kind])
    return out
