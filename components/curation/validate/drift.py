"""How the axes are distributed, and how far that has shifted since the previous version of a dataset.

Everything is computed by DuckDB over the whole manifest and kept as a bounded aggregate (a dozen numbers per axis), so
two versions of any size are compared without either's rows. The measure is the population stability index over the
deciles of the previous version, sum((p - q) ln(p / q)), with missing values as a bin of their own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ...common.identity import identity
from ...common.manifests import AXES
from ...common.storage import DataRoot

KINDS = ("selection", "annotations")  # where there are axes; the first that is given is compared
_RESULT = "distributions"
_FALSE_ALARM = 0.001  # chance of an alarm per axis when two sets of independent clips are alike
_DECILES = [n / 10 for n in range(11)]
_LISTED = 64  # different values of a column that should hold a few


def _mean(column: str) -> str:
    frames = ", ".join(f"finite({column}[{n}])" for n in (1, 2, 3))
    return f"list_avg(list_filter([{frames}], lambda v: v IS NOT NULL))"


# kind to axis to (the column it is made of, SQL for a clip's one value). Over three frames the mean is taken.
_VALUES: dict[str, dict[str, tuple[str, str]]] = {
    "annotations": {
        "motion": ("motion_score", "finite(motion_score)"),
        "text": ("text_area", _mean("text_area")),
        **{
            column.replace("_", " "): (column, _mean(column))
            for column in (
                "aesthetic",
                "watermark",
                "nsfw",
                "similarity_image",
                "similarity_video",
                "similarity_summary",
            )
        },
    },
    "selection": {axis: (f"{axis}_value", f"finite({axis}_value)") for axis in AXES},
}

ALL_AXES = tuple(dict.fromkeys(axis for kind in KINDS for axis in _VALUES[kind]))


@dataclass(frozen=True)
class Distribution:
    """One axis over a set of clips.

    Attributes:
        rows: clips.
        missing: those without a finite value.
        mean, median: of the values; None when there is none.
        edges: upper, inclusive bounds of the bins, ascending; the first lies just below the least value, the last is
            the greatest, so that what a later version has beyond either falls into a bin that is empty here.
        counts: clips in each bin, and those above the last edge: one more than there are edges.
    """

    rows: int
    missing: int
    mean: float | None
    median: float | None
    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Shift:
    """How an axis moved.

    Attributes:
        axis: its name.
        before, after: both counted in the bins of ``before``.
        psi: population stability index.
        limit: what it may be: the setting, or what chance alone can give with so few clips.
    """

    axis: str
    before: Distribution
    after: Distribution
    psi: float
    limit: float

    @property
    def shifted(self) -> bool:
        """Whether the index is beyond its limit."""
        return self.psi > self.limit

    def shares(self) -> list[tuple[float, float]]:
        """Share of clips in each bin, the missing last: before and after."""
        sides = [
            [count / max(side.rows, 1) for count in (*side.counts, side.missing)] for side in (self.before, self.after)
        ]
        return list(zip(*sides, strict=True))


def axes_of(connection: Any, kind: str) -> list[str]:
    """The axes that can be read from the view of a manifest, which may be of an older schema."""
    columns = {row[0] for row in connection.execute(f"DESCRIBE {kind}").fetchall()}
    return [axis for axis, (column, _) in _VALUES[kind].items() if column in columns]


def describe(connection: Any, kind: str, edges: Mapping[str, tuple[float, ...]] | None = None) -> dict[str, Any]:
    """The aggregate of a manifest, as plain values: of all annotated clips, or of those that a selection keeps.

    Args:
        connection: has the manifest as a view named ``kind``.
        kind: "annotations" or "selection".
        edges: bins to count in, by axis; by default the axis' own deciles.
    """
    connection.execute("CREATE OR REPLACE TEMP MACRO finite(x) AS CASE WHEN isfinite(x) THEN x END")
    out: dict[str, Any] = {"axes": {}, "made_by": {}}
    for axis in axes_of(connection, kind):
        values = f"(SELECT {_VALUES[kind][axis][1]} AS v FROM {kind}{' WHERE keep' if kind == 'selection' else ''})"
        rows, there, mean, deciles = connection.execute(
            f"SELECT count(*), count(v), avg(v), quantile_disc(v, {_DECILES}) FROM {values}"
        ).fetchone()
        bounds = (edges or {}).get(axis)
        if bounds is None:
            bounds = (math.nextafter(deciles[0], -math.inf), *sorted(set(deciles[1:]))) if there else ()
        below = connection.execute(
            f"SELECT [{', '.join(f'count(*) FILTER (v <= {_number(edge)})' for edge in bounds)}] FROM {values}"
        ).fetchone()[0]
        counts = [b - a for a, b in zip([0, *below], [*below, there], strict=True)]
        median = deciles[5] if there else None
        out["axes"][axis] = asdict(
            Distribution(rows, rows - there, mean if there else None, median, tuple(bounds), tuple(counts))
        )
    if kind == "annotations":
        out["made_by"] = _made_by(connection)
    return out


def _number(value: float) -> str:
    """A double, to the last bit, in SQL."""
    return f"CAST('{value!r}' AS DOUBLE)"


def _made_by(connection: Any) -> dict[str, list[str]]:
    """What measured each axis ("name@version"), and the units of motion."""

    def distinct(column: str) -> list[str]:
        sql = f"SELECT DISTINCT {column} FROM annotations WHERE {column} IS NOT NULL ORDER BY 1 LIMIT {_LISTED}"
        return [value for (value,) in connection.execute(sql).fetchall()]

    made_by: dict[str, set[str]] = {"motion unit": set(distinct("motion_unit"))}
    for text in distinct("annotators"):
        try:
            told = json.loads(text)
        except ValueError:
            continue  # an expectation of its own
        for axis, annotator in told.items() if isinstance(told, dict) else ():
            made_by.setdefault(axis, set()).add(str(annotator))
    return {axis: sorted(names) for axis, names in sorted(made_by.items()) if names}


def made_otherwise(before: Mapping[str, list[str]], after: Mapping[str, list[str]]) -> list[dict[str, str]]:
    """Axes of both versions that something measured which did not measure them before."""
    return [
        {"axis": axis, "before": ", ".join(before[axis]), "now": ", ".join(after[axis])}
        for axis in sorted(set(before) & set(after))
        if not set(after[axis]) <= set(before[axis])
    ]


def compare(previous: Mapping[str, Any], now: Mapping[str, Any], psi: float) -> list[Shift]:
    """The shift of each axis that both versions have.

    Args:
        previous: what ``describe`` said of the previous version.
        now: what it says of this one, in the bins of the previous.
        psi: the index beyond which an axis has shifted, however many clips there are.
    """
    both = [(axis, _distribution(previous["axes"][axis])) for axis in now["axes"] if axis in previous["axes"]]
    return [_shift(axis, before, _distribution(now["axes"][axis]), psi) for axis, before in both if before.rows]


def edges_of(previous: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    """The bins of the previous version, by axis."""
    return {axis: tuple(told["edges"]) for axis, told in previous["axes"].items()}


def _distribution(told: Mapping[str, Any]) -> Distribution:
    return Distribution(**{**told, "edges": tuple(told["edges"]), "counts": tuple(told["counts"])})


def _shift(axis: str, before: Distribution, after: Distribution, psi: float) -> Shift:
    index = stability_index([*before.counts, before.missing], [*after.counts, after.missing])
    return Shift(axis, before, after, index, max(psi, by_chance(before.rows, after.rows, len(before.counts) + 1)))


def stability_index(before: list[int], after: list[int]) -> float:
    """Population stability index of two histograms over the same bins; half a count is added to each bin."""
    if not sum(before) or not sum(after):
        return 0.0
    total = 0.0
    for b, a in zip(before, after, strict=True):
        p = (a + 0.5) / (sum(after) + 0.5 * len(after))
        q = (b + 0.5) / (sum(before) + 0.5 * len(before))
        total += (p - q) * math.log(p / q)
    return total


def by_chance(before: int, after: int, bins: int) -> float:
    """The index that two samples of one distribution exceed once in a thousand times.

    It is then distributed as (1/n + 1/m) times chi-squared with bins - 1 degrees of freedom (Yurdakul, "Statistical
    properties of population stability index", 2018). With 14 clips on both sides that is 4.7: few clips prove nothing.
    """
    from scipy.stats import chi2

    return (1 / max(before, 1) + 1 / max(after, 1)) * float(chi2.ppf(1 - _FALSE_ALARM, max(bins - 1, 1)))


def find_previous(root: DataRoot, dataset: str, kind: str, content: str) -> dict[str, Any] | None:
    """The aggregate of what was found valid last under a dataset's name, unless that is this very content.

    Of the same content again the answer is the one before it, so that a rerun is compared with what it was then.
    """
    last = root.find(_RESULT, identity(dataset=dataset, kind=kind))
    return last["before"] if last and last["content"] == content else last


def is_new(root: DataRoot, dataset: str, kind: str, content: str) -> bool:
    """Whether the content is another than what was found valid last."""
    last = root.find(_RESULT, identity(dataset=dataset, kind=kind))
    return last is None or last["content"] != content


def keep_as_previous(root: DataRoot, dataset: str, kind: str, content: str, described: Mapping[str, Any]) -> None:
    """Remember the aggregate of what was found valid, for the next version to be compared with.

    The one record of this kind that changes: two runs at once leave that of one of them.
    """
    key = identity(dataset=dataset, kind=kind)
    last = root.find(_RESULT, key)
    before = None if last is None else {**last, "before": None}
    root.record(_RESULT, key, {**described, "content": content, "before": before})
