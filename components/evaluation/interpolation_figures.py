"""What an interpolation model is held against, and by which figures. All look at the frames that were not given."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from ..common.flow import dense_flow, flow_frame
from ..common.psnr import psnr_db
from .metric import Clip, Metric, Videos

_SHORT_SIDE_PX = 64


def blended(frames_FHWC: np.ndarray) -> np.ndarray:
    """Between the first and the last frame, which alone are looked at, their mean weighted by time; [F, H, W, 3]."""
    first, last = frames_FHWC[0].astype(np.float64), frames_FHWC[-1].astype(np.float64)
    shares = np.linspace(0.0, 1.0, len(frames_FHWC))[:, None, None, None]
    return (first * (1 - shares) + last * shares).round().astype(np.uint8)


def nearest(frames_FHWC: np.ndarray) -> np.ndarray:
    """Each frame the one of first and last that is nearer in time, the first where they are equally near."""
    count = len(frames_FHWC)
    return frames_FHWC[[0 if 2 * place <= count - 1 else count - 1 for place in range(count)]]


def warped(frames_FHWC: np.ndarray) -> np.ndarray:
    """Both given frames moved along their optical flow (Farneback, at full size) and blended by time.

    The flow at a frame between is taken to be that at the same place in a given one: no occlusions, no refinement.
    """
    first, last = frames_FHWC[0], frames_FHWC[-1]
    grey = [flow_frame(frame, min(frame.shape[:2])) for frame in (first, last)]
    onwards, back = dense_flow(grey[0], grey[1]), dense_flow(grey[1], grey[0])
    made = [first]
    for place in range(1, len(frames_FHWC) - 1):
        share = place / (len(frames_FHWC) - 1)
        from_first, from_last = _moved(first, share * onwards), _moved(last, (1 - share) * back)
        made.append(((1 - share) * from_first + share * from_last).round().clip(0, 255).astype(np.uint8))
    return np.stack([*made, last])


def _moved(rgb: np.ndarray, flow_px: np.ndarray) -> np.ndarray:
    """A picture whose pixels have gone along a flow, float32; what comes in over an edge repeats the edge."""
    y, x = np.mgrid[: rgb.shape[0], : rgb.shape[1]].astype(np.float32)
    moved = cv2.remap(rgb, x - flow_px[..., 0], y - flow_px[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return moved.astype(np.float32)


def psnr_between(clips: Sequence[Clip], truth: Videos, generated: Videos) -> dict[str, float | None]:
    """Mean over clips of the mean over the frames that were not given."""
    values = [middle_psnr(true, made) for true, made in zip(truth.frames, generated.frames, strict=True)]
    return {"psnr_db": float(np.mean(values))}


def middle_psnr(true_FHWC: np.ndarray, made_FHWC: np.ndarray) -> float:
    """Mean PSNR of all frames but the first and the last, dB."""
    return float(psnr_db(true_FHWC[1:-1], made_FHWC[1:-1]).mean())


def flow_between(clips: Sequence[Clip], truth: Videos, generated: Videos) -> dict[str, float | None]:
    """Mean over clips, frames and pixels of how far things are from where they are in the true frame, px."""
    errors = []
    for true, made in zip(truth.frames, generated.frames, strict=True):
        start = flow_frame(true[0], _SHORT_SIDE_PX)
        for true_frame, made_frame in zip(true[1:-1], made[1:-1], strict=True):
            flows = [dense_flow(start, flow_frame(frame, _SHORT_SIDE_PX)) for frame in (true_frame, made_frame)]
            errors.append(np.linalg.norm(flows[0] - flows[1], axis=-1).mean())
    return {"flow_error_px": float(np.mean(errors))}


FIGURES = (
    Metric(
        name="psnr",
        title="PSNR of the frames between",
        measure=psnr_between,
        units={"psnr_db": "dB"},
        better={"psnr_db": "higher"},
        protocol="8-bit RGB, peak 255, of each of the three frames that are not given, mean over frames, then over "
        "clips. It favours means over sharp guesses, and so the blend",
    ),
    Metric(
        name="flow",
        title="Where things are in the frames between (Farneback flow)",
        measure=flow_between,
        units={"flow_error_px": "px@short64"},
        better={"flow_error_px": "lower"},
        protocol="flow from the first given frame to each frame between, made against true: mean length of the "
        "difference (end-point error) on frames of 64 px on the short side",
    ),
)
