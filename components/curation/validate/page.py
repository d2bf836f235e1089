"""The validation page: one HTML file that asks for nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .drift import Shift
from .findings import Finding

_TEMPLATE = Path(__file__).with_name("page.html")


def render(
    manifests: Mapping[str, Path],
    rows: Mapping[str, int],
    findings: Sequence[Finding],
    shifts: Sequence[Shift],
    versions: Mapping[str, str],
) -> str:
    """The page as text.

    Args:
        manifests: kind to file, in the order to be shown.
        rows: kind to row count, of those that could be read.
        findings: all expectations and how they fared.
        shifts: of the axes since the previous version; none when there is nothing to compare with.
        versions: of the libraries used.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cell"] = _cell
    environment.filters["counted"] = "{:,}".format
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    broken = [f for f in findings if not f.held and f.hard]
    warned = [f for f in findings if not f.held and not f.hard]
    groups = [
        (kind, rows.get(kind), sorted((f for f in findings if f.manifest == kind), key=lambda f: (f.held, not f.hard)))
        for kind in manifests
    ]
    bars = [(shift, _bars(shift)) for shift in shifts]
    return template.render(
        groups=groups,
        broken=broken,
        warned=warned,
        shifts=bars,
        total=len(findings),
        versions=versions,
        all_rows=sum(rows.values()),
    )


def _bars(shift: Shift) -> list[tuple[float, float, str]]:
    """Per bin the two bars' heights (0 to 1) and what they stand for."""
    shares = shift.shares()
    tallest = max(max(pair) for pair in shares) or 1.0
    edges = [f"{edge:.4g}" for edge in shift.before.edges]
    names = [*(f"up to {edge}" for edge in edges), f"above {edges[-1]}" if edges else "any value", "missing"]
    if edges:
        names[0] = "below the least before"  # the first edge lies just below it
    return [
        (before / tallest, after / tallest, f"{name}: {before:.1%} before, {after:.1%} now")
        for (before, after), name in zip(shares, names, strict=True)
    ]


def _cell(value: Any) -> str:
    """A value as short text; the template escapes it."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.6g}"
    words = str(value)
    return words if len(words) <= 80 else words[:77] + "…"
