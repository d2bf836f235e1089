"""What manifests know of one video: its clips, where their bytes lie, and the objects that are its alone."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...common.files import write_atomic
from ...common.manifest_views import open_views, row_groups
from ...common.manifests import SCHEMA_VERSIONS, SCHEMAS, write_in_order

_SAYS = ("caption_image", "caption_video", "caption_summary")


@dataclass
class Subject:
    """A video that is to be forgotten.

    Attributes:
        video_id: sha256 of its bytes.
        clips: ids of its clips.
        members: shard to the names of its members there.
        places: (shard, offset, bytes) of every clip.
        objects: its bytes, embeddings, flow maps and latents, which no other clip shares.
        names: what the video was called, and places that it came from.
        captions: of its clips.
        bytes: sizes of the video.
    """

    video_id: str
    clips: set[str] = field(default_factory=set)
    members: dict[str, set[str]] = field(default_factory=dict)
    places: set[tuple[str, int, int]] = field(default_factory=set)
    objects: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    captions: set[str] = field(default_factory=set)
    bytes: set[int] = field(default_factory=set)

    @staticmethod
    def find(video_id: str, manifests: Iterable[Mapping[str, Path]], clips: Iterable[str] = ()) -> Subject:
        """Gather it from manifests of any schema.

        Args:
            video_id: as in the videos manifest.
            manifests: sets of them, kind to file.
            clips: ids of its clips that are known already.
        """
        subject = Subject(video_id, set(clips))
        sets = list(manifests)
        for each in sets:  # first all clips, then all that hangs on them
            subject._read_videos_and_clips(each)
        shared: set[str] = set()
        for each in sets:
            for kind in ("annotations", "samples"):
                if kind in each:
                    shared |= subject._read_objects(each[kind], latents=kind == "samples")
        subject.objects -= shared
        return subject

    @property
    def known(self) -> bool:
        """Whether any manifest has it."""
        return bool(self.clips or self.bytes)

    def is_in(self, manifests: Mapping[str, Path], shards: Iterable[str]) -> bool:
        """Whether a version holds it: a row of it, or a shard with its bytes."""
        for kind in ("videos", "clips"):
            if pc.any(
                pc.equal(pq.read_table(manifests[kind], columns=["video_id"])["video_id"], self.video_id)
            ).as_py():
                return True
        return not self.members.keys().isdisjoint(shards)

    def without(self, table: pa.Table) -> pa.Table:
        """A manifest without its rows."""
        for column, values in (("video_id", [self.video_id]), ("clip_id", sorted(self.clips))):
            if column in table.schema.names:
                table = table.filter(pc.invert(pc.is_in(table[column], pa.array(values, pa.string()))))
        return table

    def is_named_by(self, table: pa.Table) -> bool:
        """Whether a manifest has rows of it, or names it among the near-duplicates of another video."""
        if "group_sources" in table.schema.names:
            named = pc.list_flatten(table["group_sources"])
            if pc.any(pc.equal(named, pa.scalar(self.video_id, named.type))).as_py():
                return True
        return len(self.without(table)) < len(table)

    def write_without(
        self, kind: str, path: Path, out: Path, change: Callable[[pa.Table], pa.Table] | None = None
    ) -> None:
        """Write a manifest without its rows, in its own schema; in canonical form where that is the present one.

        Args:
            kind: of the manifest.
            path: the file.
            out: the file to write; may be the same.
            change: made to the table besides.
        """
        about = pq.read_schema(path)
        if (about.metadata or {}).get(b"svdflow.schema_version") == SCHEMA_VERSIONS[kind].encode():
            self._stream_without(kind, path, out, change or (lambda table: table))
            return
        table = self.without(pq.read_table(path))
        table = change(table) if change else table
        buffer = BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        write_atomic(out, buffer.getvalue())

    def _stream_without(self, kind: str, path: Path, out: Path, change: Callable[[pa.Table], pa.Table]) -> None:
        columns = SCHEMAS[kind].names
        others = " AND ".join(
            test
            for column, test in (("video_id", "video_id <> $1"), ("clip_id", "NOT list_contains($2, clip_id)"))
            if column in columns
        )
        given = {"1": self.video_id, "2": sorted(self.clips)}
        with tempfile.TemporaryDirectory() as scratch, open_views("forget", {kind: path}, Path(scratch)) as connection:
            query = f"SELECT * FROM {kind} WHERE {others or 'true'} ORDER BY {columns[0]}"
            rows = connection.sql(query, params={n: value for n, value in given.items() if f"${n}" in query})
            write_in_order(kind, map(change, row_groups(kind, rows)), out)

    def _read_videos_and_clips(self, manifests: Mapping[str, Path]) -> None:
        if "videos" in manifests:
            for row in _rows(manifests["videos"], self.video_id):
                self.bytes.add(row["bytes"])
                self.objects |= {row["uri"]} - {""}
                self.names |= {row["name"], *(source["name"] for source in row.get("sources") or ())}
        if "clips" in manifests:
            for row in _rows(manifests["clips"], self.video_id):
                self.add_clip(row)

    def add_clip(self, row: Mapping[str, Any]) -> None:
        """Take in a row of a clips manifest."""
        self.clips.add(row["clip_id"])
        self.members.setdefault(row["shard_uri"], set()).add(row["member"])
        self.places.add((row["shard_uri"], row["offset"], row["bytes"]))

    def _read_objects(self, path: Path, latents: bool) -> set[str]:
        """Take the objects of its rows; returns those that rows of others name too. A shard of latents goes whole."""
        names = pq.read_schema(path).names
        uris = [name for name in names if name.endswith("_uri")]
        said = [name for name in _SAYS if name in names]
        clips = pa.array(sorted(self.clips), pa.string())
        found: dict[str, set[str]] = {name: set() for name in uris}
        for table in _batches(path, ["clip_id", *uris, *said]):
            mine = table.filter(pc.is_in(table["clip_id"], clips))
            for name in uris:
                found[name] |= set(mine[name].drop_null().to_pylist())
            for name in said:
                self.captions |= set(mine[name].drop_null().to_pylist()) - {""}
        self.objects = self.objects.union(*found.values())
        shared: set[str] = set()
        if latents or not any(found.values()):
            return shared
        for table in _batches(path, ["clip_id", *uris]):
            others = table.filter(pc.invert(pc.is_in(table["clip_id"], clips)))
            for name in uris:
                same = pc.is_in(others[name], pa.array(sorted(found[name]), pa.string()))
                shared |= set(others.filter(same)[name].to_pylist())
        return shared


def _batches(path: Path, columns: list[str]) -> Iterator[pa.Table]:
    for batch in pq.ParquetFile(path).iter_batches(1 << 16, columns=columns):
        yield pa.Table.from_batches([batch])


def _rows(path: Path, video_id: str) -> list[dict[str, Any]]:
    return pq.read_table(path, filters=pc.field("video_id") == video_id).to_pylist()
