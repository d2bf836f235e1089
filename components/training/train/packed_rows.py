"""Rows of a samples manifest as Arrow holds them: about a sixth of the memory of a dictionary for each of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, overload

import pyarrow as pa

Row = dict[str, Any]
_BLOCK = 4096  # rows that are dictionaries at a time when all are gone through
_KEPT = 4096  # of those asked for singly


class PackedRows(Sequence[Row]):
    """Reads like a list of dictionaries, each made when it is asked for. Rows are shared: leave them as they are.

    Args:
        table: of the rows.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self._row = lru_cache(maxsize=_KEPT)(partial(_read, table))  # of the table: a cycle would keep it from going

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> PackedRows: ...

    def __getitem__(self, index: int | slice) -> Row | PackedRows:
        if isinstance(index, slice):
            first, last, step = index.indices(len(self))
            if step != 1:
                raise ValueError("rows are taken one after another")
            return PackedRows(self.table.slice(first, max(0, last - first)))
        place = int(index) + (len(self) if index < 0 else 0)
        if not 0 <= place < len(self):
            raise IndexError(index)
        return self._row(place)

    def __iter__(self) -> Iterator[Row]:
        for first in range(0, len(self), _BLOCK):
            yield from self.table.slice(first, _BLOCK).to_pylist()

    def only(self, *columns: str) -> PackedRows:
        """The same rows with these columns alone: all of them are gone through many times as fast."""
        return PackedRows(self.table.select(list(columns)))

    def where(self, wanted: Sequence[bool]) -> PackedRows:
        """Those rows, in their order."""
        return self if all(wanted) else PackedRows(self.table.filter(pa.array(wanted, pa.bool_())))

    @staticmethod
    def joined(parts: Sequence[PackedRows]) -> PackedRows:
        """One after another; their tables have one schema."""
        return PackedRows(pa.concat_tables([part.table for part in parts]))


def _read(table: pa.Table, place: int) -> Row:
    return table.slice(place, 1).to_pylist()[0]


def only(rows: Sequence[Row], *columns: str) -> Sequence[Row]:
    """Rows of which these columns are needed; a plain list stays as it is."""
    return rows.only(*columns) if isinstance(rows, PackedRows) else rows
