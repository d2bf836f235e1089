"""What ingest shows: pictures, where the videos came from, what they are, and what was set aside."""

from __future__ import annotations

import io
from collections import Counter
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from ..common.report import StepReport, first_rows, images, leading, table
from ..common.storage import DataRoot
from .examine import HDR_TRANSFERS
from .uris import scheme_of

if TYPE_CHECKING:
    from .ingest import Entry
    from .sources import Source

_SHOWN = 24  # videos with a picture
_LISTED = 200  # rows of a table
_COLUMNS = ["name", "source", "container", "codec", "size (px)", "fps", "frames", "duration (s)", "what else",
            "licence", "description"]  # fmt: skip


def make_report(rows: list[dict[str, Any]], entries: list[Entry], root: DataRoot) -> StepReport:
    """The report of one run; ``rows`` of the manifest and their ``entries`` in the same order."""
    kept = [(row, entry) for row, entry in zip(rows, entries, strict=True) if row["status"] == "ok"]
    aside = [row for row in rows if row["status"] != "ok"]
    by_reason = dict(sorted(Counter(row["error"].split(":")[0] for row in aside).items()))
    sources = sum(len(entry.sources) for entry in entries)
    done = sum(entry.taken.examined for entry in entries)
    reused = sum(entry.taken.verdict is not None and not entry.taken.examined for entry in entries)
    report = StepReport("ingest", "Raw footage taken in", done=done, reused=reused)
    facts = _facts([row for row, _ in kept], [entry for _, entry in kept])
    report.counts = {
        "sources": sources,
        "duplicates": sources - len(rows),
        "videos": len(kept),
        "set aside": len(aside),
        **{f"set aside: {reason}": count for reason, count in by_reason.items()},
    }
    report.summary = {
        "videos": {
            "files": sources,
            "duplicates": sources - len(rows),
            "ok": len(kept),
            "set_aside": len(aside),
            "hours": round(sum(row["duration_s"] for row, _ in kept) / 3600, 6),
            "generated": sum(row["source"] == "generated" for row, _ in kept),
            "bytes_read": sum(entry.taken.fetched for entry in entries),
            "by_reason": by_reason,
            **{key: facts[key] for key in ("hdr", "interlaced", "variable_fps", "broken")},
        }
    }
    report.largest = leading({row["name"]: row["bytes"] for row, _ in kept})
    report.set_aside = first_rows((row["name"], row["error"]) for row in aside)
    report.sections = [
        _pictures(kept, root),
        _places(entries),
        _several([entry for entry in entries if len(entry.sources) > 1]),
        _licences(entries),
        *_fact_tables(facts, len(kept)),
        table("Videos", _COLUMNS, [_cells(row) for row, _ in kept[:_LISTED]], note=_note(len(kept), "videos")),
        table("Set aside", ["name", "bytes", "why"], [[r["name"], r["bytes"], r["error"]] for r in aside[:_LISTED]],
              note=_note(len(aside), "files")),
        _broken(kept),
        _bad_sidecars(entries),
    ]  # fmt: skip
    report.sections = [section for section in report.sections if section.get("rows") or section.get("items")]
    return report


def _pictures(kept: list[tuple[dict[str, Any], Entry]], root: DataRoot) -> dict[str, Any]:
    shown = _spread([pair for pair in kept if pair[0]["source"] != "generated"], _SHOWN // 2)
    shown += _spread([pair for pair in kept if pair[0]["source"] == "generated"], _SHOWN - len(shown))
    pictures = [
        (_picture(root.read((entry.taken.verdict or {})["thumbnail"])), f"{row['name']} ({row['source']})")
        for row, entry in shown
    ]
    note = "" if len(shown) == len(kept) else f"{len(shown)} of {len(kept)} videos are shown"
    return images("First and middle frames", pictures, note=note)


def _places(entries: list[Entry]) -> dict[str, Any]:
    """Counts by where the sources lie: a bucket, a host, files."""
    counts: dict[str, list[int]] = {}
    for entry in entries:
        for source in entry.sources:
            row = counts.setdefault(_whereabouts(source), [0, 0, 0, 0])
            row[0] += 1
            row[1] += entry.error is None
            row[2] += entry.error is not None
            row[3] += entry.taken.content.bytes if entry.taken.content else 0
    rows = [[place, *values] for place, values in sorted(counts.items())]
    return table("Sources", ["where", "sources", "usable", "set aside", "bytes"], rows[:_LISTED])


def _whereabouts(source: Source) -> str:
    if source.kind == "generated":
        return "generated"
    scheme = scheme_of(source.uri)
    if scheme == "s3":
        return f"s3://{source.uri[5:].split('/')[0]}"
    if scheme in ("http", "https"):
        try:
            return urlsplit(source.uri).hostname or scheme
        except ValueError:
            return scheme
    return "files"


def _several(entries: list[Entry]) -> dict[str, Any]:
    rows = [[e.sources[0].name, len(e.sources), ", ".join(s.name for s in e.sources[1:6])] for e in entries]
    return table("Videos with several sources", ["name", "sources", "also"], rows[:_LISTED],
                 note=_note(len(rows), "videos"))  # fmt: skip


def _licences(entries: list[Entry]) -> dict[str, Any]:
    used: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for entry in entries:
        for source in entry.sources:
            (refused if source.name in entry.refusals else used)[source.licence or "none named"] += 1
    rows = [[name, used[name], refused[name]] for name in sorted({*used, *refused})]
    return table("Licences", ["licence", "sources accepted", "sources refused"], rows[:_LISTED])


def _facts(rows: list[dict[str, Any]], entries: list[Entry]) -> dict[str, Any]:
    """Counts of what probing found."""
    return {
        "containers": Counter(row["container"].split(",")[0] for row in rows),
        "codecs": Counter(row["codec"] for row in rows),
        "rates": Counter("variable" if row["variable_fps"] else f"{row['fps']:.5g}" for row in rows),
        "hdr": sum(row["color_transfer"] in HDR_TRANSFERS for row in rows),
        "interlaced": sum(row["interlaced"] for row in rows),
        "variable_fps": sum(row["variable_fps"] for row in rows),
        "turned": sum(row["rotation"] != 0 for row in rows),
        "anamorphic": sum(row["pixel_aspect"] != 1 for row in rows),
        "letterboxed": sum(any(row["letterbox"] or ()) for row in rows),
        "letterbox not known": sum(row["letterbox"] is None for row in rows),
        "with sound": sum(row["audio"] for row in rows),
        "broken": sum(bool((entry.taken.verdict or {}).get("faults")) for entry in entries),
    }


def _fact_tables(facts: dict[str, Any], videos: int) -> list[dict[str, Any]]:
    counted = [
        [kind, name, count]
        for kind, key in (("container", "containers"), ("codec", "codecs"), ("frames a second", "rates"))
        for name, count in facts[key].most_common(12)
    ]
    names = {"hdr": "HDR (PQ or HLG)", "variable_fps": "variable frame rate", "broken": "broken inside"}
    traits = [[names.get(key, key), value, videos] for key, value in facts.items() if isinstance(value, int)]
    return [
        table("Containers, codecs, frame rates", ["what", "which", "videos"], counted),
        table("What probing found", ["videos that are", "count", "of"], traits),
    ]


def _cells(row: dict[str, Any]) -> list[Any]:
    container = row["container"].split(",")[0]
    size = f"{row['width']}×{row['height']}"
    traits = [
        *(["variable rate"] if row["variable_fps"] else []),
        *([f"turned {row['rotation']}°"] if row["rotation"] else []),
        *([f"pixels {row['pixel_aspect']:.4g}:1"] if row["pixel_aspect"] != 1 else []),
        *(["interlaced"] if row["interlaced"] else []),
        *([row["color_transfer"]] if row["color_transfer"] in HDR_TRANSFERS else []),
        *(["bars {}, {}, {}, {}".format(*row["letterbox"])] if any(row["letterbox"] or ()) else []),
        *(["sound"] if row["audio"] else []),
    ]
    values = [row["name"], row["source"], container, row["codec"], size, round(row["fps"], 3), row["frames"]]
    return [*values, round(row["duration_s"], 3), ", ".join(traits), row["licence"], row["description"]]


def _broken(kept: list[tuple[dict[str, Any], Entry]]) -> dict[str, Any]:
    rows = [[row["name"], "; ".join((e.taken.verdict or {})["faults"])] for row, e in kept
            if (e.taken.verdict or {}).get("faults")]  # fmt: skip
    return table("Broken inside, used as far as they decode", ["name", "what"], rows[:_LISTED],
                 note=_note(len(rows), "videos"))  # fmt: skip


def _bad_sidecars(entries: list[Entry]) -> dict[str, Any]:
    rows = [[s.name, s.sidecar_fault] for entry in entries for s in entry.sources if s.sidecar_fault]
    return table("Sidecars that cannot be read", ["video", "why"], rows[:_LISTED])


def _spread(pairs: list[Any], most: int) -> list[Any]:
    return pairs if len(pairs) <= most else [pairs[i] for i in np.linspace(0, len(pairs) - 1, most).astype(int)]


def _picture(jpeg: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def _note(total: int, what: str) -> str:
    return "" if total <= _LISTED else f"{_LISTED} of {total} {what} are shown"
