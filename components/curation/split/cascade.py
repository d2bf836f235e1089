"""The cascade: PySceneDetect's detectors at several frame rates with several thresholds, fed from one decode.

A single threshold at the native rate misses fades and dissolves (paper, section 3.1 and appendix C): no two neighbours
differ much. A level that looks rarely sees the whole change at once, or much of it. At a level with a second, lower
threshold weak scores in a row make a transition when they add up to a change that lasts: the twin comparison of Zhang,
Kankanhalli and Smoliar (1993), on PySceneDetect's scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .cuts import Detection
from .settings import CutLevel

_ADAPTIVE_NEIGHBOURS = 2  # on either side: PySceneDetect's own default
_ADAPTIVE_MIN_CONTENT = 15.0  # a smaller change is no cut however still its neighbours are: PySceneDetect's own
_RATE = 1000.0  # detectors are told frame numbers, never times: any rate will do


class Cascade:
    """A CutFinder. A level looks at a frame whenever its period has passed, by the frames' own times."""

    def __init__(self, levels: Sequence[CutLevel], width_px: int) -> None:
        self._levels = [_Level(level) for level in levels]
        self._width_px = width_px
        rates = [level.fps for level in levels if level.fps]
        self.gap_s = 1 / min(rates) if rates else 0.0  # one frame of the coarsest level

    def look(self, index: int, time_s: float, frame: Any) -> list[Detection]:
        """See ``CutFinder``."""
        due = [level for level in self._levels if level.due(time_s)]
        if not due:
            return []
        width = min(self._width_px, frame.width)
        height = max(2, round(frame.height * width / frame.width))
        small = frame.reformat(width=width, height=height, format="bgr24", interpolation="AREA", threads=1)
        bgr = small.to_ndarray()  # scaled in one thread: the default takes as many as cores, in every worker
        return [found for level in due for found in level.look(index, time_s, bgr)]

    def finish(self) -> list[Detection]:
        """See ``CutFinder``."""
        return [found for level in self._levels for found in level.finish()]


class _Level:
    """One detector and the frames it has seen."""

    def __init__(self, level: CutLevel) -> None:
        self.level = level
        self.period_s = 1 / level.fps if level.fps else 0.0
        self.detector = _detector(level)
        # AdaptiveDetector judges a frame when it has seen its neighbours: the first and the last frame are repeated
        self.padding = _ADAPTIVE_NEIGHBOURS if level.detector == "adaptive" else 0
        self.next_s = 0.0
        self.number = 0  # of the next look
        self.frame_of: dict[int, int] = {}  # look to frame, the last few
        self.picture: Any = None
        self.scores: dict[int, float] = {}  # of the last looks, where a cut may hide one beside it
        self.cuts: set[int] = set()  # looks that are cuts
        self.run: list[Detection] = []  # looks with a weak score or a strong one, one after the other
        self.run_start: Any = None  # the picture before them
        self.run_end: Any = None

    def due(self, time_s: float) -> bool:
        return time_s >= self.next_s - 1e-6

    def look(self, index: int, time_s: float, bgr: Any) -> list[Detection]:
        self.next_s = (math.floor(time_s / self.period_s + 1e-6) + 1) * self.period_s if self.period_s else 0.0
        first = self.picture is None
        self.picture = bgr
        self.run_start = bgr if first else self.run_start
        return self._feed(index, 1 + self.padding if first else 1)

    def finish(self) -> list[Detection]:
        rest = self._feed(self.frame_of[self.number - 1], self.padding) if self.number else []
        for look in range(self.number - 2 * self.padding, self.number - self.padding):
            rest += self._beside_a_cut(look)
        return rest + self._end_run()

    def _feed(self, index: int, times: int) -> list[Detection]:
        from scenedetect import FrameTimecode

        finds = []
        for _ in range(times):
            self.frame_of[self.number] = index
            self.frame_of.pop(self.number - 2 * self.padding - 2, None)
            cuts = self.detector.process_frame(FrameTimecode(self.number, _RATE), self.picture)
            at = cuts[0].frame_num if cuts else self.number
            before = self.frame_of.get(at - 1, -1)
            if 0 <= before < self.frame_of[at]:
                finds += self._judge(before + 1, self.frame_of[at], bool(cuts))
            if self.padding:
                self.scores[self.number] = self.detector.newest
                self.scores.pop(self.number - 3 * self.padding - 1, None)
                self.cuts |= {cut.frame_num for cut in cuts}
                finds += self._beside_a_cut(self.number - 2 * self.padding)
            self.number += 1
        return finds

    def _beside_a_cut(self, look: int) -> list[Detection]:
        """A cut that AdaptiveDetector does not see, for a greater one lies within its window.

        Shots of one or two frames are flashes, and what is left over at the end of a badly cut shot. A change is then
        held against its other neighbours, by the detector's own threshold.
        """
        window = range(look - self.padding, look + self.padding + 1)
        score = self.scores.get(look, 0.0)
        if look in self.cuts or not self.cuts.intersection(window) or score < _ADAPTIVE_MIN_CONTENT:
            return []
        others = [self.scores[n] for n in window if n != look and n in self.scores and n not in self.cuts]
        ratio = _times_the_mean(score, others)
        if ratio < self.level.threshold or self.frame_of.get(look - 1, -1) in (-1, self.frame_of[look]):
            return []
        self.cuts.add(look)
        first, last = self.frame_of[look - 1] + 1, self.frame_of[look]
        return [Detection("adaptive", first, last, round(ratio, 4), self.level.threshold, self.level.fps)]

    def _judge(self, first: int, last: int, strong: bool) -> list[Detection]:
        """What a look finds: PySceneDetect's own verdict or, at a level with weak scores, the run that it ends."""
        level = self.level
        if not strong and level.weak is None:
            return []
        score = float(self.detector.score)
        found = Detection(level.detector, first, last, round(score, 4), level.threshold, level.fps)
        if level.weak is None:
            return [found]
        if strong or score >= level.weak:
            self.run.append(found)
            self.run_end = self.picture
            return []
        finds = self._end_run()
        self.run_start = self.picture
        return finds

    def _end_run(self) -> list[Detection]:
        """The finds of a run of looks, when the picture behind it is another one than before it.

        It is not where something passed in front of the camera.
        """
        run, self.run = self.run, []
        if not run:
            return run
        from scenedetect import FrameTimecode

        across = _detector(self.level)
        across.process_frame(FrameTimecode(0, _RATE), self.run_start)
        return run if across.process_frame(FrameTimecode(1, _RATE), self.run_end) else []


def _times_the_mean(score: float, others: Sequence[float]) -> float:
    """AdaptiveDetector's score: how many times the mean of its neighbours a change is."""
    around = sum(others) / len(others) if others else 0.0
    return min(score / around, 255.0) if around >= 1e-5 else 255.0


def _detector(level: CutLevel) -> Any:
    """A PySceneDetect detector that also tells the score of its last find as ``score``."""
    from scenedetect.detectors import AdaptiveDetector, ContentDetector, HashDetector, HistogramDetector

    class Content(ContentDetector):
        @property
        def score(self) -> float:
            return self._frame_score or 0.0

    class Adaptive(AdaptiveDetector):
        @property
        def score(self) -> float:
            scores = [score for _, score in self._buffer]
            return _times_the_mean(scores.pop(self.window_width), scores)

        @property
        def newest(self) -> float:
            return self._buffer[-1][1] if self._buffer else 0.0

    class Histogram(HistogramDetector):
        @property
        def score(self) -> float:
            return 1 - self.stats_manager.last

    class Hash(HashDetector):
        @property
        def score(self) -> float:
            return self.stats_manager.last

    match level.detector:
        case "adaptive":
            return Adaptive(
                level.threshold,
                min_scene_len=0,
                window_width=_ADAPTIVE_NEIGHBOURS,
                min_content_val=_ADAPTIVE_MIN_CONTENT,
            )
        case "histogram":
            detector: Any = Histogram(level.threshold, min_scene_len=0)
        case "hash":
            detector = Hash(level.threshold, min_scene_len=0)
        case _:
            return Content(level.threshold, min_scene_len=0)
    detector.stats_manager = _LastMetric()
    return detector


class _LastMetric:
    """Stands in for PySceneDetect's StatsManager, which would keep the scores of all frames."""

    last = 0.0

    def set_metrics(self, timecode: Any, metrics: dict[str, float]) -> None:
        (self.last,) = metrics.values()
