"""Safetensors shards: many samples in one file, each tensor found by name and read alone.

A tensor is called ``<prefix>.<tensor>``. A local shard is memory-mapped; one on an object store is read by range, so a
reader fetches the bytes of the tensors it asks for and no more. Nothing here unpickles.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from .block_cache import BlockCache
from .errors import BadInputError
from .storage import DataRoot
from .storage_directory import DirectoryRoot

_MAX_HEADER_BYTES = 100_000_000
_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}


def write_shard(path: Path, samples: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Write samples (prefix to tensor name to array) as one shard; equal samples give equal bytes.

    Raises:
        BadInputError: a prefix holds a dot, so that its tensors could not be told apart.
    """
    from safetensors.numpy import save_file

    tensors: dict[str, np.ndarray] = {}
    for prefix, arrays in samples.items():
        if "." in prefix:
            raise BadInputError(f"shard {path.name}: the prefix {prefix!r} holds a dot; use letters, digits, - and _")
        tensors |= {f"{prefix}.{name}": np.ascontiguousarray(array) for name, array in arrays.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)


class ShardReader:
    """Reads tensors of one shard. Arrays of a local shard are copies too: they outlive the file."""

    def __init__(self, label: str, read_range: Callable[[int, int], bytes]) -> None:
        self.label, self._read_range = label, read_range
        head = read_range(0, 8)
        size = int.from_bytes(head, "little")
        if len(head) != 8 or not 0 < size <= _MAX_HEADER_BYTES:
            raise BadInputError(f"{label}: no safetensors shard (its first 8 bytes are no header size); write it again")
        try:
            header = json.loads(read_range(8, size))
            self._tensors = {name: _Entry(name, entry) for name, entry in header.items() if name != "__metadata__"}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInputError(f"{label}: the shard's header cannot be read ({error}); write it again") from None
        self._start = 8 + size

    @staticmethod
    def open(root: DataRoot, uri: str, cache: BlockCache | None = None) -> ShardReader:
        """Open a shard of a data root: mapped into memory when it is a local file, by ranged reads otherwise.

        Args:
            root: where it lies.
            uri: of the shard.
            cache: keeps what ranged reads fetch.
        """
        if isinstance(root, DirectoryRoot):
            return ShardReader.open_file(root.fetch(uri))
        fetch = partial(root.read_range, uri)
        return ShardReader(uri, partial(cache.read, uri, fetch=fetch) if cache else fetch)

    @staticmethod
    def open_file(path: Path) -> ShardReader:
        """Open a local shard, memory-mapped."""
        with open(path, "rb") as stream:
            try:
                mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError:
                raise BadInputError(f"{path}: an empty file is no safetensors shard; write it again") from None
        return ShardReader(str(path), lambda offset, length: mapped[offset : offset + length])

    @property
    def prefixes(self) -> list[str]:
        """The samples in the shard, sorted."""
        return sorted({name.split(".", 1)[0] for name in self._tensors})

    def names(self, prefix: str) -> list[str]:
        """The tensors of one sample, sorted."""
        return sorted(name.split(".", 1)[1] for name in self._tensors if name.startswith(prefix + "."))

    def read(self, prefix: str, name: str) -> np.ndarray:
        """One tensor.

        Raises:
            BadInputError: the shard has no such tensor, or ends before it.
        """
        return self.read_rows(prefix, name)

    def read_rows(self, prefix: str, name: str, first: int = 0, rows: int | None = None) -> np.ndarray:
        """``rows`` entries of a tensor's first axis from ``first`` (all of them by default); only their bytes are read.

        Raises:
            BadInputError: the shard has no such tensor or row, or ends before it.
        """
        entry = self._tensors.get(f"{prefix}.{name}")
        if entry is None:
            raise BadInputError(
                f"{self.label}: has no tensor {prefix}.{name}; the manifest and the shard do not belong together"
            )
        if rows is None and first == 0:
            shape, offset, length = entry.shape, entry.begin, entry.end - entry.begin
        else:
            count = entry.shape[0] - first if rows is None else rows
            if not (entry.shape and 0 <= first and 0 < count and first + count <= entry.shape[0]):
                raise BadInputError(
                    f"{self.label}: {prefix}.{name} of shape {entry.shape} has no rows {first} to {first + count - 1}"
                )
            row_bytes = (entry.end - entry.begin) // entry.shape[0]
            shape, offset, length = (count, *entry.shape[1:]), entry.begin + first * row_bytes, count * row_bytes
        data = self._read_range(self._start + offset, length)
        if len(data) != length:
            raise BadInputError(f"{self.label}: ends before tensor {prefix}.{name} does; the shard is cut short")
        return np.frombuffer(data, dtype=entry.dtype).reshape(shape).copy()


class _Entry:
    def __init__(self, name: str, entry: Mapping[str, object]) -> None:
        dtype, shape, offsets = str(entry["dtype"]), entry["shape"], entry["data_offsets"]
        if dtype not in _DTYPES or not isinstance(shape, list) or not isinstance(offsets, list):
            raise ValueError(f"{name} is of type {dtype}, which shards do not hold")
        self.dtype, self.shape = np.dtype(_DTYPES[dtype]), tuple(int(n) for n in shape)
        self.begin, self.end = (int(n) for n in offsets)
        if min(self.shape, default=0) < 0 or self.end - self.begin != math.prod(self.shape) * self.dtype.itemsize:
            raise ValueError(f"{name}: shape and byte range do not agree")
