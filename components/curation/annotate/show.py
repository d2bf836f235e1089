"""The report of the annotate step: who measured what, how the axes spread, clips with their captions."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...common.decoding import ClipPlace, decode_each, pictures
from ...common.fanout import in_pods
from ...common.picture import shrink
from ...common.pixels import Pixels
from ...common.report import StepReport, first_rows, histogram, images, leading, table, text
from ...common.storage import DataRoot
from .annotator import Annotator
from .look import glance
from .results import ClipResult

_SHOWN, _FAILURES, _SET_ASIDE = 12, 50, 200


@dataclass
class _Axis:
    done: int = 0
    reused: int = 0
    failed: int = 0
    seconds: float = 0.0


class Tally:
    """Takes clips in the order of the manifest, one at a time, and makes the report; it keeps figures and no clip."""

    def __init__(self, annotators: Sequence[Annotator]) -> None:
        """Take annotators in the order in which they ran."""
        self._annotators = annotators
        self._names = {a.axis: f"{a.name}@{a.version}" for a in annotators}
        self.versions = json.dumps(self._names, sort_keys=True, ensure_ascii=False)
        self._axes = {a.axis: _Axis() for a in annotators}
        self._values = {axis: array("d") for axis in _PICK if axis in self._names}
        self._clips = self._decoded = self._failures = 0
        self._seconds, self._motion_unit = 0.0, ""
        self._slowest: list[tuple[str, float]] = []
        self._set_aside: list[tuple[str, str]] = []
        self._failed: list[list[str]] = []

    def add(self, clip: Mapping[str, Any], result: ClipResult) -> None:
        """One clip and what became of it."""
        self._clips += 1
        if result.columns:
            self._decoded += 1
            self._seconds += clip["end_s"] - clip["start_s"]
        for axis, of in self._axes.items():
            of.done += axis in result.computed
            of.reused += axis in result.reused
            of.failed += axis in result.failed
            of.seconds += result.computed.get(axis, 0.0)
        if result.computed:
            self._slowest = leading(dict([*self._slowest, (_name(clip), sum(result.computed.values()))]))
        if result.failed and not result.columns and len(self._set_aside) < _SET_ASIDE:
            self._set_aside.append((_name(clip), next(iter(result.failed.values()))))
        self._failures += len(result.failed)
        if len(self._failed) < _FAILURES:
            self._failed += [[clip["clip_id"], axis, why] for axis, why in result.failed.items()]
        self._motion_unit = self._motion_unit or result.columns.get("motion_unit") or ""
        for axis, values in self._values.items():
            if (value := _PICK[axis](result.columns)) is not None:
                values.append(value)

    def report(self, shown: Callable[[int], tuple[dict[str, Any], dict[str, Any]]], root: DataRoot) -> StepReport:
        """The step's report.

        Args:
            shown: a clip of the manifest and its annotations, by number.
            root: where clips lie, for pictures.
        """
        report = StepReport(step="annotate", title="Annotate clips")
        report.done = sum(of.done for of in self._axes.values())
        report.reused = sum(of.reused for of in self._axes.values())
        report.counts = {
            "clips in": self._clips,
            "clips annotated": self._decoded,
            "clips set aside": self._clips - self._decoded,
            "annotations failed": self._failures,
        }
        report.slowest, report.set_aside = self._slowest, first_rows(self._set_aside)
        report.versions = {f"annotator: {axis}": name for axis, name in self._names.items()}
        report.sections.append(self._per_annotator())
        units = {
            "motion": self._motion_unit,
            "text": "fraction of the frame",
            "watermark": "probability",
            "nsfw": "probability",
            "aesthetic": self._names.get("aesthetic", ""),
            "similarity": "cosine",
        }
        axes = {axis: np.array(values) for axis, values in self._values.items()}
        report.sections += [
            histogram(f"{axis}, mean over key frames" if axis != "motion" else axis, values, units[axis])
            for axis, values in axes.items()
        ]
        if self._failures:
            note = f"{self._failures} in all"
            report.sections.append(table("Set aside", ["clip", "axis", "reason"], self._failed[:_FAILURES], note=note))
        report.sections.append(_shown(self._clips, shown, root))
        report.summary = {
            "annotations": {
                "clips": self._clips,
                "annotated": self._decoded,
                "hours": self._seconds / 3600,
                "failed": self._failures,
                "annotators": dict(self._names),
                "stand_ins": sorted(a.name for a in self._annotators if a.stand_in_for),
                **{axis: _statistics(values) for axis, values in axes.items()},
            }
        }
        return report

    def _per_annotator(self) -> dict[str, Any]:
        rows = []
        for a in self._annotators:
            of, note = self._axes[a.axis], f"stands in for {a.stand_in_for}" if a.stand_in_for else ""
            rows.append([a.axis, self._names[a.axis], note, of.done, of.reused, of.failed, round(of.seconds, 2)])
        columns = ["axis", "annotator", "note", "done", "reused", "failed", "seconds"]
        return table("Annotators", columns, rows, note="seconds include each one's share of the clip's single decode")


def _name(clip: Mapping[str, Any]) -> str:
    """A clip as a reader knows it: the video's name and the span."""
    return f"{clip['name'] or clip['video_id']} {clip['start_s']:.2f}–{clip['end_s']:.2f} s"


def _mean(values: Iterable[Any]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


_SIMILAR = ("similarity_image", "similarity_video", "similarity_summary")
_PICK: dict[str, Callable[[Mapping[str, Any]], float | None]] = {  # one value of a clip's, for showing: means
    "motion": lambda columns: columns.get("motion_score"),
    **{
        axis: lambda columns, name=name: _mean(columns.get(name) or [])  # type: ignore[misc]
        for axis, name in (
            ("text", "text_area"),
            ("watermark", "watermark"),
            ("nsfw", "nsfw"),
            ("aesthetic", "aesthetic"),
        )
    },
    "similarity": lambda columns: _mean(value for name in _SIMILAR for value in columns.get(name) or []),
}


def _statistics(values: np.ndarray) -> dict[str, float | int]:
    if not len(values):
        return {"count": 0}
    return {
        "count": len(values),
        "mean": float(np.mean(values)),
        "min": float(np.min(values)),
        "max": float(np.max(values)),
    }


def _shown(clips: int, shown: Callable[[int], tuple[dict[str, Any], dict[str, Any]]], root: DataRoot) -> dict[str, Any]:
    """Pictures of clips spread over the manifest, with their captions."""
    if not clips:
        return text("Captions", "no clips")
    places, captions = list[ClipPlace](), list[str]()
    for index in sorted(set(np.linspace(0, clips - 1, min(_SHOWN, clips)).round().astype(int).tolist())):
        row, columns = shown(index)
        score = columns.get("motion_score")
        figures = "" if score is None else f" · motion {score:.2f}"
        places.append(ClipPlace.of(row, root))
        captions.append(f"{columns.get('caption_summary') or 'no caption'}{figures}")
    seen = pictures(decode_each(small_glance, places, root, "pictures", needed=False))
    return images("Clips and their captions", [(picture, captions[place]) for place, picture in seen])


@in_pods
def small_glance(clip: ClipPlace) -> Pixels:
    """A picture of a clip, made small for a page.

    Raises:
        BadInputError: no frame decodes.
    """
    return Pixels.of(shrink(glance(clip.read())))
