"""Generated footage is the same everywhere, and moves as its sidecar says."""

import json

import cv2
import numpy as np
import pytest

from svdflow.common.errors import ConfigError
from svdflow.common.video import decode, probe
from svdflow.ingest.footage import CAMERAS, FootageSettings, join_shots, make_scene, make_title_card, write_footage

SMALL = FootageSettings(width=96, height=64, min_s=1.0, max_s=1.2)


def grey(frame: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)


def test_a_seed_names_a_scene():
    scene, again, other = make_scene(7, 5, 64, 96), make_scene(7, 5, 64, 96), make_scene(8, 5, 64, 96)
    assert scene.frames.shape == (5, 64, 96, 3) and scene.frames.dtype == np.uint8
    assert np.array_equal(scene.frames, again.frames) and scene.truth() == again.truth()
    assert not np.array_equal(scene.frames, other.frames)


@pytest.mark.parametrize("camera", ["pan_left", "pan_right", "pan_up", "pan_down"])
def test_the_background_moves_as_the_truth_says(camera):
    """Median dense flow, which knows nothing of how the scene was drawn, against the stated motion."""
    scenes = (make_scene(seed, 4, 128, 192, camera=camera) for seed in range(60))
    rough = [s for s in scenes if "stone" in s.caption]  # stripes slide along themselves unseen, clouds are too soft
    errors = []
    for scene in rough[:4]:
        flow = cv2.calcOpticalFlowFarneback(
            grey(scene.frames[1]), grey(scene.frames[2]), None, 0.5, 4, 21, 5, 7, 1.5, 0
        )
        errors.append(np.hypot(*(np.median(flow, axis=(0, 1)) - np.array(scene.camera_px))))
        assert scene.camera == camera and CAMERAS[camera] in scene.caption
    assert len(errors) == 4 and np.median(errors) < 0.1, errors
    assert make_scene(0, 2, 64, 96, camera=camera).camera_px != (0.0, 0.0)


@pytest.mark.parametrize(("camera", "grows"), [("zoom_in", True), ("zoom_out", False)])
def test_the_zoom_is_the_stated_one(camera, grows):
    scene = make_scene(11, 13, 128, 192, camera=camera)
    assert (scene.camera_zoom > 1) == grows
    matrix = cv2.getRotationMatrix2D((96, 64), 0, scene.camera_zoom**12)
    predicted = cv2.warpAffine(scene.frames[0], matrix, (192, 128), borderMode=cv2.BORDER_REFLECT)
    inner = np.s_[24:104, 36:156]

    def difference(picture: np.ndarray) -> float:
        return float(np.median(np.abs(picture[inner].astype(int) - scene.frames[12][inner])))

    assert difference(predicted) < 0.5 * difference(scene.frames[0])


def test_an_object_moves_to_where_its_caption_says():
    scene = next(
        s
        for s in (make_scene(n, 12, 96, 160, camera="static") for n in range(200))
        if [o.move for o in s.objects] == ["right"]
    )
    assert "moves to the right" in scene.caption and scene.objects[0].colour in scene.caption
    flow = cv2.calcOpticalFlowFarneback(grey(scene.frames[5]), grey(scene.frames[6]), None, 0.5, 3, 15, 3, 5, 1.2, 0)
    moving = np.hypot(flow[..., 0], flow[..., 1]) > 0.5
    assert moving.any() and np.median(flow[moving][:, 0]) > 0.3


def test_a_still_scene_and_a_title_card_do_not_move():
    for scene in (make_scene(3, 6, 64, 96, still=True), make_title_card(3, 6, 64, 96)):
        assert np.array_equal(scene.frames, np.repeat(scene.frames[:1], 6, axis=0))


def test_an_unknown_camera_is_refused():
    with pytest.raises(ConfigError, match="dolly"):
        make_scene(0, 2, 64, 96, camera="dolly")


def test_joined_shots_know_their_cuts():
    shots = [np.full((n, 4, 4, 3), value, np.uint8) for n, value in ((5, 100), (7, 200))]
    frames, cuts = join_shots(shots)
    assert cuts == [5] and frames[4].max() == 100 and frames[5].min() == 200
    faded, cuts = join_shots(shots, fade_frames=3)
    assert (
        cuts == [5] and faded[4].max() == 0 and faded[5].max() == 0 and faded[0].min() == 100 and faded[-1].min() == 200
    )


def test_written_footage_does_not_depend_on_how_much_there_is(tmp_path):
    few, many = write_footage(tmp_path / "few", 4, 5, SMALL), write_footage(tmp_path / "many", 8, 5, SMALL)
    assert len(many) == 8
    for short, long in zip(few, many, strict=False):
        assert short.read_bytes() == long.read_bytes()
        assert short.with_suffix(".json").read_text() == long.with_suffix(".json").read_text()


def test_the_mix_holds_cuts_text_and_stillness_and_says_what_it_is(tmp_path):
    paths = write_footage(tmp_path, 10, 0, SMALL)
    truths = [json.loads(path.with_suffix(".json").read_text()) for path in paths]
    assert {(t["licence"], t["source"]) for t in truths} == {("CC0-1.0", "generated")}
    assert all(t["description"] for t in truths)
    assert sum("title card" in t["description"] for t in truths) == 1
    assert sum("rests" in t["description"] for t in truths) == 1
    joined = [(path, t) for path, t in zip(paths, truths, strict=True) if t["cuts"]]
    assert [t["fade_frames"] for _, t in joined] == [0, 4]
    path, truth = joined[0]
    steps = np.abs(np.diff([frame.rgb.mean() for frame in decode(path)]))
    assert int(np.argmax(steps)) + 1 == truth["cuts"][0]
    assert probe(path).frames == sum(shot["frames"] for shot in truth["shots"])


def test_footage_that_is_there_is_not_made_again(tmp_path):
    first = write_footage(tmp_path, 2, 0, SMALL)
    times = [path.stat().st_mtime_ns for path in first]
    assert [path.stat().st_mtime_ns for path in write_footage(tmp_path, 2, 0, SMALL)] == times
