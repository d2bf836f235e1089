"""What the filter step tells: what was dropped and why, before and after, with pictures.

Every figure comes from a query whose answer does not grow with the clips.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...common.decoding import ClipFrame, ClipPlace, clip_frame, decode_each, pictures
from ...common.manifests import AXES
from ...common.report import StepReport, images, table
from ...common.storage import DataRoot
from .duplicates import Duplicates
from .settings import FilterSettings
from .sides import SMALL, Sides
from .tally import NEAR_HELD_OUT, Tally, reasons_of
from .thresholds import Cut, bin_sql
from .values import ANNOTATED

_BINS = 40
_REASONS = 8  # that are shown with pictures


def fill_report(
    report: StepReport,
    connection: Any,
    tally: Tally,
    cuts: list[Cut],
    duplicates: Duplicates,
    sides: Sides,
    root: DataRoot,
    settings: FilterSettings,
) -> None:
    """Counts, summary and sections, from the view ``decided`` and what was counted of it."""
    report.counts = {
        "clips in": tally.clips,
        "clips kept": tally.kept,
        "clips dropped": tally.clips - tally.kept,
        "train": tally.sides["train"],
        "held out": tally.sides["held_out"],
    }
    report.summary = {"selection": _summary(tally, cuts, duplicates, sides)}
    report.sections = [
        _before_and_after(tally),
        _cuts(cuts),
        _overlap(tally, cuts),
        _split_table(sides, tally),
        _duplicates(duplicates, tally, settings),
    ]
    report.sections += [_histogram(connection, cut) for cut in cuts if cut.low is not None and cut.axis in ANNOTATED]
    if settings.shown and tally.clips:
        report.sections += _pictures(connection, root, tally, settings.shown)


def _summary(tally: Tally, cuts: list[Cut], duplicates: Duplicates, sides: Sides) -> dict[str, Any]:
    """What ``summary.json`` and ``selection.json`` hold: plain values, as many however many clips there are."""
    return {
        "clips_in": tally.clips,
        "kept": tally.kept,
        "dropped": tally.clips - tally.kept,
        "hours_kept": tally.table1["after"].seconds / 3600,
        "table1": {name: figures.to_dict() for name, figures in tally.table1.items()},
        "by_reason": tally.by_reason,
        "dropped_by_it_alone": tally.alone,
        "overlap": tally.overlap,
        "cuts": {c.axis: c.value for c in cuts},
        "cuts_from_percent": {c.axis: c.from_percent for c in cuts},
        "cuts_from_top": {c.axis: c.from_top for c in cuts},
        "limits": {c.axis: c.limit for c in cuts},
        "asked_percent": {c.axis: c.asked_percent for c in cuts},
        "asked_top": {c.axis: c.asked_top for c in cuts},
        "realised_percent": {c.axis: round(c.realised_percent, 4) for c in cuts},
        "dropped_by_axis": {c.axis: c.dropped for c in cuts},
        "with_a_value": {c.axis: c.there for c in cuts},
        "missing": {c.axis: c.missing for c in cuts},
        "nan": {c.axis: c.nan for c in cuts},
        "duplicates": {
            "looked_for": duplicates.looked,
            "every_pair_compared": duplicates.exact,
            "embedded": duplicates.embedded,
            "groups": duplicates.groups,
            "clips": duplicates.clips,
            "largest": duplicates.largest,
        },
        "train": tally.sides["train"],
        "held_out": tally.sides["held_out"],
        "videos": tally.videos,
        "sides": {
            "recorded_before": sides.recorded,
            "recorded_now": sides.decided,
            "without_both": list(sides.empty),
        },
    }


def _before_and_after(tally: Tally) -> dict[str, Any]:
    """The paper's Table 1, of these clips."""
    rows = []
    for name, figures in tally.table1.items():
        f = figures.to_dict()
        total = f["total_h"] or 0.0
        rows.append(
            [
                name,
                figures.clips,
                _rounded(f["mean_clip_s"], 2),
                f"{total:.2f} h" if total >= 1 else f"{60 * total:.2f} min",
                _rounded(f["mean_frames"], 1),
                _rounded(f["clips_per_video"], 2),
            ]
        )
    columns = ["", "clips", "mean s", "total", "mean frames", "clips per video"]
    return table("Before and after (as the paper's Table 1)", columns, rows)


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _cuts(cuts: list[Cut]) -> dict[str, Any]:
    rows = []
    for c in cuts:
        asked = [f"{'most' if c.above else 'least'} {c.asked_percent:g} %"] if c.asked_percent else []
        asked += [f"best {c.asked_top}"] if c.asked_top is not None else []
        rows.append(
            [c.axis, ", ".join(asked), c.limit, c.value, round(c.realised_percent, 2), c.dropped, c.missing, c.nan]
        )
    note = "each cut is computed on the unfiltered set; equal values go or stay together"
    columns = ["axis", "asked", "limit", "cut", "realised %", "clips", "missing", "not a number"]
    return table("Cuts", columns, rows, note=note)


def _overlap(tally: Tally, cuts: list[Cut]) -> dict[str, Any]:
    """How many clips fail two axes at once; the diagonal holds those that fail each."""
    names = [c.axis for c in cuts if c.active]
    rows = [[one, *(tally.overlap[one][two] for two in names), tally.alone[one]] for one in names]
    return table("Overlap of the axes", ["fails", *names, "this alone"], rows)


def _split_table(sides: Sides, tally: Tally) -> dict[str, Any]:
    notes = [
        "split by source video",
        f"{sides.recorded} videos were on their side before"
        if sides.recorded
        else f"the hash of the video decides above {SMALL} videos"
        if not sides.decided
        else f"{sides.decided} videos were divided for the first time",
    ]
    if barred := tally.by_reason.get(NEAR_HELD_OUT):
        notes.append(f"{barred} clips to train on were dropped, since they are like held-out ones")
    if sides.empty:
        notes.append(
            f"only one side has videos of {', '.join(sides.empty)}: those decided on before stay where they are"
        )
    columns = ["source", "split", "videos", "clips"]
    return table("Train and held out", columns, [list(row) for row in tally.divided], note="; ".join(notes))


def _duplicates(found: Duplicates, tally: Tally, settings: FilterSettings) -> dict[str, Any]:
    if not found.looked:
        note = "not looked for: filter.near_duplicate_cosine is null"
    else:
        note = f"alike from a cosine of {settings.near_duplicate_cosine:g} between middle frames; " + (
            "every pair was compared" if found.exact else "compared within neighbouring clusters: some pairs are missed"
        )
    dropped = tally.overlap["duplicate"]["duplicate"]
    row = [found.embedded, found.groups, found.clips, found.largest, dropped, tally.by_reason.get(NEAR_HELD_OUT, 0)]
    columns = [
        "clips with embeddings",
        "groups",
        "clips in them",
        "largest",
        "dropped as duplicates",
        "kept out of training",
    ]
    return table("Near-duplicates", columns, [row], note=note)


def _histogram(connection: Any, cut: Cut) -> dict[str, Any]:
    """Equal-width bins, counted in DuckDB."""
    assert cut.low is not None and cut.high is not None
    column = f"{cut.axis}_value"
    bins = min(_BINS, max(8, int(2 * cut.there**0.5))) if cut.high > cut.low else 1
    number = bin_sql(column, cut.low, cut.high, bins) if bins > 1 else "0"
    counted = dict(
        connection.execute(
            f"SELECT {number} AS bin, count(*) FROM scored WHERE NOT isnan({column}) GROUP BY bin"
        ).fetchall()
    )
    edges = np.linspace(cut.low, cut.high, bins + 1) if bins > 1 else np.array([cut.low - 0.5, cut.low + 0.5])
    note = (
        f"dropped {'above' if cut.above else 'below'} the cut: {cut.dropped} clips ({cut.realised_percent:.1f} %)"
        if cut.active
        else "not filtered"
    )
    return {"kind": "histogram", "title": cut.axis, "counts": [counted.get(b, 0) for b in range(bins)],
            "edges": edges.tolist(), "unit": cut.axis, "cut": cut.value, "side": "above" if cut.above else "below",
            "note": note}  # fmt: skip


def _pictures(connection: Any, root: DataRoot, tally: Tally, most: int) -> list[dict[str, Any]]:
    """Middle frames: a strip of what was kept, and one for each of the commonest reasons."""
    by_mask = dict(connection.execute(f"SELECT mask, min(clip, {most}) FROM decided GROUP BY mask").fetchall())
    strips = {"Kept": sorted(by_mask.get(0, []))}
    common = sorted(tally.by_reason, key=lambda reason: (-tally.by_reason[reason], reason))[:_REASONS]
    for reason in common:
        clips = sorted(clip for mask, found in by_mask.items() if reason in reasons_of(mask) for clip in found)
        strips[f"Dropped: {reason}"] = clips[:most]
    chosen = sorted({clip for clips in strips.values() for clip in clips})
    listed = ", ".join(map(str, chosen)) or "NULL"
    values = ", ".join(f"{axis}_value" for axis in AXES)
    rows = connection.execute(
        f"""SELECT d.clip, c.shard_uri, c."offset", c.bytes, c.frames, d.mask, {values}
            FROM clips c JOIN decided d USING (clip_id) WHERE d.clip IN ({listed})"""
    ).fetchall()
    wanted = [
        ClipFrame(ClipPlace(root.location, uri, offset, size), (frames - 1) // 2)
        for _, uri, offset, size, frames, *_ in rows
    ]
    shown: dict[int, tuple[np.ndarray, str]] = {}  # a clip that does not decode is decided on by what was annotated
    for place, picture in pictures(decode_each(clip_frame, wanted, root, "pictures", needed=False)):
        clip, _, _, _, _, mask, *found = rows[place]
        shown[clip] = picture, _caption(mask, dict(zip(AXES, found, strict=True)))
    return [images(name, [shown[clip] for clip in clips if clip in shown]) for name, clips in strips.items()]


def _caption(mask: int, values: Mapping[str, float | None]) -> str:
    told = {axis: f"{axis} {value:.3g}" for axis, value in values.items() if value is not None}
    reasons = reasons_of(mask)
    return " · ".join([told.get(reason, reason) for reason in reasons] if reasons else told.values())
