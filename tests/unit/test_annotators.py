"""Each annotator against something known: closed forms, geometry, another implementation."""

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svdflow.common.batching import in_batches_of
from svdflow.common.config import load_settings
from svdflow.common.errors import ConfigError
from svdflow.common.picture import colourfulness, contrast, sharpness
from svdflow.common.video import VideoFrame
from svdflow.common.visual_words import dominant_colours, sentence
from svdflow.curation.annotate.annotator import ClipView, late_axes, load
from svdflow.curation.annotate.captions_local import motion_phrase
from svdflow.curation.annotate.embeddings import thumbnail
from svdflow.curation.annotate.heuristics import picture_quality
from svdflow.curation.annotate.settings import AXES, AnnotateSettings
from svdflow.curation.annotate.text_regions import covered, text_area, text_boxes

LOCAL = load_settings(AnnotateSettings, "annotate", "local")


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def test_text_is_found_where_there_is_text_and_counted_by_area() -> None:
    page = np.full((240, 320, 3), 30, np.uint8)
    assert text_area(page) == 0
    cv2.putText(page, "DIRECTED BY", (20, 90), cv2.FONT_HERSHEY_DUPLEX, 1.3, (250, 250, 250), 2, cv2.LINE_AA)
    one = text_area(page)
    cv2.putText(page, "NOBODY AT ALL", (20, 180), cv2.FONT_HERSHEY_DUPLEX, 1.1, (250, 250, 250), 2, cv2.LINE_AA)
    two = text_area(page)
    assert 0.08 < one < 0.3 and one * 1.5 < two < 0.55
    large = cv2.resize(page, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
    assert text_area(large) == pytest.approx(two, rel=0.2)


def turned_box(x: float, y: float, width: float, height: float, angle: float) -> np.ndarray:
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * (width / 2, height / 2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return corners @ turn.T + (x, y)


box_places = st.tuples(
    st.floats(-0.1, 1.1), st.floats(-0.1, 1.1), st.floats(0.02, 0.6), st.floats(0.02, 0.6), st.floats(0, np.pi)
)


@settings(max_examples=60, deadline=None)
@given(places=st.lists(box_places, max_size=6))
def test_the_text_area_is_that_of_the_union_of_turned_boxes(places: list) -> None:
    """Against counting the points of a fine grid that lie in any box."""
    x, y = np.meshgrid((np.arange(300) + 0.5) / 300, (np.arange(300) + 0.5) / 300)
    inside = np.zeros(x.shape, bool)
    for cx, cy, width, height, angle in places:
        along = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
        across = -(x - cx) * np.sin(angle) + (y - cy) * np.cos(angle)
        inside |= (abs(along) <= width / 2) & (abs(across) <= height / 2)
    assert covered([turned_box(*place) for place in places]) == pytest.approx(inside.mean(), abs=0.006)


def test_boxes_that_overlap_count_once_and_outside_the_frame_not_at_all() -> None:
    box = turned_box(0.5, 0.5, 0.4, 0.2, 0.0)
    assert covered([]) == 0 and covered([box]) == pytest.approx(0.08) == covered([box, box, box])
    assert covered([turned_box(1.0, 0.5, 0.4, 0.2, 0.0)]) == pytest.approx(0.04)
    assert covered([turned_box(0.5, 0.5, 9, 9, 0.3)]) == pytest.approx(1)


def test_a_slanted_line_of_text_is_boxed_as_it_slants() -> None:
    page = np.full((300, 300, 3), 30, np.uint8)
    cv2.putText(page, "ON A SLOPE", (30, 165), cv2.FONT_HERSHEY_DUPLEX, 1.3, (250, 250, 250), 2, cv2.LINE_AA)
    turn = cv2.getRotationMatrix2D((150, 150), 25, 1.0)
    slanted = cv2.warpAffine(page, turn, (300, 300), borderValue=(30, 30, 30))
    (box,) = text_boxes(slanted)
    upright = (box.max(0) - box.min(0)).prod()
    assert text_area(slanted) < 0.7 * upright
    assert text_area(slanted) == pytest.approx(text_area(page), rel=0.3)


def test_picture_figures_agree_with_their_closed_forms() -> None:
    grey = np.full((64, 64, 3), 90, np.uint8)
    assert colourfulness(grey) == 0 and contrast(grey) == 0 and sharpness(grey) == 0 and picture_quality(grey) == 0
    halves = grey.copy()
    halves[:, :32], halves[:, 32:] = 0, 255
    assert contrast(halves) == pytest.approx(127.5)
    red_green = grey.copy()
    red_green[:, :32], red_green[:, 32:] = (200, 0, 0), (0, 200, 0)
    assert colourfulness(red_green) == pytest.approx(200 + 0.3 * 100)  # rg = ±200, yb = 100 everywhere
    sharp = texture(128, 128)
    assert sharpness(sharp) > sharpness(cv2.GaussianBlur(sharp, (0, 0), 3)) and picture_quality(
        sharp
    ) > picture_quality(grey)


def test_words_name_what_is_there() -> None:
    flag = np.zeros((90, 90, 3), np.uint8)
    flag[:30], flag[30:60], flag[60:] = (200, 40, 40), (240, 240, 236), (50, 90, 200)
    assert set(dominant_colours(flag)) == {"red", "white", "blue"}
    assert "dark" in sentence(np.full((32, 32, 3), 10, np.uint8)) and "smooth" in sentence(
        np.full((32, 32, 3), 10, np.uint8)
    )


@pytest.mark.parametrize(
    ("score", "camera", "words"),
    [
        (0.01, [0, 0, 0], "nothing moves"),
        (3.0, [2.9, 0.1, 0.0], "pans left"),
        (3.0, [-2.9, 0.1, 0.0], "pans right"),
        (3.0, [0.1, 2.9, 0.0], "tilts up"),
        (3.0, [0.1, 0.0, 2.8], "moves closer"),
        (3.0, [0.1, 0.0, -2.8], "moves away"),
        (3.0, [0.4, 0.1, 0.3], "the camera is still while something moves"),
    ],
)
def test_camera_motion_is_put_in_words(score: float, camera: list[float], words: str) -> None:
    assert words in motion_phrase(score, camera, 128)


def test_a_thumbnail_knows_a_scene_again_after_scaling_and_noise() -> None:
    scene, other = texture(240, 320, 1), texture(240, 320, 2)
    noisy = cv2.resize(scene, (96, 96)) + np.random.default_rng(0).normal(0, 20, (96, 96, 3))
    assert thumbnail(scene) @ thumbnail(np.clip(noisy, 0, 255).astype(np.uint8)) > 0.95
    assert thumbnail(scene) @ thumbnail(other) < 0.5 and not thumbnail(np.full((50, 50, 3), 9, np.uint8)).any()


def test_a_key_changes_with_what_its_annotator_reads_and_with_nothing_else() -> None:
    def keys(**changed):
        settings = LOCAL.model_copy(update=changed)
        return {a.axis: a.key("0" * 64, "words", {"caption_image": "a"}) for a in load(settings)}

    before = keys()
    for change, axes in (
        ({"flow_short_side_px": 256}, {"motion", "caption_video"}),
        ({"text_box_threshold": 0.5}, {"text"}),
        ({"prefer_description": False}, {"caption_image"}),
        ({"workers": 7, "unit_clips": 3, "device": "cuda", "clip_model": "unused", "endpoint_url": "u"}, set()),
    ):
        assert {axis for axis, key in keys(**change).items() if key != before[axis]} == axes
    assert len(set(before.values())) == 8


def test_an_unknown_annotator_or_a_missing_setting_is_told_in_one_line() -> None:
    with pytest.raises(
        ConfigError,
        match="annotate.motion: there is no annotator 'dense'; there are: dis-flow, farneback-flow, raft-flow",
    ):
        load(LOCAL.model_copy(update={"motion": "dense"}))
    with pytest.raises(ConfigError, match="aesthetic_head"):
        load(LOCAL.model_copy(update={"aesthetic": "clip-aesthetic-head"}))
    with pytest.raises(ConfigError, match="endpoint_url"):
        load(LOCAL.model_copy(update={"caption_summary": "endpoint"}))


@given(count=st.integers(1, 20), size=st.integers(1, 8))
def test_batches_are_all_of_one_shape_and_give_each_row_its_own(count: int, size: int) -> None:
    rows, shapes = np.arange(2 * count).reshape(count, 2), []

    def run(batch: np.ndarray) -> np.ndarray:
        shapes.append(batch.shape)
        return batch.sum(1, keepdims=True)

    assert np.array_equal(in_batches_of(size, rows, run), rows.sum(1, keepdims=True))
    assert set(shapes) == {(size, 2)} and len(shapes) == -(-count // size)


def test_what_models_measure_over_several_clips_runs_late_and_what_reads_it_too() -> None:
    mixed = LOCAL.model_copy(
        update={"caption_video": "endpoint", "endpoint_url": "http://localhost/v1", "endpoint_model": "x"}
    )
    assert late_axes(load(mixed), unit_clips=16) == {"caption_video", "caption_summary", "similarity"}
    assert late_axes(load(mixed), unit_clips=1) == set() == late_axes(load(LOCAL), unit_clips=16)


MINE = '''
"""How dark a clip is."""
from svdflow.curation.annotate.annotator import Annotator, ClipView, register


@register
class Darkness(Annotator):
    """Share of dark pixels."""

    name, version, axis = "darkness", "1", "nsfw"
    columns = ("nsfw",)

    def annotate(self, clip: ClipView) -> dict:
        return {"nsfw": [float((rgb < 50).mean()) for rgb in clip.pictures()]}
'''


def test_an_annotator_of_ones_own_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_darkness.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    chosen = load(LOCAL.model_copy(update={"plugins": ("my_darkness",), "nsfw": "darkness"}))
    mine = next(a for a in chosen if a.axis == "nsfw")
    black = ClipView("c", key_frames=[VideoFrame(n, 0.0, np.zeros((8, 8, 3), np.uint8)) for n in range(3)])
    assert mine.annotate(black) == {"nsfw": [1, 1, 1]}
    assert mine.key("f" * 64, None, {}) != next(a for a in chosen if a.axis == "text").key("f" * 64, None, {})
    with pytest.raises(ConfigError, match="no_such_module"):
        load(LOCAL.model_copy(update={"plugins": ("no_such_module",)}))
    sys.modules.pop("my_darkness", None)


def test_axes_without_an_annotator_are_left_out() -> None:
    assert [a.axis for a in load(LOCAL)] == [axis for axis in AXES if axis not in ("watermark", "nsfw")]
