"""What the filter step tells: what was dropped and why, before and after, with pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...common.errors import SvdflowError
from ...common.manifests import AXES
from ...common.report import StepReport, histogram, images, table
from ...common.storage import DataRoot
from ...common.video import read_frames
from .settings import FilterSettings
from .thresholds import Cut

_MOST_VALUES = 200_000
_FIGURES = """count(*), avg(end_s - start_s), sum(end_s - start_s), avg(frames),
              count(*) / nullif(count(DISTINCT video_id), 0)"""


def fill_report(
    report: StepReport,
    connection: Any,
    cuts: list[Cut],
    splits: Mapping[str, str],
    groups: Mapping[str, str],
    root: DataRoot,
    settings: FilterSettings,
) -> None:
    """Counts, summary and sections, from the table ``decided``."""
    clips_in, kept = connection.execute("SELECT count(*), count(*) FILTER (keep) FROM decided").fetchone()
    seconds = connection.execute("SELECT coalesce(sum(end_s - start_s), 0) FROM decided WHERE keep").fetchone()[0]
    by_reason = dict(
        connection.execute(
            "SELECT r, count(*) FROM (SELECT unnest(reasons) AS r FROM decided) GROUP BY r ORDER BY r"
        ).fetchall()
    )
    sides = dict(
        connection.execute(
            "SELECT s.side, count(*) FROM decided d JOIN splits s USING (video_id) WHERE keep GROUP BY ALL"
        ).fetchall()
    )
    train, held_out = sides.get("train", 0), sides.get("held_out", 0)
    videos_held = sum(side == "held_out" for side in splits.values())
    report.counts = {
        "clips in": clips_in,
        "clips kept": kept,
        "clips dropped": clips_in - kept,
        "train": train,
        "held out": held_out,
    }
    report.summary = {
        "selection": {
            "clips_in": clips_in,
            "kept": kept,
            "dropped": clips_in - kept,
            "hours_kept": seconds / 3600,
            "by_reason": by_reason,
            "cuts": {c.axis: c.value for c in cuts},
            "asked_percent": {c.axis: c.asked_percent for c in cuts},
            "realised_percent": {c.axis: round(c.realised_percent, 4) for c in cuts},
            "limits": {c.axis: c.limit for c in cuts},
            "missing": {c.axis: c.missing for c in cuts},
            "train": train,
            "held_out": held_out,
            "videos": {"train": len(splits) - videos_held, "held_out": videos_held},
        }
    }
    report.sections = [
        _before_and_after(connection),
        _cuts(cuts),
        _overlap(connection, cuts),
        _split_table(connection, splits, groups),
    ]
    report.sections += [_histogram(connection, cut) for cut in cuts]
    if settings.shown and clips_in:
        report.sections += [
            _pictures(connection, root, True, settings.shown),
            _pictures(connection, root, False, settings.shown),
        ]


def _before_and_after(connection: Any) -> dict[str, Any]:
    """The paper's Table 1, of these clips."""
    rows = []
    for name, where in (("before", "true"), ("after", "keep"), ("dropped", "NOT keep")):
        clips, length, total, frames, per_video = connection.execute(
            f"SELECT {_FIGURES} FROM decided WHERE {where}"
        ).fetchone()
        rows.append(
            [
                name,
                clips,
                length and round(length, 2),
                round((total or 0) / 60, 2),
                frames and round(frames, 1),
                per_video and round(per_video, 2),
            ]
        )
    return table(
        "Before and after (as the paper's Table 1)",
        ["", "clips", "mean s", "total min", "mean frames", "clips per video"],
        rows,
    )


def _cuts(cuts: list[Cut]) -> dict[str, Any]:
    rows = [
        [
            c.axis,
            f"{'most' if c.above else 'least'} {c.asked_percent:g} %",
            c.limit,
            c.value,
            round(c.realised_percent, 2),
            c.dropped,
            c.missing,
        ]
        for c in cuts
    ]
    note = "each cut is computed on the unfiltered set; equal values go or stay together"
    return table("Cuts", ["axis", "asked", "limit", "cut", "realised %", "clips", "without a value"], rows, note=note)


def _overlap(connection: Any, cuts: list[Cut]) -> dict[str, Any]:
    """How many clips fail two axes at once; the diagonal holds those that fail each."""
    names = [c.axis for c in cuts]
    rows = []
    for one in names:
        counts = connection.execute(
            f"SELECT {', '.join(f'count(*) FILTER ({one}_failed AND {two}_failed)' for two in names)} FROM decided"
        ).fetchone()
        alone = connection.execute(f"SELECT count(*) FROM decided WHERE reasons = ['{one}']").fetchone()[0]
        rows.append([one, *counts, alone])
    return table("Overlap of the axes", ["fails", *names, "this alone"], rows)


def _split_table(connection: Any, splits: Mapping[str, str], groups: Mapping[str, str]) -> dict[str, Any]:
    rows = connection.execute(
        """SELECT source, s.side, count(DISTINCT video_id), count(*) FROM decided d JOIN splits s USING (video_id)
           WHERE keep GROUP BY ALL ORDER BY ALL"""
    ).fetchall()
    sizes: dict[str, int] = {}
    for video in splits:
        sizes[groups.get(video, video)] = sizes.get(groups.get(video, video), 0) + 1
    joined = sum(size for size in sizes.values() if size > 1)
    note = f"split by source video; {joined} videos have near-duplicates among the others and go with them"
    return table("Train and held out", ["source", "split", "videos", "clips"], [list(row) for row in rows], note=note)


def _histogram(connection: Any, cut: Cut) -> dict[str, Any]:
    column = f"{cut.axis}_value"
    rows = connection.execute(
        f"SELECT {column} FROM decided WHERE {column} IS NOT NULL ORDER BY hash(clip_id) LIMIT {_MOST_VALUES}"
    ).fetchall()
    note = (
        f"dropped {'above' if cut.above else 'below'} the cut: {cut.dropped} clips ({cut.realised_percent:.1f} %)"
        if cut.active
        else "not filtered"
    )
    return histogram(
        f"{cut.axis}", [row[0] for row in rows], cut.axis, cut.value, "above" if cut.above else "below", note
    )


def _pictures(connection: Any, root: DataRoot, keep: bool, most: int) -> dict[str, Any]:
    """Middle frames, of dropped clips one per reason in turn."""
    rows = connection.execute(
        f"""SELECT shard_uri, "offset", bytes, frames, reasons, {", ".join(f"{a}_value" for a in AXES)}
            FROM decided WHERE keep = {keep}
            ORDER BY row_number() OVER (PARTITION BY reasons ORDER BY hash(clip_id), clip_id), reasons, clip_id
            LIMIT {most}"""
    ).fetchall()
    items: list[tuple[np.ndarray, str]] = []
    for uri, offset, size, frames, reasons, *values in rows:
        try:
            picture = read_frames(root.read_range(uri, offset, size), [(frames - 1) // 2])[0]
        except SvdflowError:
            continue
        shown = {name: value for name, value in zip(AXES, values, strict=True) if value is not None}
        told = [r if r.startswith("missing") else f"{r} {shown[r]:.3g}" for r in reasons] or [
            f"{n} {v:.3g}" for n, v in shown.items()
        ]
        items.append((picture, " · ".join(told)))
    return images("Kept" if keep else "Dropped, and why", items)
