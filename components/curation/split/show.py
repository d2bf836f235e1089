"""The split step's report: clips and cuts found, what either way to end a clip keeps, and what is in no clip."""

from __future__ import annotations

import io
from collections import Counter
from typing import Any

import numpy as np

from ...common.report import StepReport, first_rows, histogram, images, table
from ...common.storage import DataRoot

_SHOWN, _LISTED = 48, 120
_END_WORDS = {"key_frame": "at a key frame (the paper)", "cut": "at the last whole frame before the cut (ours)"}


def split_report(rows: list[dict], results: dict[str, dict], clips: list[dict], root: DataRoot, end: str) -> StepReport:
    """The report of a run.

    Args:
        rows: of the manifest ``videos`` that were split.
        results: each video's result, by video_id.
        clips: all clips, with the URIs of their thumbnails.
        root: holds the thumbnails.
        end: which way to end a clip was used.
    """
    names = {row["video_id"]: row["name"] for row in rows}
    lengths = [clip["end_s"] - clip["start_s"] for clip in clips]
    cuts = [(names[video_id], cut) for video_id, result in results.items() for cut in result.get("cuts", [])]
    dropped, lost = dropped_by_reason(results), Counter[str]()
    for result in results.values():
        lost.update(result.get("lost_frames", {}))
    faults = [
        [names[v], r.get("error") or f"what is left is used: {r['fault']}"]
        for v, r in results.items()
        if r.get("error") or r.get("fault")
    ]
    shots = sum(result.get("shots", 0) for result in results.values())
    yields, seconds = _yields(results), sum(result.get("seconds", 0.0) for result in results.values())
    report = StepReport("split", "Shots found, clips cut")
    report.set_aside = first_rows((names[v], r["error"]) for v, r in results.items() if r.get("error"))
    report.counts = {
        "videos": len(rows),
        "cuts": len(cuts),
        "shots": shots,
        "clips": len(clips),
        **{f"dropped: {k}": v for k, v in sorted(dropped.items())},
    }
    report.summary = {
        "clips": {
            "count": len(clips),
            "videos": len({clip["video_id"] for clip in clips}),
            "hours": round(sum(lengths) / 3600, 6),
            "mean_s": round(float(np.mean(lengths)), 3),
            "cuts": len(cuts),
            "set_aside": sum(bool(result.get("error")) for result in results.values()),
            "source_seconds": round(seconds, 3),
            "yield": {way: {**y, "share": round(y["seconds"] / max(seconds, 1e-9), 4)} for way, y in yields.items()},
        }
    }
    shown = clips if len(clips) <= _SHOWN else [clips[i] for i in np.linspace(0, len(clips) - 1, _SHOWN).astype(int)]
    pictures = [
        (
            _picture(root.read(clip["thumbnail"])),
            f"{names[clip['video_id']]} {clip['start_s']:.2f}–{clip['end_s']:.2f} s",
        )
        for clip in shown
    ]
    report.sections = [
        images(
            "First frame of every clip",
            pictures,
            note=f"{len(shown)} of {len(clips)} clips" if len(shown) < len(clips) else "",
        ),
        histogram("Length of the clips", lengths, "s"),
        _yields_table(yields, seconds, end),
    ]
    if lost:
        report.sections.append(
            table("Frames in no clip", ["why", "frames"], [[reason, n] for reason, n in lost.most_common()])
        )
    if cuts:
        listed = [
            [
                name,
                f"{c['time_s']:.2f}",
                f"{c['first']}" if c["first"] == c["last"] else f"{c['first']}–{c['last']}",
                _found_by(c),
            ]
            for name, c in cuts
        ]
        note = f"{_LISTED} of {len(cuts)} cuts are listed" if len(cuts) > _LISTED else ""
        report.sections.append(
            table(
                "Cuts and what found them",
                ["video", "time (s)", "frame", "levels (score / threshold)"],
                listed[:_LISTED],
                note,
            )
        )
    if faults:
        report.sections.append(table("Videos that do not decode to their end", ["video", "what happened"], faults))
    return report


def dropped_by_reason(results: dict[str, dict[str, Any]]) -> Counter[str]:
    """What became of the shots without a clip, and of the videos that could not be split."""
    dropped = Counter[str]()
    for result in results.values():
        dropped.update(result.get("dropped", {}))
        dropped["video cannot be split"] += bool(result.get("error"))
    return +dropped


def _yields(results: dict[str, dict]) -> dict[str, dict[str, Any]]:
    """What either way to end a clip keeps of all videos."""
    total: dict[str, dict[str, Any]] = {}
    for way in _END_WORDS:
        each = [result["yields"][way] for result in results.values() if "yields" in result]
        total[way] = {key: sum(y[key] for y in each) for key in ("clips", "seconds", "reordering_frames")}
        total[way]["seconds"] = round(total[way]["seconds"], 3)
    return total


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


def _picture(jpeg: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))
