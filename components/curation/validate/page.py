"""The validation page: one HTML file that asks for nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_TEMPLATE = Path(__file__).with_name("page.html")


def render(
    manifests: Mapping[str, Path], rows: Mapping[str, int], findings: Sequence[Any], versions: Mapping[str, str]
) -> str:
    """The page as text.

    Args:
        manifests: kind to file, in the order to be shown.
        rows: kind to row count, of those that could be read.
        findings: all expectations and how they fared.
        versions: of the libraries used.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cell"] = _cell
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    broken = [f for f in findings if not f.held and f.severity != "warning"]
    warned = [f for f in findings if not f.held and f.severity == "warning"]
    groups = [(kind, rows.get(kind), [f for f in findings if f.manifest == kind]) for kind in manifests]
    return template.render(
        groups=groups, broken=broken, warned=warned, total=len(findings), versions=versions, all_rows=sum(rows.values())
    )


def _cell(value: Any) -> str:
    """A value as short text; the template escapes it."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.6g}"
    words = str(value)
    return words if len(words) <= 80 else words[:77] + "…"
