"""A manifest out of rows that come in any order, in bounded memory: sorted runs on disk, merged as they are written."""

from __future__ import annotations

import os
import socket
import tempfile
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

from .manifests import KEYS, ROW_GROUP, sorted_table, write_in_order

RUN = 1 << 14  # rows that are held in memory
_SAMPLED = 64  # every so many rows of a run one id tells where the others lie


class ManifestSpool:
    """Takes the rows of a manifest; ``write`` gives the bytes that ``write_manifest`` would. Use as a context manager.

    Args:
        kind: a key of SCHEMAS.
        folder: takes what does not fit in memory, in a folder that names this machine and this process.
        run: rows that are held in memory.
    """

    def __init__(self, kind: str, folder: Path, run: int = RUN) -> None:
        self.kind, self.folder, self.run = kind, folder, run
        self.rows = 0
        self._held: list[Mapping[str, Any]] = []
        self._runs: list[Path] = []
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> ManifestSpool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._scratch is not None:
            self._scratch.cleanup()

    def add(self, row: Mapping[str, Any]) -> None:
        """Take one row.

        Raises:
            BadInputError: it has an unknown column, or one of the rows before it has a value of the wrong type.
        """
        self.rows += 1
        self._held.append(row)
        if len(self._held) == self.run:
            self._spill()

    def write(self, path: str | Path) -> None:
        """Write the manifest, atomically."""
        write_in_order(self.kind, self.tables(), path)

    def tables(self) -> Iterator[pa.Table]:
        """The rows sorted by id, ROW_GROUP at a time, the last table with fewer."""
        waiting = None
        for table in self._merged():
            waiting = table if waiting is None else pa.concat_tables([waiting, table])
            while len(waiting) >= ROW_GROUP:
                yield waiting.slice(0, ROW_GROUP)
                waiting = waiting.slice(ROW_GROUP)
        if waiting is not None and len(waiting):
            yield waiting

    def _spill(self) -> None:
        if self._scratch is None:
            mark = f"{socket.gethostname()}-{os.getpid()}-"
            self._scratch = tempfile.TemporaryDirectory(dir=self.folder, prefix=mark)
        path = Path(self._scratch.name) / f"{len(self._runs)}.arrow"
        table = sorted_table(self.kind, self._held)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        self._runs.append(path)
        self._held = []

    def _merged(self) -> Iterator[pa.Table]:
        """Sorted tables, each behind the one before it."""
        runs = [pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in self._runs]
        if self._held or not runs:
            runs.append(sorted_table(self.kind, self._held))
        ids = [run[KEYS[self.kind]] for run in runs]
        begins = [0] * len(runs)
        for bound in [*self._bounds(ids), None]:
            parts = []
            for number, run in enumerate(runs):
                end = len(run) if bound is None else _first_from(ids[number], bound, begins[number])
                parts.append(run.slice(begins[number], end - begins[number]))
                begins[number] = end
            yield pa.concat_tables(parts).sort_by(KEYS[self.kind])

    def _bounds(self, ids: list[pa.ChunkedArray]) -> list[str]:
        """Ids between which about half a row group lies."""
        if len(ids) == 1:
            return []
        sample = sorted(each[at].as_py() for each in ids for at in range(0, len(each), _SAMPLED))
        step = max(1, ROW_GROUP // 2 // _SAMPLED)
        return sample[step::step]


def _first_from(ids: pa.ChunkedArray, bound: str, begin: int) -> int:
    return bisect_left(range(len(ids)), bound, lo=begin, key=lambda at: ids[at].as_py())
