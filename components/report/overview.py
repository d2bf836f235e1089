"""What only several steps together tell of a curation: the funnel with its hours, the slowest and largest videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..common.report import StepReport, funnel, table

_LISTED = 16


def curation_overview(reports: Sequence[StepReport], summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Sections for the top of the page, as far as the steps that ended can fill them.

    Args:
        reports: the steps' reports.
        summary: their summaries, joined.
    """
    sections = [_funnel(summary), _slowest(reports), _largest(reports), _set_aside(reports)]
    return [section for section in sections if section is not None]


def _funnel(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    videos, clips = summary.get("videos"), summary.get("clips")
    if not videos or not clips:
        return None
    annotated, selection = summary.get("annotations"), summary.get("selection")
    stages: list[tuple[str, int, float | None]] = [
        ("files", videos["files"], None),
        ("videos", videos["ok"], videos["hours"]),
        ("clips", clips["count"], clips["hours"]),
    ]
    if annotated and "annotated" in annotated:
        stages.append(("clips annotated", annotated["annotated"], annotated["hours"]))
    if selection:
        stages.append(("clips kept", selection["kept"], selection["hours_kept"]))
    note = "the paper keeps 152 of 577 million clips" if selection else ""
    return funnel("From footage to dataset", stages, note)


def _slowest(reports: Sequence[StepReport]) -> dict[str, Any] | None:
    rows = sorted(((s, r.title, name) for r in reports for name, s in r.slowest), reverse=True)[:_LISTED]
    if not rows:
        return None
    shown = [[name, title, round(seconds, 2)] for seconds, title, name in rows]
    return table("Slowest", ["what", "step", "seconds"], shown, note="of what was computed in this run")


def _largest(reports: Sequence[StepReport]) -> dict[str, Any] | None:
    rows = sorted(((size, name) for r in reports for name, size in r.largest), reverse=True)[:_LISTED]
    if not rows:
        return None
    return table("Largest videos", ["video", "MB"], [[name, round(size / 1e6, 3)] for size, name in rows])


def _set_aside(reports: Sequence[StepReport]) -> dict[str, Any] | None:
    rows = [[name, r.title, why] for r in reports for name, why in r.set_aside]
    return table("Set aside, and why", ["what", "step", "why"], rows) if rows else None
