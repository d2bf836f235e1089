"""What a step tells about itself, and the one page that is made of it.

A step fills a StepReport; ``report/page.py`` turns many of them into one self-contained HTML page (no script from
elsewhere, no network request). Sections are typed so that a step says what it has to show and not how it looks.
"""

from __future__ import annotations

import base64
import heapq
import html
import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np

    from .storage import DataRoot

NumberT = TypeVar("NumberT", int, float)
_LEADING, _ROWS = 12, 200
_MAX_JPEG_BYTES = 1 << 20  # of a picture that a page takes up as it is


@dataclass
class StepReport:
    """A step's account of itself.

    Attributes:
        step: the task's name, as ``split``.
        title: as a reader would call it.
        done: units of work computed in this run; reused: units found done.
        counts: what went in and out, by name, in reading order; shown as the funnel.
        summary: merged into ``summary.json``; its top-level keys are the stable ones (``clips``, ``training``, …).
        sections: what is shown, made with the functions below.
        versions: of the libraries and models that made the result.
        slowest: what took longest in this run: names with seconds, made with ``leading``.
        largest: the largest inputs: names with bytes, made with ``leading``.
        set_aside: names and reasons of what could not be used, made with ``first_rows``.
        seconds: filled in by the step runner.
    """

    step: str
    title: str
    done: int = 0
    reused: int = 0
    counts: dict[str, int | float] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    sections: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    slowest: list[tuple[str, float]] = field(default_factory=list)
    largest: list[tuple[str, int]] = field(default_factory=list)
    set_aside: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    error: str | None = None

    def to_json(self) -> bytes:
        """As JSON; NaN and infinities become null."""
        return json.dumps(_finite(asdict(self)), indent=1).encode()

    @staticmethod
    def from_json(data: bytes) -> StepReport:
        """Inverse of ``to_json``."""
        return StepReport(**json.loads(data))


def table(title: str, columns: list[str], rows: list[list[Any]], note: str = "") -> dict[str, Any]:
    """A table; cells are text or numbers."""
    return {"kind": "table", "title": title, "columns": columns, "rows": rows, "note": note}


def text(title: str, body: str) -> dict[str, Any]:
    """A paragraph."""
    return {"kind": "text", "title": title, "body": body}


def funnel(title: str, stages: list[tuple[str, int, float | None]], note: str = "") -> dict[str, Any]:
    """What is left after every stage: name, count and hours (None where they mean nothing), in order."""
    return {"kind": "funnel", "title": title, "stages": [list(stage) for stage in stages], "note": note}


def leading(values: Mapping[str, NumberT], most: int = _LEADING) -> list[tuple[str, NumberT]]:
    """The names with the largest values, largest first; equal ones by name."""
    return heapq.nsmallest(most, values.items(), key=lambda item: (-item[1], item[0]))


def first_rows(rows: Iterable[tuple[str, str]], most: int = _ROWS) -> list[tuple[str, str]]:
    """So many rows as a page can show."""
    return list(islice(rows, most))


def histogram(
    title: str, values: Any, unit: str, cut: float | None = None, side: str = "below", note: str = ""
) -> dict[str, Any]:
    """A histogram of finite values; ``cut`` marks what was dropped (``side``: "below" or "above")."""
    import numpy as np

    if not isinstance(values, np.ndarray):
        values = [value for value in values if value is not None]
    array = np.asarray(values, dtype=float)
    array = array[np.isfinite(array)]
    if not len(array):
        return text(title, "no values")
    counts, edges = np.histogram(array, bins=min(40, max(8, int(np.sqrt(len(array)) * 2))))
    return {"kind": "histogram", "title": title, "counts": counts.tolist(), "edges": edges.tolist(), "unit": unit,
            "cut": cut, "side": side, "note": note}  # fmt: skip


def curves(
    title: str, series: dict[str, tuple[list[float], list[float]]], x: str, y: str, log_y: bool = False, note: str = ""
) -> dict[str, Any]:
    """Line curves: name to (xs, ys)."""
    return {"kind": "curves", "title": title, "x": x, "y": y, "log_y": log_y, "note": note,
            "series": {name: [list(map(float, xs)), list(map(float, ys))]
                       for name, (xs, ys) in series.items()}}  # fmt: skip


def images(
    title: str, items: Iterable[tuple[np.ndarray | bytes, str]], note: str = "", height_px: int = 96
) -> dict[str, Any]:
    """Pictures with captions, shown ``height_px`` high: uint8 [H, W, 3] arrays, or small JPEGs, embedded unopened."""
    drawn = [
        {"src": _embedded(image) if isinstance(image, bytes) else jpeg_data_uri(image), "caption": caption}
        for image, caption in items
    ]
    return {"kind": "images", "title": title, "note": note, "height": height_px, "items": drawn}


def videos(title: str, items: list[tuple[Path | bytes, str]], note: str = "", height_px: int = 128) -> dict[str, Any]:
    """Playable videos: small MP4 files (H.264) with captions, embedded."""
    out = []
    for source, caption in items:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        out.append({"src": "data:video/mp4;base64," + base64.b64encode(data).decode(), "caption": caption})
    return {"kind": "videos", "title": title, "note": note, "height": height_px, "items": out}


def jpeg_data_uri(image: np.ndarray, max_side: int = 320, quality: int = 82) -> str:
    """A uint8 [H, W, 3] RGB array as a JPEG data URI, made smaller when needed."""
    import numpy as np
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((max_side, max_side))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return _embedded(buffer.getvalue())


def stored_jpeg(root: DataRoot, uri: str) -> bytes | None:
    """A small JPEG out of the data root, unopened; None when what lies there is none, or not small."""
    return small_jpeg(root.read_range(uri, 0, _MAX_JPEG_BYTES + 1))


def small_jpeg(data: bytes) -> bytes | None:
    """The bytes, if by their beginning and their number they may be a page's JPEG."""
    return data if data.startswith(b"\xff\xd8\xff") and len(data) <= _MAX_JPEG_BYTES else None


def _embedded(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if hasattr(value, "item"):  # a NumPy scalar
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def escape(value: Any) -> str:
    """Text safe inside HTML; floats get four significant digits."""
    if value is None:
        return "–"
    if isinstance(value, float):
        value = f"{value:,.4g}" if abs(value) < 1e6 else f"{value:,.0f}"
    return html.escape(str(value))
