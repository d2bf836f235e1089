"""Tar shards without one video's members. What stays keeps its bytes and its order; only offsets change."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ...common.errors import StorageError
from ...common.storage import DataRoot


class ShardRewriter:
    """Writes shards anew, each once, wherever they lie.

    Attributes:
        moved: shard to the one in its place ("" where nothing is left) and the offset of every member in it.
        digests: first 32 hex digits of the sha256 of every member that was left out: caches are named by them.
    """

    def __init__(self, members: Mapping[str, set[str]], places: list[DataRoot], scratch: Path) -> None:
        self._members, self._places, self._scratch = members, places, scratch
        self.moved: dict[str, tuple[str, dict[str, int]]] = {}
        self.digests: set[str] = set()

    def rewrite_all(self) -> None:
        """Every shard with such members. One that is in no place any more is passed over: it was rewritten before.

        Raises:
            StorageError: a place does not answer.
        """
        for uri in sorted(self._members):
            holders = [place for place in self._places if place.exists(uri)]
            if holders:
                self.moved[uri] = self._rewrite(uri, holders)

    def point_anew(self, clips: pa.Table) -> pa.Table:
        """A clips manifest whose rows follow their members into the new shards."""
        touched = pc.is_in(clips["shard_uri"], pa.array(sorted(self.moved), pa.string()))
        rows = clips.filter(touched)
        shards, offsets = rows["shard_uri"].to_pylist(), rows["offset"].to_pylist()
        for at, (shard, member) in enumerate(zip(shards, rows["member"].to_pylist(), strict=True)):
            new, places = self.moved[shard]
            if member in places:
                shards[at], offsets[at] = new, places[member]
        for name, changed in (("shard_uri", pa.array(shards, pa.string())), ("offset", pa.array(offsets, pa.int64()))):
            values = pc.replace_with_mask(clips[name].combine_chunks(), touched.combine_chunks(), changed)
            field = clips.schema.field(name)
            clips = clips.set_column(clips.schema.get_field_index(name), field, values)
        return clips

    def _rewrite(self, uri: str, holders: list[DataRoot]) -> tuple[str, dict[str, int]]:
        target = self._scratch / "shard.tar"
        offsets: dict[str, int] = {}
        try:
            with (
                tarfile.open(holders[0].fetch(uri), "r:") as old,
                open(target, "wb") as stream,
                tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as new,
            ):
                for member in old:
                    content = old.extractfile(member)
                    if member.name in self._members[uri]:
                        self.digests.add(hashlib.sha256(content.read() if content else b"").hexdigest()[:32])
                        continue
                    new.addfile(member, content)
                    offsets[member.name] = new.offset - -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        except tarfile.TarError as error:
            raise StorageError(f"{holders[0].location}/{uri}: cannot be read as a tar shard ({error})") from error
        found = {place.put_file(target) for place in holders} if offsets else {""}
        target.unlink()
        return found.pop(), offsets
