"""Tensors on their way to a shard, with the results that are recorded once they lie there."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...common.shards import write_shard
from ...common.storage import DataRoot


@dataclass
class ShardWriter:
    """Writes tensors into shards of bounded size.

    Attributes:
        root: where shards and results go.
        max_results: a shard with so many results of one kind is full.
        max_bytes: so is one that holds so much; until it is written it is held in memory.
        stored: key to result, of all shards written.
    """

    root: DataRoot
    max_results: int
    max_bytes: int
    samples: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    results: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)  # kind, key, value
    stored: dict[str, dict[str, Any]] = field(default_factory=dict)
    bytes: int = 0

    def add(self, kind: str, key: str, tensors: dict[str, np.ndarray], result: dict[str, Any]) -> None:
        """Take in the tensors of a result; the key is their prefix."""
        self.samples[key] = tensors
        self.results.append((kind, key, result))
        self.bytes += sum(tensor.nbytes for tensor in tensors.values())

    def close_if_full(self) -> None:
        """Write the shard when it is full. Called between units, so that a shard holds whole ones."""
        kinds = Counter(kind for kind, _, _ in self.results)
        if max(kinds.values(), default=0) >= self.max_results or self.bytes >= self.max_bytes:
            self.close()

    def close(self) -> None:
        """Write the shard, if it holds anything, and record its results."""
        if not self.samples:
            return
        with tempfile.TemporaryDirectory(dir=self.root.scratch("encode")) as folder:
            path = Path(folder) / "shard.safetensors"
            write_shard(path, self.samples)
            uri = self.root.put_file(path)
        for kind, key, result in self.results:
            self.stored[key] = {**result, "shard_uri": uri}
            self.root.record(kind, key, self.stored[key])
        self.samples, self.results, self.bytes = {}, [], 0
