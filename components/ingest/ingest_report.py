"""What ingest shows: pictures, where the videos came from, what they are, and what was set aside."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..common.report import StepReport, first_rows, images, leading, stored_jpeg, table
from ..common.storage import DataRoot
from ..common.tallies import Least, Seconds
from .examine import HDR_TRANSFERS
from .uris import scheme_of

if TYPE_CHECKING:
    from .ingest import Entry
    from .sources import Source

_SHOWN = 24  # videos with a picture
_LISTED = 200  # rows of a table
_COLUMNS = ["name", "source", "container", "codec", "size (px)", "fps", "frames", "duration (s)", "what else",
            "licence", "description"]  # fmt: skip
_COUNTED = ("hdr", "interlaced", "variable_fps", "turned", "anamorphic", "letterboxed", "letterbox not known",
            "with sound", "broken")  # fmt: skip
_TRAITS = {"hdr": "HDR (PQ or HLG)", "variable_fps": "variable frame rate", "broken": "broken inside"}


class Tally:
    """What became of the sources, content by content in any order; memory does not grow with their number."""

    def __init__(self) -> None:
        self._counts = Counter[str]()
        self._by_reason = Counter[str]()
        self._facts = {name: Counter[str]() for name in ("container", "codec", "frames a second")}
        self._traits = Counter[str]()
        self._seconds = Seconds()
        self._places: dict[str, list[int]] = {}
        self._accepted, self._refused = Counter[str](), Counter[str]()
        self._largest: dict[str, int] = {}
        self._shown = {kind: Least[tuple[str, str, str]](_SHOWN) for kind in ("footage", "generated")}
        self._several, self._videos, self._aside, self._broken, self._sidecars = (
            Least[list[Any]](_LISTED) for _ in range(5)
        )

    def add(self, row: dict[str, Any], entry: Entry) -> None:
        """Count one content; ``row`` of the manifest and its ``entry``."""
        name, verdict, usable = row["name"], entry.taken.verdict or {}, row["status"] == "ok"
        self._counts.update(
            {
                "rows": 1,
                "sources": len(entry.sources),
                "done": int(entry.taken.examined),
                "reused": int(entry.taken.verdict is not None and not entry.taken.examined),
                "bytes read": entry.taken.fetched,
            }
        )
        for source in entry.sources:
            counts = self._places.setdefault(_whereabouts(source), [0, 0, 0, 0])
            size = entry.taken.content.bytes if entry.taken.content else 0
            counts[:] = [a + b for a, b in zip(counts, (1, usable, not usable, size), strict=True)]
            licences = self._refused if source.name in entry.refusals else self._accepted
            licences[source.licence or "none named"] += 1
            if source.sidecar_fault:
                self._sidecars.add(source.name, [source.name, source.sidecar_fault])
        if len(entry.sources) > 1:
            self._several.add(name, [name, len(entry.sources), ", ".join(s.name for s in entry.sources[1:6])])
        if not usable:
            self._by_reason[row["error"].split(":")[0]] += 1
            self._aside.add(name, [name, row["bytes"], row["error"]])
            return
        self._counts.update({"videos": 1, "generated": int(row["source"] == "generated")})
        self._seconds.add(row["duration_s"])
        self._largest = dict(leading({**self._largest, name: row["bytes"]}))
        # ids are spread evenly, so the least are some of everywhere
        self._shown[row["source"]].add(row["video_id"], (name, row["source"], verdict["thumbnail"]))
        self._videos.add(name, _cells(row))
        for what, which in _which(row).items():
            self._facts[what][which] += 1
        self._traits.update(_traits(row, verdict))
        if verdict.get("faults"):
            self._broken.add(name, [name, "; ".join(verdict["faults"])])

    def report(self, root: DataRoot) -> StepReport:
        """The report of the run; ``root`` holds the pictures."""
        counts, by_reason = self._counts, dict(sorted(self._by_reason.items()))
        sources, duplicates, aside = counts["sources"], counts["sources"] - counts["rows"], sum(by_reason.values())
        report = StepReport("ingest", "Raw footage taken in", done=counts["done"], reused=counts["reused"])
        report.counts = {
            "sources": sources,
            "duplicates": duplicates,
            "videos": counts["videos"],
            "set aside": aside,
            **{f"set aside: {reason}": count for reason, count in by_reason.items()},
        }
        report.summary = {
            "videos": {
                "files": sources,
                "duplicates": duplicates,
                "ok": counts["videos"],
                "set_aside": aside,
                "hours": round(self._seconds.value / 3600, 6),
                "generated": counts["generated"],
                "bytes_read": counts["bytes read"],
                "by_reason": by_reason,
                **{key: self._traits[key] for key in ("hdr", "interlaced", "variable_fps", "broken")},
            }
        }
        report.largest = leading(self._largest)
        report.set_aside = first_rows((name, why) for name, _, why in self._aside)
        places = [[place, *values] for place, values in sorted(self._places.items())]
        licences = [[n, self._accepted[n], self._refused[n]] for n in sorted({*self._accepted, *self._refused})]
        report.sections = [
            self._pictures(root),
            table("Sources", ["where", "sources", "usable", "set aside", "bytes"], places[:_LISTED]),
            _listed("Videos with several sources", ["name", "sources", "also"], self._several, "videos"),
            table("Licences", ["licence", "sources accepted", "sources refused"], licences[:_LISTED]),
            *self._fact_tables(),
            _listed("Videos", _COLUMNS, self._videos, "videos"),
            _listed("Set aside", ["name", "bytes", "why"], self._aside, "files"),
            _listed("Broken inside, used as far as they decode", ["name", "what"], self._broken, "videos"),
            _listed("Sidecars that cannot be read", ["video", "why"], self._sidecars, "sidecars"),
        ]
        report.sections = [section for section in report.sections if section.get("rows") or section.get("items")]
        return report

    def _pictures(self, root: DataRoot) -> dict[str, Any]:
        footage = list(self._shown["footage"])[: _SHOWN // 2]
        shown = sorted(footage) + sorted(list(self._shown["generated"])[: _SHOWN - len(footage)])
        stored = [(stored_jpeg(root, uri), f"{name} ({source})") for name, source, uri in shown]
        pictures = [(jpeg, caption) for jpeg, caption in stored if jpeg is not None]
        total = self._counts["videos"]
        note = "" if len(shown) == total else f"{len(shown)} of {total} videos are shown"
        return images("First and middle frames", pictures, note=note)

    def _fact_tables(self) -> list[dict[str, Any]]:
        counted = [
            [what, name, count] for what, counts in self._facts.items() for name, count in counts.most_common(12)
        ]
        traits = [[_TRAITS.get(key, key), self._traits[key], self._counts["videos"]] for key in _COUNTED]
        return [
            table("Containers, codecs, frame rates", ["what", "which", "videos"], counted),
            table("What probing found", ["videos that are", "count", "of"], traits),
        ]


def _listed(title: str, columns: list[str], rows: Least[list[Any]], what: str) -> dict[str, Any]:
    note = "" if rows.seen <= _LISTED else f"{_LISTED} of {rows.seen} {what} are shown"
    return table(title, columns, list(rows), note=note)


def _which(row: dict[str, Any]) -> dict[str, str]:
    """Of which kinds a video is."""
    rate = "variable" if row["variable_fps"] else f"{row['fps']:.5g}"
    return {"container": row["container"].split(",")[0], "codec": row["codec"], "frames a second": rate}


def _traits(row: dict[str, Any], verdict: dict[str, Any]) -> dict[str, int]:
    """What probing found a video to be, by name: 1 or 0."""
    found = (
        row["color_transfer"] in HDR_TRANSFERS, row["interlaced"], row["variable_fps"], row["rotation"] != 0,
        row["pixel_aspect"] != 1, any(row["letterbox"] or ()), row["letterbox"] is None, row["audio"],
        bool(verdict.get("faults")),
    )  # fmt: skip
    return {name: int(bool(is_so)) for name, is_so in zip(_COUNTED, found, strict=True)}


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
