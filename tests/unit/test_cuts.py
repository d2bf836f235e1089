"""Cuts are found at their frame, slow changes by the levels that look rarely, and a merger never hides a cut."""

import dataclasses
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svdflow.common.video import encode_mp4
from svdflow.curation.split.cascade import Cascade
from svdflow.curation.split.cuts import Detection, merge_detections, shots_between
from svdflow.curation.split.settings import CutLevel, SplitSettings
from svdflow.ingest.footage import make_scene
from tests.split_footage import FPS, encode, find_cuts, shots


@pytest.mark.parametrize("lengths", [[20, 31], [13, 18, 25], [40], [2, 30, 2]])
def test_hard_cuts_are_found_at_their_very_frame(tmp_path, lengths):
    frames, truth = shots(lengths)
    (tmp_path / "v.mp4").write_bytes(encode_mp4(frames, FPS))
    found, cuts = find_cuts(tmp_path / "v.mp4")
    assert [(cut.first, cut.last) for cut in cuts] == [(n, n) for n in truth]
    assert len(found.pts) == len(found.checksums) == sum(lengths) and found.fault is None
    for cut in cuts:
        assert any(find.fps is None for find in cut.evidence)
        assert all(find.score >= find.threshold for find in cut.evidence)


@pytest.mark.parametrize(("length", "seed"), [(1, 8), (1, 50), (2, 43), (2, 50)])
def test_a_shot_of_one_or_two_frames_hides_neither_of_its_cuts(tmp_path, length, seed):
    """A flash, or what a bad cut left over: the greater change lies in the window that the lesser is held against."""
    frames, truth = shots([24, length, 24], seed=seed)
    (tmp_path / "v.mp4").write_bytes(encode(frames, g="12", crf="18"))
    found, cuts = find_cuts(tmp_path / "v.mp4")
    assert not any(a < cut <= b for cut in truth for a, b in shots_between(cuts, len(found.pts)))


def dissolve(length: int, still: int = 24, pair: tuple[int, int] = (1, 5)) -> np.ndarray:
    """One flat picture that turns into another over ``length`` frames: no two neighbours differ much."""
    mix = np.concatenate([np.zeros(still), np.linspace(0, 1, length), np.ones(still)])
    first, second = (make_scene(seed, 1, 96, 128).frames[0].astype(float) for seed in pair)
    return np.stack([(1 - m) * first + m * second for m in mix]).astype(np.uint8)


def test_a_slow_dissolve_is_seen_by_a_coarse_level_only_and_its_frames_are_in_no_shot(tmp_path):
    (tmp_path / "v.mp4").write_bytes(encode_mp4(dissolve(24), FPS))
    levels = (CutLevel(threshold=30.0), CutLevel(fps=2.0, threshold=8.0))
    found, cuts = find_cuts(tmp_path / "v.mp4", SplitSettings(levels=levels))
    assert {find.fps for find in found.detections} == {2.0}
    (cut,) = cuts
    (before, after) = shots_between(cuts, 72)
    assert 18 <= before[1] <= 30 and 42 <= after[0] <= 54 and cut.first < cut.last


@pytest.mark.parametrize("length", [4, 12, 24])
def test_the_default_cascade_finds_dissolves_and_no_shot_holds_their_middle(tmp_path, length):
    (tmp_path / "v.mp4").write_bytes(encode_mp4(dissolve(length, pair=(5, 16)), FPS))
    _, cuts = find_cuts(tmp_path / "v.mp4", SplitSettings())
    kept = shots_between(cuts, 48 + length)
    assert len(cuts) == 1
    middle = 24 + length // 2
    assert not any(first <= middle <= last for first, last in kept)
    assert kept[0][0] == 0 and kept[-1][1] == 47 + length


def test_a_fade_through_black_is_found(tmp_path):
    frames, (middle,) = shots([40, 40], fade=10)
    (tmp_path / "v.mp4").write_bytes(encode_mp4(frames, FPS))
    _, cuts = find_cuts(tmp_path / "v.mp4", SplitSettings())
    assert any(cut.first <= middle <= cut.last for cut in cuts)
    assert not any(first < middle <= last for first, last in shots_between(cuts, 80))


@pytest.mark.parametrize("detector", ["content", "adaptive", "histogram", "hash"])
def test_each_detector_finds_what_pyscenedetect_finds_when_it_reads_the_file_itself(tmp_path, detector):
    """Fed frame by frame, a detector gives what PySceneDetect's own SceneManager gets out of it."""
    from scenedetect import SceneManager, open_video
    from scenedetect.detectors import AdaptiveDetector, ContentDetector, HashDetector, HistogramDetector

    frames, truth = shots([20, 31, 17], seed=3)
    path = tmp_path / "v.mp4"
    path.write_bytes(encode(frames))
    thresholds = {"content": 27.0, "adaptive": 3.0, "histogram": 0.3, "hash": 0.4}
    theirs = {
        "content": ContentDetector(27.0, min_scene_len=0),
        "adaptive": AdaptiveDetector(3.0, min_scene_len=0, min_content_val=10.0),
        "histogram": HistogramDetector(0.3, min_scene_len=0),
        "hash": HashDetector(0.4, min_scene_len=0),
    }
    manager = SceneManager()
    manager.auto_downscale = False
    manager.add_detector(theirs[detector])
    video = open_video(str(path), backend="pyav")
    manager.detect_scenes(video)
    expected = [scene[0].frame_num for scene in manager.get_scene_list()][1:]
    level = CutLevel(detector=detector, threshold=thresholds[detector])
    found, _ = find_cuts(path, SplitSettings(levels=(level,), detect_width_px=128))
    assert [(find.first, find.last) for find in found.detections] == [(n, n) for n in expected] and expected
    assert {find.detector for find in found.detections} == {detector}
    assert all(find.score >= find.threshold for find in found.detections)
    assert set(truth) >= set(expected)


def test_a_level_looks_by_the_frames_own_times():
    """The same 2 fps of a video at a fixed and at a variable frame rate."""

    class Looks:
        def __init__(self, times):
            self.width, self.height, self.looked = 64, 36, []
            cascade = Cascade((CutLevel(fps=2.0, threshold=200.0),), 64)
            for index, time_s in enumerate(times):
                self.now = index
                cascade.look(index, time_s, self)

        def reformat(self, **_):
            self.looked.append(self.now)
            return self

        def to_ndarray(self):
            return np.zeros((36, 64, 3), np.uint8)

    assert Looks([n / 10 for n in range(21)]).looked == [0, 5, 10, 15, 20]
    assert Looks([0.0, 0.4, 0.45, 0.6, 2.2, 2.3, 2.5]).looked == [0, 3, 4, 6]


def detection(first: int, last: int, fps: float | None) -> Detection:
    return Detection("content", first, last, 2.0, 1.0, fps)


def test_finds_closer_than_a_coarsest_frame_become_one_transition():
    finds = [
        detection(10, 10, None),
        detection(13, 13, None),
        detection(40, 40, None),
        detection(37, 42, 2.0),
        detection(61, 66, 2.0),
    ]
    merged = merge_detections(finds, [n / FPS for n in range(101)], 0.5)
    # a coarse find alone is widened by an eighth of a second: a frame or two more at either end
    assert [(cut.first, cut.last, len(cut.evidence)) for cut in merged] == [(10, 13, 2), (40, 40, 2), (59, 68, 1)]
    assert shots_between(merged, 100) == [(0, 9), (13, 39), (40, 58), (68, 99)]


@st.composite
def found(draw):
    frames = draw(st.integers(2, 120))
    finds = []
    for _ in range(draw(st.integers(0, 12))):
        fps = draw(st.sampled_from([None, 8.0, 2.0]))
        last = draw(st.integers(1, frames - 1))
        first = last if fps is None else draw(st.integers(max(1, last - round(24 / fps)), last))
        finds.append(detection(first, last, fps))
    return frames, finds


@given(found(), st.floats(0, 1))
@settings(max_examples=300, deadline=None)
def test_however_finds_are_merged_no_shot_crosses_one(case, gap_s):
    frames, finds = case
    times = [n / 24 for n in range(frames + 1)]
    merged = merge_detections(finds, times, gap_s)
    kept = shots_between(merged, frames)
    for find in finds:
        crossing = [(a, b) for a, b in kept if a < find.first and b >= find.last]
        assert not crossing
        assert any(find in cut.evidence for cut in merged), "every find is evidence of something"
    assert merged == merge_detections(list(reversed(finds)), times, gap_s), "the order of finds does not matter"
    assert all(a.last < b.first for a, b in zip(merged, merged[1:], strict=False))
    assert all(isinstance(dataclasses.asdict(cut), dict) for cut in merged)


def test_flicker_of_an_hour_is_merged_in_a_moment():
    """Every frame a hard cut and every look a find: the work grows with the finds, not with their square."""
    frames = 60_000
    times = [n / 24 for n in range(frames + 1)]
    finds = [detection(n, n, None) for n in range(1, frames)]
    finds += [detection(n - 7, n, 3.0) for n in range(8, frames, 8)]
    began = time.process_time()
    merged = merge_detections(finds, times, 1 / 3)
    assert time.process_time() - began < 60, "of the processor: with their square it would be an hour"
    assert [(cut.first, cut.last) for cut in merged] == [(1, frames - 1)]


def test_real_footage_is_cut_at_its_scene_changes(media):
    """Hand-held, with passers-by right before the camera; the cuts were marked by eye."""
    _, cuts = find_cuts(media / "bikes.mp4", SplitSettings())
    sharp = {find.last for cut in cuts for find in cut.evidence if find.fps is None}
    assert sharp == {30, 76, 137, 187, 242}
    for first, last in shots_between(cuts, 250):
        assert not any(first < cut <= last for cut in sharp)
