"""The report of the annotate step: who measured what, how the axes spread, clips with their captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...common.errors import SvdflowError
from ...common.report import StepReport, first_rows, histogram, images, leading, table, text
from ...common.storage import DataRoot
from .annotator import Annotator
from .look import look
from .results import ClipResult

_SHOWN, _FAILURES = 12, 50


def report_of(
    annotators: Sequence[Annotator],
    rows: list[dict[str, Any]],
    results: Mapping[str, ClipResult],
    written: list[dict[str, Any]],
    root: DataRoot,
) -> StepReport:
    """The step's report.

    Args:
        annotators: in the order in which they ran.
        rows: of the clips manifest.
        results: by clip id.
        written: rows of the annotations manifest, in the order of ``rows``.
        root: where clips lie, for pictures.
    """
    report = StepReport(step="annotate", title="Annotate clips")
    report.done = sum(len(r.computed) for r in results.values())
    report.reused = sum(len(r.reused) for r in results.values())
    failures = [(clip, axis, why) for clip, r in sorted(results.items()) for axis, why in r.failed.items()]
    decoded = sum(1 for r in results.values() if r.columns)
    report.counts = {
        "clips in": len(rows),
        "clips annotated": decoded,
        "clips set aside": len(rows) - decoded,
        "annotations failed": len(failures),
    }
    report.slowest = leading({clip: sum(r.computed.values()) for clip, r in results.items() if r.computed})
    report.set_aside = first_rows(
        (clip, next(iter(r.failed.values()))) for clip, r in sorted(results.items()) if r.failed and not r.columns
    )
    report.versions = {f"annotator: {a.axis}": f"{a.name}@{a.version}" for a in annotators}
    per_annotator = [
        [
            a.axis,
            f"{a.name}@{a.version}",
            f"stands in for {a.stand_in_for}" if a.stand_in_for else "",
            sum(a.axis in r.computed for r in results.values()),
            sum(a.axis in r.reused for r in results.values()),
            sum(a.axis in r.failed for r in results.values()),
            round(sum(r.computed.get(a.axis, 0.0) for r in results.values()), 2),
        ]
        for a in annotators
    ]
    columns = ["axis", "annotator", "note", "done", "reused", "failed", "seconds"]
    report.sections.append(
        table("Annotators", columns, per_annotator, note="seconds include each one's share of the clip's single decode")
    )
    axes = _axis_values(written)
    unit = next((row["motion_unit"] for row in written if row.get("motion_unit")), "")
    names = {a.axis: f"{a.name}@{a.version}" for a in annotators}
    units = {
        "motion": unit,
        "text": "fraction of the frame",
        "watermark": "probability",
        "nsfw": "probability",
        "aesthetic": names.get("aesthetic", ""),
        "similarity": "cosine",
    }
    report.sections += [
        histogram(f"{axis}, mean over key frames" if axis != "motion" else axis, values, units[axis])
        for axis, values in axes.items()
        if axis in names
    ]
    if failures:
        rows_shown = [list(f) for f in failures[:_FAILURES]]
        note = f"{len(failures)} in all"
        report.sections.append(table("Set aside", ["clip", "axis", "reason"], rows_shown, note=note))
    report.sections.append(_shown(rows, written, root))
    report.summary = {
        "annotations": {
            "clips": len(rows),
            "annotated": decoded,
            "hours": sum(row["end_s"] - row["start_s"] for row in rows if results[row["clip_id"]].columns) / 3600,
            "failed": len(failures),
            "annotators": {a.axis: f"{a.name}@{a.version}" for a in annotators},
            "stand_ins": sorted(a.name for a in annotators if a.stand_in_for),
            **{axis: _statistics(values) for axis, values in axes.items() if axis in names},
        }
    }
    return report


def _axis_values(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """One value per clip and axis, for showing: means over frames and captions."""

    def mean(values: list[Any]) -> float | None:
        there = [v for v in values if v is not None]
        return float(np.mean(there)) if there else None

    similar = ("similarity_image", "similarity_video", "similarity_summary")
    pick = {
        "motion": lambda row: row.get("motion_score"),
        "text": lambda row: mean(row.get("text_area") or []),
        "watermark": lambda row: mean(row.get("watermark") or []),
        "nsfw": lambda row: mean(row.get("nsfw") or []),
        "aesthetic": lambda row: mean(row.get("aesthetic") or []),
        "similarity": lambda row: mean([v for name in similar for v in row.get(name) or []]),
    }
    return {axis: [v for row in rows if (v := take(row)) is not None] for axis, take in pick.items()}


def _statistics(values: list[float]) -> dict[str, float | int]:
    if not values:
        return {"count": 0}
    return {
        "count": len(values),
        "mean": float(np.mean(values)),
        "min": float(np.min(values)),
        "max": float(np.max(values)),
    }


def _shown(rows: list[dict[str, Any]], written: list[dict[str, Any]], root: DataRoot) -> dict[str, Any]:
    """Middle frames of clips spread over the manifest, with their captions."""
    if not rows:
        return text("Captions", "no clips")
    items = []
    for index in sorted(set(np.linspace(0, len(rows) - 1, min(_SHOWN, len(rows))).round().astype(int).tolist())):
        row, columns = rows[index], written[index]
        try:
            mp4 = root.read_range(row["shard_uri"], row["offset"], row["bytes"])
            keys, _ = look(mp4)
        except SvdflowError:
            continue
        score = columns.get("motion_score")
        figures = "" if score is None else f" · motion {score:.2f}"
        items.append((keys[1].rgb, f"{columns.get('caption_summary') or 'no caption'}{figures}"))
    return images("Clips and their captions", items)
