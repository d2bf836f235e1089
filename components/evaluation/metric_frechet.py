"""Fréchet distance between generated and true videos, on features that need no hub. Not FVD, which has I3D features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..common.features import FRAME_FEATURES, FRAME_FEATURES_SHA256
from .gaussians import gaussian_distance
from .metric import Clip, Metric, Videos

FIGURE = "frechet_efficientnet_lite0"  # named for its features


def measure(clips: Sequence[Clip], truth: Videos, generated: Videos) -> dict[str, float | None]:
    """The distance between the two sets of videos."""
    return {FIGURE: frechet_distance(video_features(truth), video_features(generated))}


def video_features(videos: Videos) -> np.ndarray:
    """One row per video: mean and standard deviation over its frames of their features, float64 [N, 2 D]."""
    return np.stack([np.concatenate([f.mean(0), f.std(0)]) for f in videos.features]).astype(np.float64)


def frechet_distance(a_ND: np.ndarray, b_MD: np.ndarray) -> float:
    """Fréchet distance between Gaussians fitted to two sets of rows (unbiased covariances).

    Raises:
        ValueError: fewer than two rows on a side, or a feature that is not finite.
    """
    a, b = np.asarray(a_ND, np.float64), np.asarray(b_MD, np.float64)
    if len(a) < 2 or len(b) < 2:
        raise ValueError(f"a Fréchet distance needs two videos on each side, not {len(a)} and {len(b)}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("a Fréchet distance of features that are not finite")
    x, y = (a - a.mean(0)) / np.sqrt(len(a) - 1), (b - b.mean(0)) / np.sqrt(len(b) - 1)
    return gaussian_distance(a.mean(0), x, b.mean(0), y)


METRIC = Metric(
    name="frechet",
    title=f"Fréchet distance ({FRAME_FEATURES} frame features, mean and std over frames)",
    measure=measure,
    units={FIGURE: ""},
    better={FIGURE: "lower"},
    protocol="Gaussians over videos; 1280 pooled features a frame, their mean and standard deviation over all frames. "
    "Biased by the number of videos: compare only models that were measured on the same clips.",
    features={FRAME_FEATURES: FRAME_FEATURES_SHA256},
)
