"""Cut detection against the truth, against plain PySceneDetect, and one decode against three passes.

Figures are printed; run with ``-s``. The test set shares no shot with the tuning set on which the defaults were chosen;
the unseen one is of shots that nobody looked at.
"""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import pytest
from known_cuts import MEDIA, Truth, joined_videos

from svdflow.curation.split.cascade import Cascade
from svdflow.curation.split.clipping import plan_spans
from svdflow.curation.split.cuts import Transition, merge_detections, shots_between
from svdflow.curation.split.scan import Checksums, Scan, scan_video
from svdflow.curation.split.settings import CutLevel, SplitSettings

VIDEOS = 24
NEAR = 2  # frames that a find may be off
DEFAULTS = SplitSettings()

pytestmark = pytest.mark.skipif(len(list(MEDIA.glob("*.mp4"))) < 5, reason="sample footage is not there: make setup")


@dataclass
class Case:
    """A video of the test set with its truth, what the cascade found, and PySceneDetect's scores of all frames."""

    truths: list[Truth]
    scan: Scan
    cuts: list[Transition]
    content: list[float]


@pytest.fixture(scope="module", params=["test", "unseen"])
def cases(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    base, made = tmp_path_factory.mktemp("cuts"), []
    print(f"\nset: {request.param}", end="")
    for number, (data, truths, frames) in enumerate(joined_videos(request.param, VIDEOS)):
        path = base / f"{number}.mp4"
        path.write_bytes(data)
        scan = scan_video(path, Cascade(DEFAULTS.levels, DEFAULTS.detect_width_px), 24)
        assert len(scan.pts) == frames and scan.fault is None
        cuts = merge_detections(scan.detections, scan.times_s, scan.gap_s)
        level = CutLevel(threshold=1e-6)  # every frame's score
        scores = scan_video(path, Cascade((level,), DEFAULTS.detect_width_px), 24, checksums="off").detections
        content = np.zeros(frames)
        for find in scores:
            content[find.last] = find.score
        made.append(Case(truths, scan, cuts, content.tolist()))
    return made


def touches(cut: tuple[int, int], truth: Truth) -> bool:
    return cut[0] <= truth.last + NEAR and cut[1] >= truth.first - NEAR


def precision_and_recall(cases: list[Case], found: list[list[tuple[int, int]]]) -> tuple[float, float]:
    """Share of the found that touch a true transition, share of the true gradual ones that are touched."""
    right = [any(touches(cut, t) for t in case.truths) for case, cuts in zip(cases, found, strict=True) for cut in cuts]
    gradual = [
        any(touches(cut, t) for cut in cuts)
        for case, cuts in zip(cases, found, strict=True)
        for t in case.truths
        if t.kind != "hard"
    ]
    return float(np.mean(right)) if right else 1.0, float(np.mean(gradual))


def plain(case: Case, threshold: float, min_scene_frames: int = 15) -> list[tuple[int, int]]:
    """ContentDetector at the native rate with its own defaults, out of PySceneDetect's own scores and filter."""
    from scenedetect import FrameTimecode
    from scenedetect.detector import FlashFilter

    merge = FlashFilter(FlashFilter.Mode.MERGE, min_scene_frames)
    cuts = []
    for frame, score in enumerate(case.content):
        cuts += merge.filter(FrameTimecode(frame, 24.0), score >= threshold)
    return [(cut.frame_num, cut.frame_num) for cut in cuts]


def test_cuts_of_the_test_set(cases):
    ours = [[(cut.first, cut.last) for cut in case.cuts] for case in cases]
    precision, recall = precision_and_recall(cases, ours)

    # hard cuts: the finds of no width. One inside a fade or dissolve is right, but no hard cut's
    hard = [[t for t in case.truths if t.kind == "hard"] for case in cases]
    sharp = [sorted({f.last for cut in case.cuts for f in cut.evidence if f.fps is None}) for case in cases]
    hit = sum(any(abs(n - t.first) <= NEAR for n in finds) for finds, ts in zip(sharp, hard, strict=True) for t in ts)
    total = sum(map(len, hard))
    false = sum(
        not any(touches((n, n), t) for t in case.truths)
        for case, finds in zip(cases, sharp, strict=True)
        for n in finds
    )
    exact = sum(t.first in finds for finds, ts in zip(sharp, hard, strict=True) for t in ts)
    f1 = 2 * hit / (2 * hit + false + (total - hit))

    curve = [
        (*precision_and_recall(cases, [plain(case, threshold) for case in cases]), threshold)
        for threshold in (5, 6, 7, 8, 9, 10, 12, 15, 18, 21, 24, 27, 30, 35, 40)
    ]
    equal = max((r for p, r, _ in curve if p >= precision), default=0.0)
    default = next((p, r) for p, r, threshold in curve if threshold == 27)

    inside = transition = pure = left_out = 0
    for case, cuts in zip(cases, (case.cuts for case in cases), strict=True):
        in_shot = np.zeros(len(case.scan.pts), bool)
        for first, last in shots_between(cuts, len(in_shot)):
            in_shot[first : last + 1] = True
        of_transition = np.zeros_like(in_shot)
        for truth in case.truths:
            of_transition[truth.first : truth.last] = True
        inside, transition = inside + (in_shot & of_transition).sum(), transition + of_transition.sum()
        left_out, pure = left_out + (~in_shot & ~of_transition).sum(), pure + (~of_transition).sum()

    gradual = sum(len(case.truths) for case in cases) - total
    print(f"\n{platform.machine()}, {VIDEOS} videos, {total} hard cuts, {gradual} gradual transitions")
    print(f"hard cuts: F1 {f1:.3f} ({hit} of {total} found, {exact} at their very frame, {false} false)")
    print(f"gradual: recall {recall:.3f} at precision {precision:.3f}; plain ContentDetector at no less: {equal:.3f}")
    print(f"plain ContentDetector at its default 27: recall {default[1]:.3f}, precision {default[0]:.3f}")
    print("its curve:", ", ".join(f"{t}: P {p:.2f} R {r:.2f}" for p, r, t in curve))
    print(f"{100 * inside / transition:.1f} % of the transitions' frames are left in shots, "
          f"{100 * left_out / pure:.1f} % of the others are in none")  # fmt: skip
    assert f1 >= 0.95
    assert recall > equal

    for case in cases:
        for end in ("key_frame", "cut"):
            shots = shots_between(case.cuts, len(case.scan.pts))
            plan = plan_spans(case.scan.packets, case.scan.times_s, shots, end, 0.2, 60.0)
            for span in plan.spans:
                crossed = [t for t in case.truths if t.kind == "hard" and span.first < t.first <= span.last]
                assert not crossed


def three_passes(path: Path) -> float:
    """Seconds that PySceneDetect takes for the same detectors one after the other, each with a decode of its own."""
    from scenedetect import SceneManager, open_video
    from scenedetect.detectors import AdaptiveDetector, ContentDetector, HistogramDetector

    began = time.perf_counter()
    for detector, skip in ((AdaptiveDetector(3.5), 0), (ContentDetector(35.0), 2), (HistogramDetector(0.5), 7)):
        manager = SceneManager()
        manager.auto_downscale, manager.downscale = False, 20  # 1280 px to 64
        manager.add_detector(detector)
        manager.detect_scenes(open_video(str(path), backend="pyav", threading_mode="NONE"), frame_skip=skip)
    return time.perf_counter() - began


def one_decode(path: Path, checksums: Checksums) -> float:
    began = time.perf_counter()
    scan = scan_video(path, Cascade(DEFAULTS.levels, DEFAULTS.detect_width_px), 24, checksums)
    merge_detections(scan.detections, scan.times_s, scan.gap_s)
    return time.perf_counter() - began


def test_one_decode_against_three_passes():
    """The 720p trailer, 55 s; decoding in one thread for both."""
    cv2.setNumThreads(1)
    path = MEDIA / "trailer_bbb.mp4"
    rounds = [(three_passes(path), one_decode(path, "packets"), one_decode(path, "frames")) for _ in range(3)]
    plain_s, ours_s, checked_s = (median(column) for column in zip(*rounds, strict=True))
    print(
        f"\n{platform.machine()}: three PySceneDetect passes take {plain_s / ours_s:.2f} times as long as the cascade,"
    )
    print(f"{plain_s / checked_s:.2f} times that with checksums of all frames")
    assert plain_s / ours_s > 1.5
