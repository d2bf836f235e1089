"""The cut of one axis: exact, computed on the unfiltered set, decided by values alone.

SQL runs out of core and in bounded memory: no sketch, and no sort of the whole. Equal values share their fate, whatever
the order of the rows.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from .settings import FilterSettings
from .values import DROPS_ABOVE

_BINS = 4096
_SORTED = 1_000_000  # values that are sorted at once


@dataclass(frozen=True)
class Cut:
    """Where an axis is cut.

    Attributes:
        axis: its name.
        above: whether values above the cut are dropped, instead of those below; the cut itself is kept.
        asked_percent: of the clips with a value.
        asked_top: how many of the best to keep, if asked.
        limit: the absolute limit asked for, if any.
        value: the effective cut, the strictest of the three; None when nothing is asked, or nothing can be cut.
        from_percent: the cut that the percentage alone gives; None when zero is asked or there is no value.
        from_top: the cut that the number to keep alone gives.
        realised_percent: what the effective cut drops of the clips with a value.
        dropped: how many that are.
        there: clips with a value.
        missing: clips that were not annotated.
        nan: clips whose annotation is no number.
        low: the lowest value; None without any.
        high: the highest value.
    """

    axis: str
    above: bool
    asked_percent: float
    asked_top: int | None
    limit: float | None
    value: float | None
    from_percent: float | None
    from_top: float | None
    realised_percent: float
    dropped: int
    there: int
    missing: int
    nan: int
    low: float | None
    high: float | None

    @property
    def active(self) -> bool:
        """Whether anything is asked of this axis."""
        return self.asked_percent > 0 or self.asked_top is not None or self.limit is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def find_cut(connection: Any, axis: str, settings: FilterSettings) -> Cut:
    """The cut of an axis over the table ``scored`` (column ``<axis>_value``)."""
    column, above = f"{axis}_value", DROPS_ABOVE[axis]
    percent, top = getattr(settings, f"{axis}_percent"), getattr(settings, f"{axis}_top")
    limit = settings.limit(axis)
    there, missing, nan, low, high = connection.execute(
        f"""SELECT count(*) FILTER ({_is_number(column)}), count(*) - count({column}),
                   count(*) FILTER (isnan({column})),
                   min({column}) FILTER ({_is_number(column)}), max({column}) FILTER ({_is_number(column)})
            FROM scored"""
    ).fetchall()[0]
    axis_values = _Values(connection, column, above, there, low, high)
    from_percent = from_top = None
    if there and percent:
        from_percent = axis_values.cut(math.floor(there * percent / 100 + 1e-9))
    if there and top is not None:
        from_top = axis_values.cut(max(there - top, 0))
    asked = [v for v in (from_percent, from_top, limit) if v is not None]
    value = (min(asked) if above else max(asked)) if asked else None
    dropped = axis_values.beyond(value)[0] if value is not None else 0
    realised = 100 * dropped / there if there else 0.0
    joined = (limit, value, from_percent, from_top)
    return Cut(axis, above, percent, top, *joined, realised, dropped, there, missing, nan, low, high)


def number(value: float | None) -> str:
    """A double, to the last bit, in SQL."""
    return "NULL::DOUBLE" if value is None else f"CAST('{value!r}' AS DOUBLE)"


def bin_sql(column: str, low: float, high: float, bins: int) -> str:
    """SQL for the number of the equal-width bin, 0 to ``bins - 1``; it never falls as the value grows."""
    half = "" if math.isfinite(high - low) else " * 0.5"  # the width of the widest ranges is no double
    low_sql, high_sql = f"{number(low)}{half}", f"{number(high)}{half}"
    share = f"({column}{half} - {low_sql}) / ({high_sql} - {low_sql})"
    return f"least(floor({share} * {bins}), {bins - 1})::INTEGER"


def _is_number(column: str) -> str:
    return f"{column} IS NOT NULL AND NOT isnan({column})"


@dataclass(frozen=True)
class _Values:
    """The numbers of one column of ``scored``."""

    connection: Any
    column: str
    above: bool
    there: int
    low: float
    high: float

    def cut(self, wanted: int) -> float:
        """The value beyond which lie ``wanted`` of the values, or as near to that as values alone can decide.

        The boundary may fall among equal values. They go together or stay together, whichever comes closer to what was
        asked (staying, when both are as close); they never go when nothing else is left.
        """
        boundary = self._at(self.there - 1 - wanted if self.above else wanted)
        if_stay, equal = self.beyond(boundary)
        if_go = if_stay + equal
        if if_stay == wanted or if_go == self.there or wanted - if_stay <= if_go - wanted:
            return boundary
        inward = f"max({self.column})" if self.above else f"min({self.column})"
        inside = f"{self.column} {'<' if self.above else '>'} {number(boundary)} AND NOT isnan({self.column})"
        return self.connection.execute(f"SELECT {inward} FROM scored WHERE {inside}").fetchall()[0][0]

    def beyond(self, value: float) -> tuple[int, int]:
        """How many lie beyond a value, on the side that is dropped, and how many are equal to it."""
        beyond, equal = (f"count(*) FILTER ({self.column} {sign} {number(value)})" for sign in ("<>"[self.above], "="))
        return self.connection.execute(
            f"SELECT {beyond}, {equal} FROM scored WHERE NOT isnan({self.column})"
        ).fetchall()[0]

    def _at(self, rank: int) -> float:
        """The value of a rank, the lowest being 0.

        Counts in equal-width bins tell which bin holds the rank; that bin is looked at alone, and so on, until it is
        small enough to sort. No step holds more than that, however many values there are or however they are spread.
        """
        low, high, count = self.low, self.high, self.there
        while low < high and count > _SORTED:
            bins = self.connection.execute(
                f"""SELECT min({self.column}), max({self.column}), count(*) FROM scored WHERE {self._between(low, high)}
                    GROUP BY {bin_sql(self.column, low, high, _BINS)} ORDER BY 1"""
            ).fetchall()
            for low, high, count in bins:  # noqa: B007 - the bin that holds the rank is what the loop leaves
                if rank < count:
                    break
                rank -= count
        if low == high:
            return low
        return self.connection.execute(
            f"SELECT {self.column} FROM scored WHERE {self._between(low, high)} ORDER BY 1 LIMIT 1 OFFSET {rank}"
        ).fetchall()[0][0]

    def _between(self, low: float, high: float) -> str:
        return f"{self.column} BETWEEN {number(low)} AND {number(high)}"
