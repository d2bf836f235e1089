"""Annotate clips: every result is kept under its clip, annotator, version and settings, and found again."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ...common.errors import BadInputError, StorageError, SvdflowError
from ...common.fanout import map_units
from ...common.manifests import read_rows, write_manifest
from ...common.report import StepReport, histogram, images, table, text
from ...common.storage import DataRoot
from .annotator import Annotator, ClipView, load
from .look import look
from .settings import AnnotateSettings

RESULTS = "annotate"
_SHOWN = 12
_WHOLE = 0.8  # share of a video from which on a clip is the whole of it


@dataclass(frozen=True)
class ClipWork:
    """One clip to annotate; picklable."""

    root: str
    settings: AnnotateSettings
    clip: dict[str, Any]
    description: str | None


@dataclass
class ClipResult:
    """What was measured on one clip: axis to seconds for what was computed, to a reason for what failed."""

    columns: dict[str, Any] = field(default_factory=dict)
    computed: dict[str, float] = field(default_factory=dict)
    reused: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def annotate_clips(videos: Path, clips: Path, out: Path, root: DataRoot, settings: AnnotateSettings) -> StepReport:
    """Annotate every clip of a manifest and write the annotations manifest.

    A clip or annotator that fails leaves null columns and is counted, the others go on; only when an annotator
    fails on every clip (a missing model, a dead endpoint) does the step fail.

    Raises:
        BadInputError: a manifest cannot be used, or an annotator failed on every clip.
        ConfigError: an axis names no annotator, or lacks a setting.
    """
    annotators = load(settings)
    sources = {row["video_id"]: row for row in read_rows("videos", videos) if row["status"] == "ok"}
    rows = read_rows("clips", clips)
    results: dict[str, ClipResult] = {}
    pending = []
    for row in rows:
        work = ClipWork(root.location, settings, row, _description(row, sources.get(row["video_id"])))
        found = _found(annotators, root, work)
        if len(found.reused) == len(annotators):
            results[row["clip_id"]] = found
        else:
            pending.append(work)
    for outcome in map_units(annotate_clip, pending, "clips", settings.workers, settings.clip_timeout_s):
        broken = ClipResult(failed={a.axis: outcome.error or "" for a in annotators})
        results[outcome.unit.clip["clip_id"]] = outcome.value or broken
    _refuse_when_all_failed(annotators, results)
    versions = json.dumps({a.axis: f"{a.name}@{a.version}" for a in annotators}, sort_keys=True, ensure_ascii=False)
    table_rows = [
        {**results[row["clip_id"]].columns, "clip_id": row["clip_id"], "annotators": versions} for row in rows
    ]
    write_manifest("annotations", table_rows, out)
    return _report(annotators, rows, results, table_rows, root)


def _description(clip: Mapping[str, Any], video: Mapping[str, Any] | None) -> str | None:
    """The caption that came with a clip's video, if the clip is nearly all of it: it may not fit one shot of many."""
    if video is None or not video["description"] or not video["duration_s"]:
        return None
    return video["description"] if clip["end_s"] - clip["start_s"] >= _WHOLE * video["duration_s"] else None


def annotate_clip(work: ClipWork) -> ClipResult:
    """Whatever is not found yet of one clip; decodes it once.

    Raises:
        SvdflowError: the clip's bytes cannot be read or decoded.
    """
    annotators, root = _of_this_process(work.settings), DataRoot.open(work.root)
    result = _found(annotators, root, work)
    todo = [a for a in annotators if a.axis not in result.reused]
    clip = work.clip
    started = time.monotonic()
    watchers = {a.axis: w for a in todo if (w := a.watcher())}
    mp4 = root.read_range(clip["shard_uri"], clip["offset"], clip["bytes"])
    keys, small = look(mp4, clip["frames"], watchers, spread=max((a.spread for a in todo), default=0))
    looked_s = (time.monotonic() - started) / max(len(todo), 1)
    view = ClipView(
        clip["clip_id"], clip["end_s"] - clip["start_s"], work.description, keys, small, dict(watchers), result.columns
    )
    for annotator in todo:
        key = annotator.key(view.clip_id, work.description, result.columns)
        started = time.monotonic()
        try:
            found = root.find(RESULTS, key)
            columns = found or annotator.store(annotator.annotate(view), root)
        except StorageError:
            raise
        except SvdflowError as error:
            result.failed[annotator.axis] = str(error)
            continue
        except Exception as error:  # a fault of one annotator costs its own result alone; it is told, and counted
            result.failed[annotator.axis] = f"{type(error).__name__}: {error}"
            continue
        if found:
            result.reused.append(annotator.axis)
        else:
            if not _incomplete(annotator, result):
                root.record(RESULTS, key, columns)
            result.computed[annotator.axis] = time.monotonic() - started + looked_s
        result.columns.update(columns)
    return result


def _incomplete(annotator: Annotator, result: ClipResult) -> bool:
    """Whether an input of this annotator failed, so that its result is not final."""
    return any(name not in result.columns for name in annotator.needs)


def _found(annotators: list[Annotator], root: DataRoot, work: ClipWork) -> ClipResult:
    """What the data root has of a clip: each annotator whose inputs are known too."""
    result = ClipResult()
    for annotator in annotators:
        if any(name not in result.columns for name in annotator.needs):
            continue
        columns = root.find(RESULTS, annotator.key(work.clip["clip_id"], work.description, result.columns))
        if columns is not None:
            result.columns.update(columns)
            result.reused.append(annotator.axis)
    return result


@lru_cache(maxsize=2)
def _of_this_process(settings: AnnotateSettings) -> list[Annotator]:
    import cv2

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    cv2.setNumThreads(1)  # as many processes as cores work already
    return load(settings)


def _refuse_when_all_failed(annotators: list[Annotator], results: Mapping[str, ClipResult]) -> None:
    for annotator in annotators:
        reasons = [r.failed[annotator.axis] for r in results.values() if annotator.axis in r.failed]
        if reasons and len(reasons) == len(results):
            raise BadInputError(
                f"annotator {annotator.name} ({annotator.axis}) failed on all {len(reasons)} clips, first: {reasons[0]}"
            )


def _report(
    annotators: list[Annotator],
    rows: list[dict[str, Any]],
    results: Mapping[str, ClipResult],
    written: list[dict[str, Any]],
    root: DataRoot,
) -> StepReport:
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
    units: dict[str, Any] = {
        "motion": unit,
        "text": "fraction of the frame",
        "aesthetic": per_annotator[2][1],
        "similarity": "cosine",
    }
    report.sections += [
        histogram(f"{axis}, mean over key frames" if axis != "motion" else axis, values, units[axis])
        for axis, values in axes.items()
    ]
    if failures:
        report.sections.append(
            table(
                "Set aside",
                ["clip", "axis", "reason"],
                [list(f) for f in failures[:50]],
                note=f"{len(failures)} in all",
            )
        )
    report.sections.append(_shown(rows, written, root))
    report.summary = {
        "annotations": {
            "clips": len(rows),
            "failed": len(failures),
            "annotators": {a.axis: f"{a.name}@{a.version}" for a in annotators},
            "stand_ins": sorted(a.name for a in annotators if a.stand_in_for),
            **{axis: _statistics(values) for axis, values in axes.items()},
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
            keys, _ = look(mp4, row["frames"], {})
        except SvdflowError:
            continue
        score = columns.get("motion_score")
        figures = "" if score is None else f" · motion {score:.2f}"
        items.append((keys[1].rgb, f"{columns.get('caption_summary') or 'no caption'}{figures}"))
    return images("Clips and their captions", items)
