"""Whole steps that are found done: what they wrote, and their report, under the identity of all they were given."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from .files import link_tree
from .report import StepReport
from .storage import DataRoot


def find_finished(root: DataRoot, step: str, key: str, outputs: Mapping[str, Path]) -> StepReport | None:
    """Put a finished step's outputs in place again; returns its report, or None when it was not done yet.

    Args:
        root: where it was recorded.
        step: the step's name, the kind of the record.
        key: identity of inputs, settings and code.
        outputs: name to the file or directory to write.
    """
    found = root.find(step, key)
    if found is None:
        return None
    for name, path in outputs.items():
        uri = found["outputs"][name]
        path.parent.mkdir(parents=True, exist_ok=True)
        if uri.endswith(".dir"):
            link_tree(root.fetch_tree(uri), path)
        else:
            shutil.copyfile(root.fetch(uri), path)
    report = StepReport.from_json(root.read(found["report"]))
    report.done, report.reused = 0, report.done + report.reused
    return report


def record_finished(root: DataRoot, step: str, key: str, outputs: Mapping[str, Path], report: StepReport) -> None:
    """Record what a step wrote, and its report."""
    kept = {name: root.put_tree(path) if path.is_dir() else root.put_file(path) for name, path in outputs.items()}
    root.record(step, key, {"outputs": kept, "report": root.put_bytes(report.to_json())})
