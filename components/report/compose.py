"""From the steps' reports to ``report.html`` and ``summary.json``."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import __version__
from ..common.config import merge
from ..common.files import write_atomic
from ..common.report import StepReport
from ..common.steps import steps_directory
from .overview import curation_overview
from .page import render_page

LIBRARIES = (
    "torch",
    "deepspeed",
    "diffusers",
    "kfp",
    "dvc",
    "great_expectations",
    "duckdb",
    "av",
    "opencv-python-headless",
    "tritonclient",
)


def compose_report(
    workdir: str, run_id: str, profile: str, overrides: Mapping[str, Any], pipeline: str = "svdflow"
) -> str:
    """Write the page and the summary of one run; returns the page.

    The next run in the work directory has another page, whatever its pipeline; this one stays with the steps' reports.
    Steps appear in the order in which they ended. A run without any step's report gives a page that says so.
    """
    steps = steps_directory(workdir, run_id)
    files = sorted(steps.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    reports = [StepReport.from_json(path.read_bytes()) for path in files]
    run = {
        "id": run_id,
        "pipeline": pipeline,
        "profile": profile,
        "settings_changed": {key: _whole(value) for key, value in overrides.items()},
        "failed": [f"{r.step}: {r.error}" for r in reports if r.error],
        "versions": versions(reports),
    }
    summary = summarize(reports, run)
    html = render_page(reports, run, curation_overview(reports, summary))
    write_atomic(Path(workdir) / "summary.json", json.dumps(summary, indent=2, sort_keys=True).encode())
    for folder in (Path(workdir), steps):
        write_atomic(folder / "report.html", html.encode())
    return html


def _whole(value: Any) -> Any:
    """A whole number as one: pipelines know no others than floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def summarize(reports: list[StepReport], run: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a run under stable keys: the steps' own, and ``work``, ``seconds`` and ``run``."""
    summary: dict[str, Any] = {}
    for report in reports:
        checked = _together(summary.get("validation"), report.summary.get("validation"))
        summary = merge(summary, report.summary)
        if checked:
            summary["validation"] = checked
    summary["work"] = {r.step: {"done": r.done, "reused": r.reused} for r in reports}
    summary["seconds"] = {r.step: r.seconds for r in reports}
    summary["run"] = dict(run)
    return summary


def _together(earlier: Mapping[str, Any] | None, later: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Two validations of one run as one: a run checks its manifests where it makes them, in several steps."""
    if not earlier or not later:
        return dict(earlier or later or {}) or None
    counted = {name: earlier[name] + later[name] for name in ("expectations", "failed", "warnings")}
    listed = {n: [*earlier[n], *(row for row in later[n] if row not in earlier[n])] for n in ("broken", "warned")}
    return {**merge(earlier, later), **counted, **listed}


def versions(reports: list[StepReport]) -> dict[str, str]:
    """Versions of what made the run: svdflow, Python, the libraries, and what the steps name themselves."""
    found = {"svdflow": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    for report in reports:
        found |= report.versions
    return found
