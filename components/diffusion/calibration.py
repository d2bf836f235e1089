"""Motion calibration of a model whose map is unknown: generate for each bucket, measure the flow, fit a rising map.

The released models take a motion bucket, and what motion each stands for was never published. What a model makes of a
bucket can be measured, with the very flow that scores the training clips, so that scores and buckets meet again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.errors import BadInputError
from .motion import BUCKETS, MotionCalibration

if TYPE_CHECKING:
    from .model_directory import VideoModel

# ours, all of them
PROBED_BUCKETS = (1, 16, 32, 64, 96, 127, 160, 192, 224, 255)
CHANCE = 0.05  # a rank correlation that models without any would reach so often is none
FLOW_FPS, FLOW_SHORT_SIDE_PX = 2.0, 128  # the annotator's defaults; both are part of the unit


@dataclass(frozen=True)
class BucketMotion:
    """What one bucket makes.

    Attributes:
        bucket: asked for.
        videos: how many were measured.
        mean: of their motion scores.
        deviation: of the scores among the videos (of a population; 0 for one).
        fitted: the score of the rising map.
    """

    bucket: int
    videos: int
    mean: float
    deviation: float
    fitted: float


@dataclass(frozen=True)
class EstimatedCalibration:
    """A calibration, and the measurements behind it.

    Attributes:
        calibration: the map from score to bucket.
        table: one row per bucket, rising.
        rank_correlation: Spearman's, between bucket and score of single videos.
    """

    calibration: MotionCalibration
    table: tuple[BucketMotion, ...]
    rank_correlation: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: the calibration's, with how it was come by."""
        return {
            **self.calibration.to_dict(),
            "estimated": {
                "rank_correlation": self.rank_correlation,
                "table": [asdict(row) for row in self.table],
            },
        }


def motion_unit(flow_fps: float = FLOW_FPS, short_side_px: int = FLOW_SHORT_SIDE_PX) -> str:
    """The unit of ``motion_score``, as the annotations state theirs."""
    return f"px/{1 / flow_fps:g}s@short{short_side_px}"


def motion_score(
    frames_FHWC: np.ndarray, fps: float, flow_fps: float = FLOW_FPS, short_side_px: int = FLOW_SHORT_SIDE_PX
) -> float:
    """Mean flow magnitude of a video over time and space, as the annotator measures clips (SVD App. C).

    Args:
        frames_FHWC: uint8 RGB.
        fps: of the frames.
        flow_fps: of the pairs that flow is measured between.
        short_side_px: that frames are scaled to first.

    Raises:
        BadInputError: fewer than two frames.
    """
    from ..common.flow import dense_flow, flow_figures, flow_frame, frames_at_rate

    if len(frames_FHWC) < 2:
        raise BadInputError("motion needs two frames")
    times_s = np.arange(len(frames_FHWC)) / fps
    taken = frames_at_rate(times_s, 1 / flow_fps)
    grey = [flow_frame(frames_FHWC[index], short_side_px) for index in taken]
    magnitudes = [
        flow_figures(dense_flow(grey[k], grey[k + 1]))[0] / flow_fps / (times_s[taken[k + 1]] - times_s[taken[k]])
        for k in range(len(taken) - 1)
    ]
    return float(np.mean(magnitudes))


def fit_calibration(
    buckets: Sequence[float] | np.ndarray, scores: Sequence[float] | np.ndarray, unit: str = ""
) -> EstimatedCalibration:
    """The rising map nearest to measured scores (isotonic regression in least squares), turned round: score to bucket.

    Buckets that the fit gives one score share it: their middle is the score's bucket.

    Args:
        buckets: of each video.
        scores: of each video.
        unit: of the scores.

    Raises:
        BadInputError: scores are missing or not finite, or they do not rise with the bucket at all.
    """
    from scipy.optimize import isotonic_regression
    from scipy.stats import spearmanr

    x, y = np.asarray(buckets, float), np.asarray(scores, float)
    if len(x) != len(y) or not len(x) or not np.isfinite(y).all():
        raise BadInputError("a calibration needs one finite motion score for each video")
    levels = np.unique(x)
    of_level = [y[x == level] for level in levels]
    means = np.array([values.mean() for values in of_level])
    fitted = isotonic_regression(means, weights=np.array([len(values) for values in of_level], float)).x
    knots = np.unique(fitted)
    if len(knots) < 2:
        raise BadInputError(
            f"the measured motion does not rise with the bucket (scores {means.min():.3g} to {means.max():.3g}); "
            "the model may not listen to it, or more videos per bucket are needed"
        )
    calibration = MotionCalibration(
        tuple(map(float, knots)), tuple(float(levels[fitted == knot].mean()) for knot in knots), unit
    )
    table = tuple(
        BucketMotion(int(level), len(values), float(values.mean()), float(values.std()), float(fit))
        for level, values, fit in zip(levels, of_level, fitted, strict=True)
    )
    correlation = float(spearmanr(x, y).statistic)
    return EstimatedCalibration(calibration, table, correlation)


def calibrate(
    model: VideoModel,
    images_HWC: Sequence[np.ndarray],
    *,
    frames: int = 14,
    fps: float = 7,
    buckets: Sequence[int] = PROBED_BUCKETS,
    seeds: Sequence[int] = (0, 1),
    flow_fps: float = FLOW_FPS,
    flow_short_side_px: int = FLOW_SHORT_SIDE_PX,
    on_video: Callable[[int, int], None] | None = None,
    **sampling: Any,
) -> EstimatedCalibration:
    """Estimate what motion each bucket stands for, from the videos that an image-to-video model makes.

    Every bucket sees the same images and seeds, so that buckets differ in nothing else. The model's card is not
    touched: ``store_calibration`` does that, and only where it may.

    Args:
        model: of kind ``image_to_video``.
        images_HWC: uint8 RGB, of the size to generate; motion depends on the content, so take ten or more of the kind
            that the model is meant for.
        frames: of each video.
        fps: of the videos, as the model is told and as time is measured.
        buckets: at least two, 0 to 255.
        seeds: videos per bucket and image.
        flow_fps: of the measurement; the annotations' own, for their scores to be comparable.
        flow_short_side_px: likewise.
        on_video: called with the bucket and the number of videos done.
        sampling: what else ``sampling.generate`` takes: steps, guidance, noise_aug, …

    Raises:
        BadInputError: another kind of model, no images, fewer than two buckets or some out of range, or motion that
            does not rise with the bucket, by more than chance.
    """
    from .sampling import generate

    if model.kind != "image_to_video":
        raise BadInputError(f"calibration generates from images, for which a {model.kind} model is the wrong kind")
    if not len(images_HWC) or not len(seeds):
        raise BadInputError("calibration needs at least one image and one seed")
    if len(set(buckets)) < 2 or not all(0 <= bucket < BUCKETS for bucket in buckets):
        raise BadInputError(f"calibration needs at least two buckets, all within 0 and {BUCKETS - 1}")
    asked, scores = [], []
    for bucket in sorted(set(buckets)):
        for image_HWC in images_HWC:
            for seed in seeds:
                video_FHWC = generate(
                    model, image_HWC, frames=frames, fps=fps, motion_bucket=bucket, seed=seed, **sampling
                )
                asked.append(bucket)
                scores.append(motion_score(video_FHWC, fps, flow_fps, flow_short_side_px))
                if on_video:
                    on_video(bucket, len(scores))
    _refuse_noise(asked, scores)
    return fit_calibration(asked, scores, motion_unit(flow_fps, flow_short_side_px))


def _refuse_noise(buckets: Sequence[int], scores: Sequence[float]) -> None:
    """Some rising map is nearest to any noise: only motion that follows the bucket makes one that means something."""
    from scipy.stats import spearmanr

    same = np.ptp(scores) == 0
    if same or not spearmanr(buckets, scores, alternative="greater").pvalue < CHANCE:  # of two videos it is no number
        found = 0.0 if same else float(spearmanr(buckets, scores).statistic)
        raise BadInputError(
            f"the measured motion does not rise with the bucket: rank correlation {found:.2f} over {len(scores)} "
            f"videos with scores of {min(scores):.3g} to {max(scores):.3g}, which may be chance; the model may not "
            "listen to it, or more pictures, seeds or denoising steps are needed"
        )


def store_calibration(
    directory: Path, calibration: MotionCalibration | EstimatedCalibration, *, replace: bool = False
) -> None:
    """Write a calibration into a model directory's card.

    A model was trained under its calibration: another one makes its buckets mean something else, so replacing has to
    be asked for.

    Raises:
        BadInputError: the directory has a calibration and ``replace`` was not asked for, or it is no model directory
        of svdflow's.
    """
    from .model_directory import CARD, read_card, write_card

    card = read_card(directory)
    if card.get("motion_calibration") and not replace:
        raise BadInputError(
            f"{directory}/{CARD}: has a motion calibration, under which the model was trained; "
            "ask for it to be replaced if you mean to"
        )
    write_card(directory, {**card, "motion_calibration": calibration.to_dict()})
