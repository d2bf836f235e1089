"""Tar shards as WebDataset reads them: uncompressed, the same bytes for the same members, readable by range."""

from __future__ import annotations

import tarfile
from pathlib import Path
from types import TracebackType


class TarShard:
    """A tar file in the making. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> TarShard:
        self._stream = open(self.path, "wb")
        self._tar = tarfile.open(fileobj=self._stream, mode="w", format=tarfile.USTAR_FORMAT)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tar.close()
        self._stream.close()

    def add(self, member: str, path: Path) -> int:
        """Append a file as a member; returns the offset of its bytes in the tar."""
        header = tarfile.TarInfo(member)  # no time, no owner: TarInfo's defaults are zero
        header.size, header.mode = path.stat().st_size, 0o644
        offset = self._stream.tell() + tarfile.BLOCKSIZE  # a short name has one header block
        with open(path, "rb") as stream:
            self._tar.addfile(header, stream)
        return offset
