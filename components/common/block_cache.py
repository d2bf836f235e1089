"""A local copy of what is read of large remote objects: blocks of fixed size in a directory of bounded size.

Several processes may share the directory. A block is written aside and renamed, and ends with its own checksum, so that
a reader sees a whole block or none, also after a kill or a power cut. What was used longest ago goes first.
"""

from __future__ import annotations

import fcntl
import os
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from .errors import ConfigError
from .files import is_disk_full, storage_error

BLOCK_BYTES = 4 << 20
_SUM_BYTES = 4
_SHARE = 32  # a process looks at the whole directory whenever it has written one such part of the limit
_ABANDONED_S = 600.0  # a block that is still being written after so long belongs to a process that was killed
_PARTIAL = ".partial-"


class BlockCache:
    """Reads ranges of objects through a directory.

    Args:
        directory: where blocks lie; made when it is not there.
        limit_bytes: of all blocks together. It may be exceeded by a block, and by one part in 32 for each further
            process that writes at the same time.
        block_bytes: how much is fetched at once.

    Raises:
        ConfigError: the limit is smaller than a block.
        StorageError: the directory cannot be made.
    """

    def __init__(self, directory: Path, limit_bytes: int, block_bytes: int = BLOCK_BYTES) -> None:
        self.directory, self.limit_bytes, self.block_bytes = directory, limit_bytes, block_bytes
        self.fetched_bytes = 0  # by this instance, for reuse to be seen
        self._written = limit_bytes  # so that the first write looks at what others have left
        if limit_bytes < block_bytes:
            raise ConfigError(f"a cache of {limit_bytes} bytes does not hold a block of {block_bytes}; make it larger")
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(directory, error) from error

    def read(self, name: str, offset: int, length: int, fetch: Callable[[int, int], bytes]) -> bytes:
        """A range of an object.

        Args:
            name: of the object; its content never changes.
            offset: of the range.
            length: of the range; what lies behind the object's end is left out.
            fetch: gives ``(offset, length)`` of the object, less at its end.
        """
        parts = []
        position, end = offset, offset + length
        while position < end:
            number, inside = divmod(position, self.block_bytes)
            block = self._block(name, number, fetch)
            part = block[inside : inside + end - position]
            if not part:
                break
            parts.append(part)
            position += len(part)
            if len(block) < self.block_bytes:
                break
        return b"".join(parts)

    def _block(self, name: str, number: int, fetch: Callable[[int, int], bytes]) -> bytes:
        digest = sha256(f"{name}\n{number}\n{self.block_bytes}".encode()).hexdigest()
        path = self.directory / digest[:2] / digest[2:40]
        try:
            data = path.read_bytes()
            if len(data) >= _SUM_BYTES and data[-_SUM_BYTES:] == _sum(data[:-_SUM_BYTES]):
                os.utime(path)
                return data[:-_SUM_BYTES]
        except FileNotFoundError:  # never here, or evicted by another process
            pass
        block = fetch(number * self.block_bytes, self.block_bytes)
        self.fetched_bytes += len(block)
        self._write(path, block + _sum(block))
        return block

    def _write(self, path: Path, data: bytes) -> None:
        self._written += len(data)
        if self._written >= self.limit_bytes // _SHARE:
            self._evict(len(data))
            self._written = 0
        begun = path.with_name(f"{path.name}{_PARTIAL}{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            begun.write_bytes(data)
            begun.replace(path)
        except FileNotFoundError:  # who emptied the directory meanwhile took it along
            pass
        except OSError as error:  # a full disk makes reading slower, and stops nothing
            if not is_disk_full(error):
                raise storage_error(path, error) from error
            self._evict(self.limit_bytes // 2)
        finally:
            begun.unlink(missing_ok=True)

    def _evict(self, room: int) -> None:
        """Remove the blocks used longest ago until there is ``room``, and what killed processes left half written."""
        with self._locked():
            entries, held = [], 0
            for path in self.directory.glob("??/*"):
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue
                if _PARTIAL in path.name and time.time() - status.st_mtime > _ABANDONED_S:
                    path.unlink(missing_ok=True)
                    continue
                held += status.st_size
                if _PARTIAL not in path.name:  # else somebody is writing it
                    entries.append((status.st_mtime_ns, status.st_size, path))
            room = max(room, self.limit_bytes // _SHARE)  # until this process looks again
            excess = held + room - self.limit_bytes
            for _, size, path in sorted(entries):
                if excess <= 0:
                    return
                path.unlink(missing_ok=True)
                excess -= size

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time; the lock goes with the process that holds it."""
        with open(self.directory / "lock", "a") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield


def _sum(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(_SUM_BYTES, "little")
