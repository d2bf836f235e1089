"""One self-contained HTML page for a run: the funnel, every step's pictures and figures, timings and versions.

No script, no font, no image from elsewhere: charts are inline SVG, pictures and videos are data URIs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.report import StepReport, escape

_STYLE = (Path(__file__).parent / "page.css").read_text()
_COLOURS = ("#2563eb", "#db2777", "#059669", "#d97706", "#7c3aed", "#0891b2")
_NARROW_CHARACTERS = 48  # of a table's row, in a third of the page
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 360, 190, 46, 34, 10


def render_page(
    reports: Sequence[StepReport], run: Mapping[str, Any], overview: Sequence[Mapping[str, Any]] = ()
) -> str:
    """The page as text.

    Args:
        reports: in the order to be shown.
        run: ``id``, ``pipeline``, ``profile``, ``settings_changed``, ``failed``, ``versions``; ``state`` where it is
            another than complete, failed or empty.
        overview: sections that no single step can tell, shown first.
    """
    failed = run["failed"]
    state = run.get("state") or ("failed" if failed else "complete" if reports else "empty")
    nav = "".join(f'<a href="#{escape(r.step)}">{escape(r.title)}</a>' for r in reports)
    body = "".join(_step(report) for report in reports) or "<p>No step of this run has told anything.</p>"
    errors = "".join(f'<p class="error">{escape(line)}</p>' for line in failed)
    changed = ", ".join(f"{key}={value}" for key, value in run["settings_changed"].items()) or "none"
    total = sum(r.seconds for r in reports)
    facts = [
        ("profile", run["profile"]),
        ("run", run["id"]),
        ("steps", len(reports)),
        ("time in steps", _duration(total)),
        ("settings changed", changed),
    ]
    chips = "".join(f"<li><b>{escape(name)}</b> {escape(value)}</li>" for name, value in facts)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>svdflow · {escape(run['pipeline'])} · {escape(run['profile'])}</title>"
        f"<style>{_STYLE}</style></head><body>"
        f"<header><h1>svdflow <span>{escape(run['pipeline'])}</span> "
        f'<em class="{escape(state)}">{escape(state)}</em></h1>'
        f'<ul class="chips">{chips}</ul>{errors}<nav>{nav}<a href="#run">Timings and versions</a></nav></header>'
        f"<main>{_overview(overview)}{_in_and_out(reports)}{body}{_closing(reports, run)}</main></body></html>"
    )


def _step(report: StepReport) -> str:
    counts = "".join(f"<li><b>{escape(value)}</b> {escape(name)}</li>" for name, value in report.counts.items())
    done = f"{report.done} done" + (f", {report.reused} found done" if report.reused else "")
    error = f'<p class="error">{escape(report.error)}</p>' if report.error else ""
    sections = "".join(_SECTIONS[section["kind"]](section) for section in report.sections)
    return (
        f'<section id="{escape(report.step)}">'
        f"<h2>{escape(report.title)} <small>{_duration(report.seconds)} · {done}</small></h2>"
        f'{error}<ul class="counts">{counts}</ul><div class="grid">{sections}</div></section>'
    )


def _overview(sections: Sequence[Mapping[str, Any]]) -> str:
    if not sections:
        return ""
    figures = "".join(_SECTIONS[section["kind"]](section) for section in sections)
    return f'<section id="overview"><h2>Curation at a glance</h2><div class="grid">{figures}</div></section>'


def _in_and_out(reports: Sequence[StepReport]) -> str:
    rows = [(r, name, value) for r in reports for name, value in r.counts.items()]
    if not rows or len(reports) == 1:
        return ""
    cells = "".join(
        f'<li><a href="#{escape(r.step)}"><i>{escape(r.title)}</i>'
        + "".join(f"<span><b>{escape(value)}</b> {escape(name)}</span>" for name, value in r.counts.items())
        + "</a></li>"
        for r in reports
        if r.counts
    )
    return f'<section id="counts"><h2>In and out of every step</h2><ol class="steps">{cells}</ol></section>'


def _closing(reports: Sequence[StepReport], run: Mapping[str, Any]) -> str:
    longest = max([r.seconds for r in reports] or [1.0]) or 1.0
    bars = "".join(
        f'<tr><td>{escape(r.title)}</td><td class="bar"><i style="width:{100 * r.seconds / longest:.1f}%"></i></td>'
        f"<td>{_duration(r.seconds)}</td><td>{r.done}</td><td>{r.reused}</td></tr>"
        for r in reports
    )
    rows = "".join(f"<tr><td>{escape(k)}</td><td>{escape(v)}</td></tr>" for k, v in run["versions"].items())
    return (
        '<section id="run"><h2>Timings and versions</h2><div class="grid">'
        '<figure class="wide"><table><thead>'
        "<tr><th>step</th><th></th><th>time</th><th>done</th><th>found done</th></tr></thead>"
        f"<tbody>{bars}</tbody></table></figure><figure><table><tbody>{rows}</tbody></table></figure></div></section>"
    )


def _figure(section: Mapping[str, Any], inner: str, wide: bool = False) -> str:
    note = f'<p class="note">{escape(section["note"])}</p>' if section.get("note") else ""
    start = '<figure class="wide">' if wide else "<figure>"
    return f"{start}<figcaption>{escape(section['title'])}</figcaption>{inner}{note}</figure>"


def _table(section: Mapping[str, Any]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in section["columns"])
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in section["rows"])
    longest = max((sum(len(str(cell)) for cell in row) for row in section["rows"]), default=0)
    wide = len(section["columns"]) > 4 or longest > _NARROW_CHARACTERS
    return _figure(
        section, f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>', wide
    )


def _funnel(section: Mapping[str, Any]) -> str:
    most = max([hours or 0.0 for _, _, hours in section["stages"]] or [0.0])
    rows, before = [], None
    for name, count, hours in section["stages"]:
        bar, share, kept = "", "", ""
        if hours is not None:
            bar = f'<i style="width:{100 * hours / most if most else 0:.1f}%"></i>'
            share = f"{100 * hours / most:.1f} %" if most else ""
            kept = f"{100 * hours / before:.1f} %" if before else ""
            before = hours
        rows.append(
            f'<tr><th scope="row">{escape(name)}</th><td class="bar">{bar}</td><td class="n"><b>{count:,}</b></td>'
            f'<td class="n">{escape(_hours(hours))}</td><td class="n">{share}</td><td class="n">{kept}</td></tr>'
        )
    head = (
        '<tr><th></th><th></th><th class="n">count</th><th class="n">length</th><th class="n">of the footage</th>'
        '<th class="n">of the stage before</th></tr>'
    )
    table = f'<table class="funnel"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'
    return _figure(section, f'<div class="scroll">{table}</div>', wide=True)


def _text(section: Mapping[str, Any]) -> str:
    return _figure(section, f"<p>{escape(section['body'])}</p>")


def _images(section: Mapping[str, Any]) -> str:
    height = int(section["height"])
    items = "".join(
        f'<span><img src="{item["src"]}" style="height:{height}px" alt="{escape(item["caption"])}">'
        f"<i>{escape(item['caption'])}</i></span>"
        for item in section["items"]
    )
    return _figure(section, f'<div class="strip">{items}</div>', wide=True)


def _videos(section: Mapping[str, Any]) -> str:
    height = int(section["height"])
    items = "".join(
        f'<span><video src="{item["src"]}" style="height:{height}px" autoplay loop muted playsinline></video>'
        f"<i>{escape(item['caption'])}</i></span>"
        for item in section["items"]
    )
    return _figure(section, f'<div class="strip">{items}</div>', wide=True)


def _histogram(section: Mapping[str, Any]) -> str:
    counts, edges, cut = section["counts"], section["edges"], section["cut"]
    low, high = edges[0], edges[-1]
    if cut is not None:
        low, high = min(low, cut), max(high, cut)
    x = _scale(low, high, _LEFT, _WIDTH - 16)
    y = _scale(0, max(counts) or 1, _HEIGHT - _BOTTOM, _TOP)
    parts = []
    for count, left, right in zip(counts, edges, edges[1:], strict=False):
        middle = (left + right) / 2
        dropped = cut is not None and (middle < cut if section["side"] == "below" else middle > cut)
        parts.append(
            f'<rect x="{x(left):.1f}" y="{y(count):.1f}" width="{max(x(right) - x(left) - 1, 1):.1f}" '
            f'height="{y(0) - y(count):.1f}" class="{"dropped" if dropped else "kept"}"><title>{count}</title></rect>'
        )
    if cut is not None:
        parts.append(f'<line x1="{x(cut):.1f}" x2="{x(cut):.1f}" y1="{_TOP}" y2="{y(0):.1f}" class="cut"/>')
        anchor = "end" if x(cut) > _WIDTH - 160 else "start"
        parts.append(
            f'<text x="{x(cut) + (4 if anchor == "start" else -4):.1f}" y="{_TOP + 9}" text-anchor="{anchor}" '
            f'class="cutlabel">cut {escape(float(cut))}</text>'
        )
    axes = _axes(x, y, _ticks(low, high), _ticks(0, max(counts) or 1, whole=True), section["unit"], "clips")
    return _figure(section, f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{axes}{"".join(parts)}</svg>')


def _curves(section: Mapping[str, Any]) -> str:
    log_y = section["log_y"]
    series = {
        name: [
            (px, py)
            for px, py in zip(xs, ys, strict=True)
            if py is not None and math.isfinite(py) and (py > 0 or not log_y)
        ]
        for name, (xs, ys) in section["series"].items()
    }
    points = [point for line in series.values() for point in line]
    if not points:
        return _figure(section, "<p>no values</p>")
    ys = [math.log10(p[1]) if log_y else p[1] for p in points]
    x = _scale(min(p[0] for p in points), max(p[0] for p in points), _LEFT, _WIDTH - 16)
    y_low, y_high = min(ys), max(ys)
    y = _scale(y_low, y_high, _HEIGHT - _BOTTOM, _TOP)
    lines, legend = [], []
    for index, (name, line) in enumerate(series.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        path = " ".join(f"{x(px):.1f},{y(math.log10(py) if log_y else py):.1f}" for px, py in line)
        lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        legend.append(f'<span><i style="background:{colour}"></i>{escape(name)}</span>')
    ticks = [(t, f"{10**t:.3g}" if log_y else None) for t in _ticks(y_low, y_high)]
    axes = _axes(
        x,
        y,
        _ticks(min(p[0] for p in points), max(p[0] for p in points)),
        [t for t, _ in ticks],
        section["x"],
        section["y"],
        [t for _, t in ticks],
    )
    return _figure(
        section,
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{axes}{"".join(lines)}</svg>'
        f'<div class="legend">{"".join(legend)}</div>',
    )


def _axes(
    x: Any,
    y: Any,
    x_ticks: list[float],
    y_ticks: list[float],
    x_name: str,
    y_name: str,
    y_labels: list[str | None] | None = None,
) -> str:
    base = _HEIGHT - _BOTTOM
    parts = [f'<line x1="{_LEFT}" x2="{_WIDTH - 16}" y1="{base}" y2="{base}" class="axis"/>']
    for tick in x_ticks:
        parts.append(f'<text x="{x(tick):.1f}" y="{base + 13}" text-anchor="middle">{tick:.3g}</text>')
    for tick, label in zip(y_ticks, y_labels or [None] * len(y_ticks), strict=True):
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - 16}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" class="gridline"/>')
        parts.append(f'<text x="{_LEFT - 4}" y="{y(tick) + 3:.1f}" text-anchor="end">{label or f"{tick:.3g}"}</text>')
    parts.append(
        f'<text x="{(_LEFT + _WIDTH) / 2:.0f}" y="{_HEIGHT - 5}" text-anchor="middle" class="name">'
        f"{escape(x_name)}</text>"
    )
    middle = (base + _TOP) / 2
    parts.append(
        f'<text x="9" y="{middle:.0f}" text-anchor="middle" transform="rotate(-90 9 {middle:.0f})" class="name">'
        f"{escape(y_name)}</text>"
    )
    return "".join(parts)


def _scale(low: float, high: float, start: float, end: float) -> Any:
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _ticks(low: float, high: float, whole: bool = False) -> list[float]:
    span = high - low
    if span <= 0:
        return [low]
    step = 10 ** math.floor(math.log10(span / 3))
    step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= 5)
    if whole:
        step = max(1, math.ceil(step))
    first = math.ceil(low / step - 1e-9) * step
    return [first + i * step for i in range(int((high - first) / step + 1e-9) + 1)]


def _hours(hours: float | None) -> str:
    if hours is None:
        return ""
    return f"{hours:,.1f} h" if hours >= 10 else _duration(hours * 3600)


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 90 else f"{int(seconds // 60)} min {int(seconds % 60):02d} s"


_SECTIONS = {
    "table": _table,
    "funnel": _funnel,
    "text": _text,
    "images": _images,
    "videos": _videos,
    "histogram": _histogram,
    "curves": _curves,
}
