"""Annotate clips: every result is kept under its clip's content, annotator, version and settings, and found again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ...common.errors import BadInputError
from ...common.fanout import map_units
from ...common.manifests import read_rows, write_manifest
from ...common.report import StepReport
from ...common.storage import DataRoot
from .annotator import Annotator, late_axes, load
from .measure import Measured, measure_clip
from .model_process import ModelProcess
from .results import ClipResult, ClipWork, Results
from .settings import AnnotateSettings
from .show import report_of

_WHOLE = 0.8  # share of a video from which on a clip is the whole of it
_LOOK_UPS = 16  # at once: each is a request where the data root lies in S3


def annotate_clips(videos: Path, clips: Path, out: Path, root: DataRoot, settings: AnnotateSettings) -> StepReport:
    """Annotate every clip of a manifest and write the annotations manifest.

    A clip or annotator that fails leaves null columns and is counted, the others go on; only when an annotator
    fails on every clip (a missing model, a dead endpoint) does the step fail.

    Raises:
        BadInputError: a manifest cannot be used, or an annotator failed on every clip.
        ConfigError: an axis names no annotator, or lacks a setting.
    """
    annotators = load(settings)
    kept = Results(root, annotators)
    sources = {row["video_id"]: row for row in read_rows("videos", videos) if row["status"] == "ok"}
    rows = read_rows("clips", clips)
    works = [ClipWork(root.location, settings, row, _description(row, sources.get(row["video_id"]))) for row in rows]
    with ThreadPoolExecutor(_LOOK_UPS) as look_ups:
        found = dict(zip([work.clip_id for work in works], look_ups.map(kept.whole, works), strict=True))
    results = {clip_id: result for clip_id, result in found.items() if result is not None}
    for measured in _measured([w for w in works if w.clip_id not in results], annotators, kept, settings):
        results[measured.work.clip_id] = measured.result
    _refuse_when_all_failed(annotators, results)
    versions = json.dumps({a.axis: f"{a.name}@{a.version}" for a in annotators}, sort_keys=True, ensure_ascii=False)
    table_rows = [
        {**results[row["clip_id"]].columns, "clip_id": row["clip_id"], "annotators": versions} for row in rows
    ]
    write_manifest("annotations", table_rows, out)
    report = report_of(annotators, rows, results, table_rows, root)
    names = {row["clip_id"]: _name(row, sources.get(row["video_id"])) for row in rows}
    report.slowest = [(names[clip_id], seconds) for clip_id, seconds in report.slowest]
    report.set_aside = [(names[clip_id], why) for clip_id, why in report.set_aside]
    return report


def _name(clip: Mapping[str, Any], video: Mapping[str, Any] | None) -> str:
    """A clip as a reader knows it: the video's name and the span."""
    return f"{video['name'] if video else clip['video_id']} {clip['start_s']:.2f}–{clip['end_s']:.2f} s"


def _description(clip: Mapping[str, Any], video: Mapping[str, Any] | None) -> str | None:
    """The caption that came with a clip's video, if the clip is nearly all of it: it may not fit one shot of many."""
    if video is None or not video["description"] or not video["duration_s"]:
        return None
    return video["description"] if clip["end_s"] - clip["start_s"] >= _WHOLE * video["duration_s"] else None


def _measured(
    pending: Sequence[ClipWork], annotators: Sequence[Annotator], kept: Results, settings: AnnotateSettings
) -> Iterator[Measured]:
    """Clips, measured: worker processes decode them, one process of models takes those that are ready by the unit."""
    late = late_axes(annotators, settings.unit_clips)
    ready: list[Measured] = []
    with ExitStack() as stack:
        models = stack.enter_context(ModelProcess(sorted(late), settings.clip_timeout_s)) if late else None
        for outcome in map_units(measure_clip, pending, "clips", settings.workers, settings.clip_timeout_s):
            measured = outcome.value or _given_up(outcome.unit, outcome.error or "", annotators, kept)
            if models is None or measured.view is None:
                yield measured
                continue
            ready.append(measured)
            if len(ready) == settings.unit_clips:
                models.submit(ready)
                ready = []
                yield from models.measured(wait=False)
        if models is not None:
            if ready:
                models.submit(ready)
            yield from models.measured(wait=True)


def _given_up(work: ClipWork, reason: str, annotators: Sequence[Annotator], kept: Results) -> Measured:
    """A clip whose worker crashed or hung, or that does not decode: what was kept of it before stays."""
    content = kept.content(work)
    result = kept.parts(work, content) if content else ClipResult()
    result.failed = {a.axis: reason for a in annotators if not result.settled(a.axis)}
    return Measured(work, content or "", result)


def _refuse_when_all_failed(annotators: Sequence[Annotator], results: Mapping[str, ClipResult]) -> None:
    for annotator in annotators:
        reasons = [r.failed[annotator.axis] for r in results.values() if annotator.axis in r.failed]
        if reasons and len(reasons) == len(results):
            raise BadInputError(
                f"annotator {annotator.name} ({annotator.axis}) failed on all {len(reasons)} clips, first: {reasons[0]}"
            )
