"""The cut of one axis: exact, computed on the unfiltered set, decided by values alone.

SQL runs out of core; the ranks are exact, no sketch. Equal values share their fate, whatever the order of the rows.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from .settings import FilterSettings

DROPS_ABOVE = {"motion": False, "text": True, "aesthetic": False, "similarity": False}
_REDUCE = {"mean": "list_avg", "min": "list_min", "max": "list_max"}


@dataclass(frozen=True)
class Cut:
    """Where an axis is cut.

    Attributes:
        axis: its name.
        above: whether values above the cut are dropped, instead of those below; the cut itself is kept.
        asked_percent: of the clips with a value.
        limit: the absolute limit asked for, if any.
        value: the effective cut, the stricter of the two; None when nothing is asked.
        from_percent: the cut that the percentage alone gives; None when zero is asked or there is no value.
        realised_percent: what the effective cut drops of the clips with a value.
        dropped: how many that are.
        missing: clips without a value.
    """

    axis: str
    above: bool
    asked_percent: float
    limit: float | None
    value: float | None
    from_percent: float | None
    realised_percent: float
    dropped: int
    missing: int

    @property
    def active(self) -> bool:
        """Whether anything is asked of this axis."""
        return self.asked_percent > 0 or self.limit is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def value_sql(axis: str, settings: FilterSettings) -> str:
    """SQL for a clip's single value on an axis, out of the annotations' columns; NULL when there is none."""
    if axis == "motion":
        return _clean("motion_score")
    if axis == "similarity":
        columns = [_over_frames(f"similarity_{c}", settings.similarity_reduce) for c in settings.similarity_captions]
        return _over(columns, settings.similarity_caption_reduce)
    return _over_frames({"text": "text_area", "aesthetic": "aesthetic"}[axis], getattr(settings, f"{axis}_reduce"))


def _clean(expression: str) -> str:
    return f"CASE WHEN isfinite({expression}) THEN {expression} END"


def _over_frames(column: str, reduce: str) -> str:
    """Over the frames that have a value; a NaN is no value."""
    return _over([_clean(f"{column}[{i}]") for i in (1, 2, 3)], reduce)


def _over(expressions: list[str], reduce: str) -> str:
    """Over those that are not NULL; NULL when all are."""
    return f"{_REDUCE[reduce]}(list_filter([{', '.join(expressions)}], lambda v: v IS NOT NULL))"


def find_cut(connection: Any, axis: str, settings: FilterSettings) -> Cut:
    """The cut of an axis over the table ``scored`` (column ``<axis>_value``)."""
    above = DROPS_ABOVE[axis]
    percent = getattr(settings, f"{axis}_percent")
    limit = settings.text_max_area if axis == "text" else getattr(settings, f"{axis}_min")
    column = f"{axis}_value"
    there, total = connection.execute(f"SELECT count({column}), count(*) FROM scored").fetchone()
    by_percent = _percent_cut(connection, column, there, percent, above) if percent and there else None
    asked = [v for v in (by_percent, limit) if v is not None]
    value = (min(asked) if above else max(asked)) if asked else None
    beyond = ">" if above else "<"
    dropped = (
        connection.execute(f"SELECT count(*) FROM scored WHERE {column} {beyond} ?", [value]).fetchone()[0]
        if asked
        else 0
    )
    realised = 100 * dropped / there if there else 0.0
    return Cut(axis, above, percent, limit, value, by_percent, realised, dropped, total - there)


def _percent_cut(connection: Any, column: str, there: int, percent: float, above: bool) -> float:
    """The value at which the wanted share lies beyond.

    The boundary may fall among equal values. They go together or stay together, whichever comes closer to what was
    asked (staying, when both are as close); they never go when nothing else is left.
    """
    wanted = math.floor(there * percent / 100 + 1e-9)
    order = "DESC" if above else "ASC"
    beyond = ">" if above else "<"

    def count(sql: str, *values: float) -> Any:
        return connection.execute(sql, list(values)).fetchone()[0]

    boundary = count(
        f"SELECT {column} FROM scored WHERE {column} IS NOT NULL ORDER BY {column} {order} LIMIT 1 OFFSET {wanted}"
    )
    if_stay = count(f"SELECT count(*) FROM scored WHERE {column} {beyond} ?", boundary)
    if if_stay == wanted:
        return boundary
    if_go = count(f"SELECT count(*) FROM scored WHERE {column} {beyond}= ?", boundary)
    if if_go == there or wanted - if_stay <= if_go - wanted:
        return boundary
    inward = "max" if above else "min"
    return count(f"SELECT {inward}({column}) FROM scored WHERE {column} {'<' if above else '>'} ?", boundary)
