"""Estimating what motion a model's buckets stand for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from svdflow.common.errors import BadInputError
from svdflow.common.video import VideoFrame
from svdflow.curation.annotate.motion import FlowWatcher
from svdflow.curation.annotate.settings import AnnotateSettings
from svdflow.diffusion import calibration, sampling
from svdflow.diffusion.calibration import (
    PROBED_BUCKETS,
    calibrate,
    fit_calibration,
    motion_score,
    motion_unit,
    store_calibration,
)
from svdflow.diffusion.model_directory import VideoModel, read_card, write_card
from svdflow.diffusion.motion import MotionCalibration

FPS = 8.0


def _texture() -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=(160, 240))
    for axis in (0, 1):
        for _ in range(3):
            noise = sum(np.roll(noise, shift, axis) for shift in range(-3, 4))
    return ((noise - noise.min()) / np.ptp(noise) * 255).astype(np.uint8)


TEXTURE = _texture()


def _sliding(px_per_frame: float, frames: int = 9) -> np.ndarray:
    """A picture that slides to the right, uint8 [F, 128, 192, 3]; its short side is the flow's own."""
    offsets = [round(px_per_frame * index) for index in range(frames)]
    return np.stack([np.repeat(np.roll(TEXTURE, o, 1)[:128, :192, None], 3, 2) for o in offsets])


def test_a_video_is_scored_as_the_annotator_scores_a_clip():
    settings = AnnotateSettings()
    for fps in (7.0, 12.5):
        video = _sliding(1.5, 15)
        watcher = FlowWatcher(1 / settings.flow_fps, settings.flow_short_side_px)
        times_s = np.arange(len(video)) / fps
        for index in watcher.wants(times_s):
            watcher.see(VideoFrame(index, times_s[index], video[index]))
        columns = watcher.figures.columns("")
        assert motion_score(video, fps) == pytest.approx(columns["motion_score"], rel=1e-9)


def test_the_unit_is_the_annotators_own():
    from svdflow.curation.annotate.motion import FarnebackFlow

    assert motion_unit() == FarnebackFlow(AnnotateSettings()).unit


def test_a_sliding_picture_scores_its_speed_in_pixels_per_half_second():
    assert motion_score(_sliding(1.0), FPS) == pytest.approx(4.0, rel=0.1)
    with pytest.raises(BadInputError, match="motion needs two frames"):
        motion_score(_sliding(1.0)[:1], FPS)


def test_the_fit_pools_what_does_not_rise():
    """By hand: the means are 1, 3, 2, 5; the middle two do not rise, so both become 2.5, in the middle of 20 and 30."""
    estimate = fit_calibration([10, 10, 20, 20, 30, 30, 40], [0.5, 1.5, 2.0, 4.0, 1.0, 3.0, 5.0], "px")
    assert estimate.calibration == MotionCalibration((1.0, 2.5, 5.0), (10.0, 25.0, 40.0), "px")
    assert [row.fitted for row in estimate.table] == [1.0, 2.5, 2.5, 5.0]
    assert [row.mean for row in estimate.table] == [1.0, 3.0, 2.0, 5.0]
    assert [row.videos for row in estimate.table] == [2, 2, 2, 1]
    assert estimate.table[0].deviation == pytest.approx(0.5)
    assert 0 < estimate.rank_correlation < 1


def test_buckets_with_more_videos_weigh_more():
    estimate = fit_calibration([0, 9, 9, 9, 20, 30], [0.0, 4.0, 4.0, 4.0, 0.0, 8.0])
    assert estimate.calibration.scores == (0.0, 3.0, 8.0)  # (3 · 4 + 0) / 4


@given(st.lists(st.tuples(st.integers(0, 255), st.floats(0, 100)), min_size=2, max_size=40))
def test_the_map_rises_and_no_other_rising_map_is_nearer(pairs):
    buckets, scores = zip(*pairs, strict=True)
    try:
        estimate = fit_calibration(buckets, scores)
    except BadInputError as error:
        assert "does not rise" in str(error)
        return
    asked = np.linspace(-1, 101, 50)
    told = [estimate.calibration.apply(score) for score in asked]
    assert told == sorted(told)
    fitted = np.array([row.fitted for row in estimate.table])
    weights = np.array([row.videos for row in estimate.table])
    residual = (np.array([row.mean for row in estimate.table]) - fitted) * weights
    # optimal in least squares: residuals cancel overall and no tail of them pulls upwards
    assert abs(residual.sum()) < 1e-6 * max(1, np.abs(scores).max() * len(scores))
    assert np.cumsum(residual[::-1]).max() < 1e-6 * max(1, np.abs(scores).max() * len(scores))


@pytest.fixture
def model() -> VideoModel:
    return VideoModel("image_to_video", None, None)


def test_a_models_own_map_is_recovered(model, monkeypatch):
    """A model whose pictures slide faster the higher the bucket, with an image and a seed that disturb it."""
    asked = []

    def generate(model, image, *, frames, fps, motion_bucket, seed, steps):
        asked.append((motion_bucket, seed, int(image[0, 0, 0])))
        return _sliding(motion_bucket / 128 + 0.1 * seed + 0.1 * image[0, 0, 0], frames)

    monkeypatch.setattr(sampling, "generate", generate)
    images = [np.full((128, 192, 3), value, np.uint8) for value in (0, 1)]
    done = []
    buckets = (16, 64, 127, 192, 255)
    estimate = calibrate(
        model, images, frames=9, fps=FPS, buckets=buckets, seeds=(0, 1), steps=3,
        on_video=lambda bucket, count: done.append((bucket, count)),
    )  # fmt: skip
    assert asked == [(b, s, i) for b in buckets for i in (0, 1) for s in (0, 1)]  # buckets differ in nothing else
    assert done[-1] == (255, 20) and len(done) == 20
    assert estimate.rank_correlation > 0.9
    assert estimate.calibration.unit == motion_unit()
    for bucket in (40, 100, 230):
        score = motion_score(_sliding(bucket / 128 + 0.1), FPS)
        assert estimate.calibration.apply(score) == pytest.approx(bucket, abs=16)
    assert model.card == {}  # nothing is stored unasked


def test_motion_that_does_not_rise_is_no_calibration(model, monkeypatch):
    monkeypatch.setattr(sampling, "generate", lambda *_, motion_bucket, **__: _sliding(3 - motion_bucket / 100))
    image = np.zeros((128, 192, 3), np.uint8)
    with pytest.raises(BadInputError, match="does not rise with the bucket"):
        calibrate(model, [image], fps=FPS, buckets=(1, 100, 200), seeds=(0,))


def test_motion_that_does_not_listen_to_the_bucket_is_no_calibration(model, monkeypatch):
    """A rising map is nearest to noise too, and would be kept with the model as what its buckets mean."""
    noise = np.random.default_rng(1)
    monkeypatch.setattr(sampling, "generate", lambda *_, **__: _sliding(noise.uniform(1, 2)))
    images = [np.zeros((128, 192, 3), np.uint8)] * 2
    with pytest.raises(BadInputError, match=r"does not rise with the bucket: rank correlation -?0\.\d+ over 20 "):
        calibrate(model, images, fps=FPS, seeds=(0,))
    monkeypatch.setattr(sampling, "generate", lambda *_, **__: _sliding(1))
    with pytest.raises(BadInputError, match="rank correlation 0.00"):
        calibrate(model, images, fps=FPS, seeds=(0,))


def test_what_cannot_be_calibrated_is_refused_before_anything_is_generated(model):
    image = np.zeros((128, 192, 3), np.uint8)
    with pytest.raises(BadInputError, match="a text_to_video model is the wrong kind"):
        calibrate(VideoModel("text_to_video", None, None), [image])
    with pytest.raises(BadInputError, match="at least one image"):
        calibrate(model, [])
    with pytest.raises(BadInputError, match="at least two buckets, all within 0 and 255"):
        calibrate(model, [image], buckets=(5, 5))
    with pytest.raises(BadInputError, match="within 0 and 255"):
        calibrate(model, [image], buckets=(5, 256))
    assert len(PROBED_BUCKETS) >= 8 and calibration.BUCKETS == 256


def test_a_calibration_is_never_replaced_silently(tmp_path):
    write_card(tmp_path, {"format": 1, "kind": "image_to_video", "text_encoder": None, "stage": "x"})
    first = fit_calibration([0, 128, 255], [0.0, 1.0, 4.0], "px")
    store_calibration(tmp_path, first)
    second = MotionCalibration.fit([5.0, 6.0])
    with pytest.raises(BadInputError, match=r"svdflow.json: has a motion calibration, under which the model"):
        store_calibration(tmp_path, second)
    card = read_card(tmp_path)
    assert MotionCalibration.from_dict(card["motion_calibration"]) == first.calibration
    assert card["motion_calibration"]["estimated"]["table"][2]["mean"] == 4.0
    store_calibration(tmp_path, second, replace=True)
    assert MotionCalibration.from_dict(read_card(tmp_path)["motion_calibration"]) == second
    assert read_card(tmp_path)["stage"] == "x"
    with pytest.raises(BadInputError, match=r"svdflow.json: missing"):
        store_calibration(tmp_path / "nowhere", second)
