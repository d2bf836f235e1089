"""What a validation found: the record of one expectation, the file of failing rows, and the step's report."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ...common.report import StepReport, table

_LONGEST_TEXT = 2000  # characters of a value in the file of failing rows


@dataclass
class Finding:
    """How one expectation fared.

    Attributes:
        manifest: whose expectation it is.
        name: what should hold.
        severity: "critical" or "warning".
        broken: rows (or facts) that break it.
        rows: some of them, whole where the expectation is on single rows.
        shown: the first of them for people: what names the row, and the columns that break the expectation.
        why: a sentence, where there are no rows to show.
    """

    manifest: str
    name: str
    severity: str
    broken: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    shown: list[dict[str, Any]] = field(default_factory=list)
    why: str = ""

    @property
    def held(self) -> bool:
        """Whether the expectation held."""
        return self.broken == 0

    @property
    def hard(self) -> bool:
        """Whether a run stops when it does not hold."""
        return self.severity != "warning"

    @property
    def columns(self) -> list[str]:
        """Columns of the rows shown, in the order in which they come."""
        return list(dict.fromkeys(name for row in self.shown for name in row))


def failing_rows(findings: Iterable[Finding]) -> bytes:
    """JSON lines: an object per broken row, with its manifest, expectation and severity."""
    lines = [
        json.dumps(
            {"manifest": f.manifest, "expectation": f.name, "severity": f.severity, "row": _plain(row)},
            ensure_ascii=False,
            allow_nan=False,
        )
        for f in findings
        for row in f.rows
    ]
    return "".join(line + "\n" for line in lines).encode()


def _plain(value: Any) -> Any:
    """As JSON can hold it; a figure that is not finite is often the fault itself, so it is spelled out."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return str(value)[:_LONGEST_TEXT]


def make_report(manifests: Mapping[str, Path], rows: Mapping[str, int], findings: Sequence[Finding]) -> StepReport:
    """The step's account: counts, what did not hold, and the stable figures under ``validation``."""
    broken = [f for f in findings if not f.held and f.hard]
    warned = [f for f in findings if not f.held and not f.hard]
    report = StepReport(step="validate", title="Validate manifests", done=len(findings))
    report.counts = {
        "manifests": len(manifests),
        "rows": sum(rows.values()),
        "expectations": len(findings),
        "broken": len(broken),
        "warnings": len(warned),
    }
    report.versions = {"great_expectations": version("great_expectations"), "duckdb": version("duckdb")}
    per_manifest: list[list[Any]] = []
    for kind in manifests:
        counts = [sum(f.manifest == kind for f in some) for some in (findings, broken, warned)]
        per_manifest.append([kind, rows.get(kind), *counts])
    report.sections.append(table("Manifests", ["manifest", "rows", "expectations", "broken", "warnings"], per_manifest))
    if broken or warned:
        lines = [
            [f.manifest, f.name, f.severity, f.broken, f.why or "; ".join(_brief(row) for row in f.shown[:2])]
            for f in broken + warned
        ]
        report.sections.append(
            table("What did not hold", ["manifest", "expectation", "severity", "rows", "for example"], lines)
        )
    report.summary = {
        "validation": {
            "expectations": len(findings),
            "failed": len(broken),
            "warnings": len(warned),
            "manifests": {k: rows.get(k) for k in manifests},
            "broken": [{"manifest": f.manifest, "expectation": f.name, "rows": f.broken} for f in broken],
            "warned": [{"manifest": f.manifest, "expectation": f.name, "rows": f.broken} for f in warned],
        }
    }
    return report


def _brief(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={'–' if v is None else str(v)[:24]}" for k, v in list(row.items())[:4])
