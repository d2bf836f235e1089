"""Where one shot ends and the next begins: finds of detectors, what a detector must offer, and how finds are merged."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby
from typing import Any, Protocol

_EVERY_FRAME_FPS = 1000.0  # stands for "every frame" where finds are put in order
# ours: a longer dissolve is rare, and a weak score that goes on is motion
_WEAK_REACH_S, _LONGEST_S = 2.0, 4.0  # from a strong find; of weak finds alone
_WIDENING = 0.25  # of a look, on either side of a gradual transition; ours, chosen on the tuning set of the benchmark


@dataclass(frozen=True)
class Detection:
    """One find: the change lies after frame ``first - 1`` and not after frame ``last``.

    Attributes:
        detector: what found it; "damage" and "timestamps" are no detectors but end a shot too.
        first: display index.
        last: display index.
        score: in the detector's unit.
        threshold: from which score on it finds.
        fps: how often the detector looks; None for every frame.
    """

    detector: str
    first: int
    last: int
    score: float | None = None
    threshold: float | None = None
    fps: float | None = None

    @property
    def weak(self) -> bool:
        """Whether it counts only beside a strong one."""
        return self.score is not None and self.threshold is not None and self.score < self.threshold


@dataclass(frozen=True)
class Transition:
    """Between two shots: one ends before frame ``first``, the next begins with frame ``last`` (equal at a hard cut)."""

    first: int
    last: int
    evidence: list[Detection] = field(default_factory=list)


class CutFinder(Protocol):
    """A backend of cut detection: it is shown every frame of a video once, in display order."""

    gap_s: float  # finds closer than this are one transition

    def look(self, index: int, time_s: float, frame: Any) -> list[Detection]:
        """Take a decoded frame (PyAV) in; finds may come later than their frames."""
        ...

    def finish(self) -> list[Detection]:
        """The finds that are left when the video is over."""
        ...


def merge_detections(detections: Iterable[Detection], times_s: Sequence[float], gap_s: float) -> list[Transition]:
    """The union of all finds, merged when closer than ``gap_s``.

    The rule is ours: the paper is silent. A find of a coarse level that spans a hard cut says nothing new and only adds
    evidence to it. Any other find of a coarse level is a gradual transition, with the weak finds that follow one
    another up to it; its faint beginning and end score nothing at all, so it is widened by a quarter of a look on
    either side. Frames inside a transition belong to no shot, so that neither a merger nor a dissolve lets a clip cross
    a cut.

    Args:
        detections: of all levels, in any order.
        times_s: when each frame is shown, ascending, and as one more value when the last one ends.
        gap_s: distance from the end of one transition to the beginning of the next.
    """
    spans: list[Transition] = []
    for level in _levels(detections):
        finer = _Spans(spans)
        if level[0].fps is None:
            spans += [Transition(found.first, found.last, [found]) for found in level]
            continue
        for run in _runs(level):
            around = [finer.overlapping(found) for found in run]
            cut = [any(span.first == span.last for span in over) for over in around]
            for found, over, gradual in zip(run, around, _gradual(run, around, cut, times_s), strict=True):
                if found.weak and not gradual:
                    continue  # mere motion
                for span in over:
                    span.evidence.append(found)
                if gradual:
                    spans.append(Transition(*_widened(found, times_s), [] if over else [found]))
    merged: list[Transition] = []
    evidence: list[dict[Detection, None]] = []  # of each, in order and without repeats
    for span in sorted(spans, key=lambda t: (t.first, t.last)):
        before = merged[-1] if merged else None
        if before and (span.first <= before.last or times_s[span.first] - times_s[before.last] < gap_s):
            merged[-1] = Transition(before.first, max(before.last, span.last))
            evidence[-1].update(dict.fromkeys(span.evidence))
        else:
            merged.append(span)
            evidence.append(dict.fromkeys(span.evidence))
    return [Transition(t.first, t.last, list(finds)) for t, finds in zip(merged, evidence, strict=True)]


def _gradual(
    run: Sequence[Detection], around: Sequence[Sequence[Transition]], cut: Sequence[bool], times_s: Sequence[float]
) -> list[bool]:
    """Which finds of a run are of a gradual transition.

    Strong ones that no hard cut explains are, and weak ones that overlap a gradual transition of a finer level. So are
    weak ones not far from those. Of weak ones alone all are, when there are not too many: they add up to a change.
    """
    if not any(cut) and times_s[run[-1].last] - times_s[run[0].first] <= _LONGEST_S:
        return [True] * len(run)
    anchors = [
        any(span.first < span.last for span in over) if found.weak else not is_cut
        for found, over, is_cut in zip(run, around, cut, strict=True)
    ]
    near = list(anchors)
    for step in (1, -1):
        reached: float | None = None
        for number in range(len(run))[::step]:
            began, ended = times_s[run[number].first], times_s[run[number].last]
            if anchors[number]:
                reached = ended if step == 1 else began
            elif reached is not None and run[number].weak and not cut[number]:
                near[number] |= (began - reached if step == 1 else reached - ended) <= _WEAK_REACH_S
    return near


def _widened(found: Detection, times_s: Sequence[float]) -> tuple[int, int]:
    margin_s = _WIDENING / (found.fps or _EVERY_FRAME_FPS)
    first = bisect_right(times_s, times_s[max(found.first - 1, 0)] - margin_s)
    return max(0, first), min(len(times_s) - 1, bisect_left(times_s, times_s[found.last] + margin_s))


class _Spans:
    """Transitions, to be asked which of them overlap a find."""

    def __init__(self, spans: Sequence[Transition]) -> None:
        self.spans = sorted(spans, key=lambda span: (span.first, span.last))
        self.firsts = [span.first for span in self.spans]
        self.furthest = list(accumulate((span.last for span in self.spans), max))  # end of any span up to each

    def overlapping(self, found: Detection) -> list[Transition]:
        over = []
        for number in range(bisect_right(self.firsts, found.last) - 1, -1, -1):
            if self.furthest[number] < found.first:
                break
            if self.spans[number].last >= found.first:
                over.append(self.spans[number])
        return over[::-1]


def _levels(detections: Iterable[Detection]) -> list[list[Detection]]:
    """The finds of each detector and rate in order, the one that looks most often first."""
    ordered = sorted(detections, key=lambda d: (-(d.fps or _EVERY_FRAME_FPS), d.detector, d.first, d.last))
    return [list(level) for _, level in groupby(ordered, key=lambda d: (d.fps, d.detector))]


def _runs(level: Sequence[Detection]) -> list[list[Detection]]:
    """Finds of one level that follow one another without a gap."""
    runs: list[list[Detection]] = []
    for found in level:
        if runs and found.first == runs[-1][-1].last + 1:
            runs[-1].append(found)
        else:
            runs.append([found])
    return runs


def shots_between(cuts: Sequence[Transition], frames: int) -> list[tuple[int, int]]:
    """First and last frame of every shot; the frames inside a gradual transition are in none."""
    starts = [0] + [cut.last for cut in cuts]
    stops = [cut.first - 1 for cut in cuts] + [frames - 1]
    return [(start, stop) for start, stop in zip(starts, stops, strict=True) if start <= stop]
