"""The split step's report: clips and cuts found, what either way to end a clip keeps, and what is in no clip."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ...common.report import StepReport, first_rows, histogram, images, leading, stored_jpeg, table
from ...common.storage import DataRoot
from ...common.tallies import Least, Seconds

_SHOWN, _LISTED = 48, 120
_DRAWN = 40  # clips of one length to choose the bins by
_END_WORDS = {"key_frame": "at a key frame (the paper)", "cut": "at the last whole frame before the cut (ours)"}


class Tally:
    """What a run did, video by video in any order; memory does not grow with their number.

    Args:
        end: which way to end a clip is used.

    Attributes:
        videos: how many there are.
        dropped: what became of the shots without a clip, and of the videos that could not be split.
    """

    def __init__(self, end: str) -> None:
        self.end, self.videos = end, 0
        self.dropped = Counter[str]()
        self.lost = Counter[str]()
        self._counts = Counter[str]()
        self._seconds = Seconds()
        self._hours_s = Seconds()
        self._yields = {way: Counter[str]() for way in _END_WORDS}
        self._yield_s = {way: Seconds() for way in _END_WORDS}
        self._lengths = Counter[float]()
        self._shown = Least[tuple[int, float, str, str]](_SHOWN)
        self._cuts = Least[tuple[str, dict[str, Any]]](_LISTED)
        self._faults = Least[list[Any]](_LISTED)
        self._aside = Least[tuple[str, str]](_LISTED)
        self._slowest: dict[str, float] = {}

    def add(self, number: int, name: str, result: Mapping[str, Any], took_s: float | None) -> None:
        """Count one video.

        Args:
            number: its place in the manifest.
            name: as a reader knows it.
            result: of ``split``.
            took_s: seconds; None when the result was found.
        """
        error, clips = result.get("error"), result["clips"]
        self._counts["done" if took_s is not None else "reused"] += 1
        self._counts["aside"] += bool(error)
        self._counts["with clips"] += bool(clips)
        self._counts["clips"] += len(clips)
        self._counts["cuts"] += len(result.get("cuts", []))
        self._counts["shots"] += result.get("shots", 0)
        self._seconds.add(result.get("seconds", 0.0))
        self.dropped.update(result.get("dropped", {}))
        self.dropped.update({"video cannot be split": 1} if error else {})
        self.lost.update(result.get("lost_frames", {}))
        for way, kept in result.get("yields", {}).items():
            self._yields[way].update(clips=kept["clips"], reordering_frames=kept["reordering_frames"])
            self._yield_s[way].add(kept["seconds"])
        for clip in clips:
            length_s = clip["end_s"] - clip["start_s"]
            self._hours_s.add(length_s)
            self._lengths[round(length_s, 2)] += 1
            caption = f"{name} {clip['start_s']:.2f}–{clip['end_s']:.2f} s"
            # ids are spread evenly, so the least are some of everywhere
            self._shown.add((clip["clip_id"],), (number, clip["start_s"], clip["thumbnail"], caption))
        for cut in result.get("cuts", []):
            self._cuts.add((number, cut["first"]), (name, cut))
        if error:
            self._aside.add((number,), (name, error))
        if error or result.get("fault"):
            self._faults.add((number,), [name, error or f"what is left is used: {result['fault']}"])
        if took_s is not None:
            self._slowest = dict(leading({**self._slowest, name: took_s}))

    def report(self, root: DataRoot) -> StepReport:
        """The report of the run; ``root`` holds the thumbnails."""
        counts, clips = self._counts, self._counts["clips"]
        yields = {
            way: {
                "clips": n["clips"],
                "seconds": round(self._yield_s[way].value, 3),
                "reordering_frames": n["reordering_frames"],
            }
            for way, n in self._yields.items()
        }
        seconds = self._seconds.value
        report = StepReport("split", "Shots found, clips cut", done=counts["done"], reused=counts["reused"])
        report.slowest = leading(self._slowest)
        report.set_aside = first_rows(self._aside)
        report.counts = {
            "videos": self.videos,
            "cuts": counts["cuts"],
            "shots": counts["shots"],
            "clips": clips,
            **{f"dropped: {k}": v for k, v in sorted((+self.dropped).items())},
        }
        report.summary = {
            "clips": {
                "count": clips,
                "videos": counts["with clips"],
                "hours": round(self._hours_s.value / 3600, 6),
                "mean_s": round(self._hours_s.value / max(clips, 1), 3),
                "cuts": counts["cuts"],
                "set_aside": counts["aside"],
                "source_seconds": round(seconds, 3),
                "yield": {
                    way: {**y, "share": round(y["seconds"] / max(seconds, 1e-9), 4)} for way, y in yields.items()
                },
            }
        }
        stored = [(stored_jpeg(root, uri), caption) for _, _, uri, caption in sorted(self._shown)]
        pictures = [(jpeg, caption) for jpeg, caption in stored if jpeg is not None]
        report.sections = [
            images(
                "First frame of every clip",
                pictures,
                note=f"{len(pictures)} of {clips} clips" if len(pictures) < clips else "",
            ),
            _lengths(self._lengths),
            _yields_table(yields, seconds, self.end),
        ]
        if lost := +self.lost:
            report.sections.append(
                table("Frames in no clip", ["why", "frames"], [[reason, n] for reason, n in lost.most_common()])
            )
        if counts["cuts"]:
            report.sections.append(_cuts_table(self._cuts, counts["cuts"]))
        if faults := list(self._faults):
            note = f"the first {_LISTED} are listed" if len(faults) == _LISTED else ""
            report.sections.append(
                table("Videos that do not decode to their end", ["video", "what happened"], faults, note)
            )
        return report


def _lengths(counts: Mapping[float, int]) -> dict[str, Any]:
    """A histogram of lengths that are counted already."""
    title = "Length of the clips"
    values = sorted(counts)
    drawn = histogram(title, np.repeat(values, [min(counts[value], _DRAWN) for value in values]), "s")
    if drawn["kind"] == "histogram":
        weights = [counts[value] for value in values]
        drawn["counts"] = np.histogram(values, bins=drawn["edges"], weights=weights)[0].astype(int).tolist()
    return drawn


def _cuts_table(cuts: Iterable[tuple[str, dict[str, Any]]], total: int) -> dict[str, Any]:
    listed = [
        [
            name,
            f"{c['time_s']:.2f}",
            f"{c['first']}" if c["first"] == c["last"] else f"{c['first']}–{c['last']}",
            _found_by(c),
        ]
        for name, c in cuts
    ]
    note = f"{_LISTED} of {total} cuts are listed" if total > _LISTED else ""
    columns = ["video", "time (s)", "frame", "levels (score / threshold)"]
    return table("Cuts and what found them", columns, listed, note)


def _yields_table(yields: dict[str, dict], seconds: float, end: str) -> dict[str, Any]:
    rows = [
        [
            _END_WORDS[way],
            y["clips"],
            f"{y['seconds']:.2f}",
            f"{100 * y['seconds'] / max(seconds, 1e-9):.1f} %",
            y["reordering_frames"],
            "yes" if way == end else "",
        ]
        for way, y in yields.items()
    ]
    head = ["clips end", "clips", "seconds", f"of {seconds:.2f} s", "frames lost to an open GOP or reordering", "used"]
    return table("What either way to end a clip keeps", head, rows)


def _found_by(cut: dict[str, Any]) -> str:
    best: dict[tuple[str, float | None], dict[str, Any]] = {}  # each level's strongest find
    for find in cut["evidence"]:
        level = (find["detector"], find["fps"])
        if level not in best or (find["score"] or 0) > (best[level]["score"] or 0):
            best[level] = find
    return "; ".join(_find_words(find) for find in best.values())


def _find_words(find: dict[str, Any]) -> str:
    if find["score"] is None:
        return str(find["detector"])
    rate = "every frame" if find["fps"] is None else f"{find['fps']:g} fps"
    return f"{find['detector']}, {rate}: {find['score']:.3g} / {find['threshold']:g}"
