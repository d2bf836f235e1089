"""Whether a generated video moves as much as was asked for: Farneback flow of generated and of true frames."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .metric import Clip, Metric, Videos

_SHORT_SIDE_PX = 64
_INTERVAL_S = 0.5
_STILL_PX = 0.05  # below it a video stands still: neither ratios nor ranks of such figures mean anything


def measure(clips: Sequence[Clip], truth: Videos, generated: Videos) -> dict[str, float | None]:
    """Mean flow of both, the mean absolute log ratio per clip, and the rank correlation with the motion asked for."""
    made = np.array([motion(video, clip.fps) for clip, video in zip(clips, generated.frames, strict=True)])
    true = np.array([motion(video, clip.fps) for clip, video in zip(clips, truth.frames, strict=True)])
    moving, true_moving = np.maximum(made, _STILL_PX), np.maximum(true, _STILL_PX)
    log_ratio = np.abs(np.log2(moving / true_moving))
    asked = [clip.motion_score for clip in clips]
    known = [i for i, score in enumerate(asked) if score is not None]
    return {
        "motion_px": float(made.mean()),
        "true_motion_px": float(true.mean()),
        "motion_log2_error": float(log_ratio.mean()),
        "motion_rank_correlation": rank_correlation(moving[known], np.array([asked[i] for i in known], float)),
    }


def motion(frames_FHWC: np.ndarray, fps: float) -> float:
    """Mean flow magnitude in px per 0.5 s, on frames of 64 px on the short side, between frames about 0.5 s apart."""
    from ..common.flow import dense_flow, flow_figures, flow_frame

    stride = min(max(1, round(fps * _INTERVAL_S)), len(frames_FHWC) - 1)
    if stride < 1:
        return 0.0
    grey = [flow_frame(frame, _SHORT_SIDE_PX) for frame in frames_FHWC[::stride]]
    scale = _INTERVAL_S * fps / stride
    return float(np.mean([flow_figures(dense_flow(a, b))[0] * scale for a, b in zip(grey, grey[1:], strict=False)]))


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's correlation; None for fewer than three pairs or when one side does not vary."""
    from scipy.stats import spearmanr

    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(spearmanr(a, b).statistic)


METRIC = Metric(
    name="motion",
    title="Motion against what was asked for (Farneback flow)",
    measure=measure,
    units={
        "motion_px": "px/0.5s@short64",
        "true_motion_px": "px/0.5s@short64",
        "motion_log2_error": "octaves",
        "motion_rank_correlation": "",
    },
    better={"motion_log2_error": "lower", "motion_rank_correlation": "higher"},
    protocol="mean flow magnitude between frames about 0.5 s apart, scaled to 0.5 s; its log ratio to the true clip's; "
    "Spearman's rank correlation of generated motion with the annotated motion score that conditioned the model",
)
