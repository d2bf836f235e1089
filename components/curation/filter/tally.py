"""What was decided, counted: one row for each way to fail comes out of DuckDB, and the rest is sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...common.manifests import AXES

NEAR_HELD_OUT = "near_held_out"  # the reason of a clip to train on that is like a held-out one
_STEP = len(AXES)
_SIDES = ("train", "held_out")
_STATES = ("", "missing_", "nan_")  # "" for failing the axis


def bit(axis: str, state: str = "") -> int:
    """The bit of a mask that says that a clip fails an axis, or misses it ("missing_"), or has no number ("nan_")."""
    return 1 << (_STATES.index(state) * _STEP + AXES.index(axis))


BARRED = 1 << (len(_STATES) * _STEP)


def reasons_of(mask: int) -> list[str]:
    """The reasons that a mask stands for: axis by axis; none when the clip is kept."""
    named = [f"{state}{axis}" for axis in AXES for state in _STATES if mask & bit(axis, state)]
    return named + ([NEAR_HELD_OUT] if mask & BARRED else [])


@dataclass(frozen=True)
class Figures:
    """The columns of the paper's Table 1, of some of the clips."""

    clips: int
    seconds: float
    frames: int
    videos: int

    def to_dict(self) -> dict[str, float | None]:
        """Plain values."""
        return {
            "clips": self.clips,
            "mean_clip_s": self.seconds / self.clips if self.clips else None,
            "total_h": self.seconds / 3600,
            "mean_frames": self.frames / self.clips if self.clips else None,
            "clips_per_video": self.clips / self.videos if self.videos else None,
            "videos": self.videos,
        }


@dataclass(frozen=True)
class Tally:
    """Counts of all decisions.

    Attributes:
        table1: "before", "after" and "dropped".
        by_reason: clips by reason; a clip with several counts for each.
        overlap: axis, axis to clips that fail both; on the diagonal those that fail the one.
        alone: axis to clips that this reason alone drops.
        divided: kind of source, side, videos and clips, of what is kept.
        masks: every mask there is, with its clips.
    """

    table1: dict[str, Figures]
    by_reason: dict[str, int]
    overlap: dict[str, dict[str, int]]
    alone: dict[str, int]
    divided: list[tuple[str, str, int, int]]
    masks: dict[int, int]

    @property
    def clips(self) -> int:
        """All of them."""
        return self.table1["before"].clips

    @property
    def kept(self) -> int:
        """Of them."""
        return self.table1["after"].clips

    @property
    def sides(self) -> dict[str, int]:
        """Clips to train on and held-out ones."""
        return {name: sum(clips for _, side, _, clips in self.divided if side == name) for name in _SIDES}

    @property
    def videos(self) -> dict[str, int]:
        """Videos to train on and held-out ones."""
        return {name: sum(videos for _, side, videos, _ in self.divided if side == name) for name in _SIDES}


def count_per_video(connection: Any, view: str) -> None:
    """Make the table ``per_video`` (video, clips, kept) of a view with video and mask."""
    connection.execute(
        f"""CREATE OR REPLACE TABLE per_video AS
            SELECT video, count(*) AS clips, count(*) FILTER (mask = 0) AS kept FROM {view} GROUP BY video"""
    )


def count(connection: Any) -> Tally:
    """Count the view ``decided`` and the tables ``per_video`` and ``sides``. Spans are whole µs: the sums are exact."""
    rows = connection.execute(
        """SELECT mask, count(*), sum(span_us)::BIGINT, sum(frames)::BIGINT FROM decided GROUP BY mask ORDER BY mask"""
    ).fetchall()
    videos, after, dropped = connection.execute(
        "SELECT count(*), count(*) FILTER (kept > 0), count(*) FILTER (kept < clips) FROM per_video"
    ).fetchall()[0]
    divided = connection.execute(
        """SELECT source, side, count(*), sum(kept)::BIGINT FROM per_video JOIN sides USING (video)
           WHERE kept > 0 GROUP BY ALL ORDER BY ALL"""
    ).fetchall()
    masks = {row[0]: row[1] for row in rows}
    reasons = [(reasons_of(mask), clips) for mask, clips in masks.items()]
    names = sorted({name for told, _ in reasons for name in told})

    def failing(both: int) -> int:
        return sum(clips for mask, clips in masks.items() if mask & both == both)

    return Tally(
        {
            "before": _figures(rows, videos),
            "after": _figures([row for row in rows if not row[0]], after),
            "dropped": _figures([row for row in rows if row[0]], dropped),
        },
        {name: sum(clips for told, clips in reasons if name in told) for name in names},
        {one: {two: failing(bit(one) | bit(two)) for two in AXES} for one in AXES},
        {axis: masks.get(bit(axis), 0) for axis in AXES},
        divided,
        masks,
    )


def _figures(rows: Sequence[tuple[Any, ...]], videos: int) -> Figures:
    return Figures(sum(r[1] for r in rows), sum(r[2] for r in rows) / 1e6, sum(r[3] for r in rows), videos)
