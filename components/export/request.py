"""One request: defaults filled in, bounds held, errors a client can act on. Names of the models that are served."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..common.errors import BadInputError

MODEL_NAME = "image_to_video"
INTERPOLATION = "interpolation"
SERVED = (MODEL_NAME, INTERPOLATION)  # kinds that a repository holds, each as the model of that name
MIN_SIDE_PX = 16
MAX_ASPECT = 16  # of a picture's sides; beyond it next to nothing of it would be seen. Ours
MAX_COVER = 32  # pixels of the picture scaled to cover a video, in those of the video; 1:16 for 9:16 takes 29. Ours
MAX_EVALUATIONS = 800  # of a request for interpolation, see ExportSettings; also of repositories that do not tell it
MAX_ANSWER_BYTES = 2**31 - 2**20  # gRPC's bound of a message, less what is said beside the frames


@dataclass(frozen=True)
class VideoRequest:
    """What to make of an image, or of a video's frames.

    Guidance is the scale at the first and at the last frame, linear between; fps is that of the video that is made of
    an image, and of the frames that are given for interpolation.
    """

    seed: int
    fps: float
    motion_bucket: int
    noise_aug: float
    steps: int
    guidance: tuple[float, float]


def video_request(asked: Mapping[str, Any], parameters: Mapping[str, Any]) -> VideoRequest:
    """Fill in the defaults and hold the request against the bounds.

    Args:
        asked: the fields of VideoRequest by name; None or absent takes the default.
        parameters: ``default_<field>`` and ``max_<field>``, as the repository's configuration has them.

    Raises:
        BadInputError: a value is out of its bounds; names the value and the bounds.
    """
    values = {
        name: parameters[f"default_{name}"] if asked.get(name) is None else asked[name]
        for name in VideoRequest.__annotations__
    }
    guidance = [float(scale) for scale in np.ravel(values["guidance"])]
    if len(guidance) != 2:
        raise BadInputError(f"guidance has {len(guidance)} values; it takes two, for the first and the last frame")
    request = VideoRequest(
        seed=int(values["seed"]),
        fps=float(values["fps"]),
        motion_bucket=int(values["motion_bucket"]),
        noise_aug=float(values["noise_aug"]),
        steps=int(values["steps"]),
        guidance=(guidance[0], guidance[1]),
    )
    for name, value, low, high in (
        ("seed", request.seed, 0, 2**63 - 1),
        ("fps", request.fps, 1, parameters["max_fps"]),
        ("motion_bucket", request.motion_bucket, 0, parameters["max_motion_bucket"]),
        ("noise_aug", request.noise_aug, 0.0, parameters["max_noise_aug"]),
        ("steps", request.steps, 1, parameters["max_steps"]),
        ("guidance at the first frame", request.guidance[0], 0.0, parameters["max_guidance"]),
        ("guidance at the last frame", request.guidance[1], 0.0, parameters["max_guidance"]),
    ):
        if not (math.isfinite(value) and low <= value <= high):
            raise BadInputError(f"{name} is {value}; this model takes {low} to {high}")
    return request


def check_image(shape: tuple[int, ...], dtype: str, parameters: Mapping[str, Any]) -> None:
    """Refuse what is no RGB image of bearable size.

    Raises:
        BadInputError: not uint8 [H, W, 3], a side below 16 px, more pixels than allowed, or so long and narrow that
            bringing it to the model's size would take too much memory.
    """
    if len(shape) != 3 or shape[2] != 3 or dtype != "uint8":
        raise BadInputError(f"image is {dtype} {list(shape)}; it must be uint8 [height, width, 3], RGB")
    height, width = shape[:2]
    if min(height, width) < MIN_SIDE_PX:
        raise BadInputError(f"image is {width}x{height} px; both sides must be at least {MIN_SIDE_PX} px")
    if height * width > parameters["max_image_pixels"]:
        raise BadInputError(
            f"image has {height * width} pixels; this model takes up to {parameters['max_image_pixels']}: "
            "make it smaller"
        )
    check_fit(height, width, parameters.get("height"), parameters.get("width"))


def check_fit(height: int, width: int, to_height: int | None = None, to_width: int | None = None) -> None:
    """Refuse a picture so long and narrow that scaling it to cover another size takes memory out of proportion.

    Args:
        height: of the picture, px.
        width: of the picture, px.
        to_height: what it is to cover, px; None where it is not known yet.
        to_width: likewise.

    Raises:
        BadInputError: its sides are beyond 1:16, or what would be made of it has over 32 times the pixels to cover.
    """
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise BadInputError(
            f"image is {width}x{height} px; one side may be up to {MAX_ASPECT} times the other, since it is scaled to "
            "cover the video: cut the part out that is to be seen"
        )
    if to_height is None or to_width is None:
        return
    from ..common.frames import covering_size

    scaled = covering_size(height, width, to_height, to_width)
    if scaled[0] * scaled[1] > MAX_COVER * to_height * to_width:
        raise BadInputError(
            f"image is {width}x{height} px; to cover a video of {to_width}x{to_height} px it would be scaled to "
            f"{scaled[0]}x{scaled[1]} px, more than {MAX_COVER} times as many: cut the part out that is to be seen"
        )


def check_key_frames(shape: tuple[int, ...], dtype: str, parameters: Mapping[str, Any]) -> None:
    """Refuse what are no RGB frames of one video, of bearable number and size.

    Raises:
        BadInputError: not uint8 [F, H, W, 3], fewer than two frames, a side below 16 px, or more than allowed.
    """
    if len(shape) != 4 or shape[3] != 3 or dtype != "uint8":
        raise BadInputError(f"frames are {dtype} {list(shape)}; they must be uint8 [frames, height, width, 3], RGB")
    if not 2 <= shape[0] <= parameters["max_key_frames"]:
        raise BadInputError(
            f"{shape[0]} frames are given; this model takes 2 to {parameters['max_key_frames']}: send a longer video "
            "in parts that share a frame"
        )
    check_image(shape[1:], dtype, parameters)
    if (pixels := shape[0] * shape[1] * shape[2]) > parameters["max_video_pixels"]:
        raise BadInputError(
            f"the frames have {pixels} pixels together; this model takes up to {parameters['max_video_pixels']}: make "
            "them smaller, or send fewer"
        )


def is_guided(guidance: Sequence[float]) -> bool:
    """Whether the sampler evaluates the model twice a step."""
    return max(guidance) > 1


def evaluations(frames: int, steps: int, guided: bool) -> int:
    """Model evaluations that interpolation between so many frames takes, one clip for each pair."""
    return (frames - 1) * steps * (2 if guided else 1)


def check_interpolation(frames: int, request: VideoRequest, parameters: Mapping[str, Any]) -> None:
    """Refuse a request that would take a server for itself, or whose answer could not be sent: before any work.

    Args:
        frames: that are given.
        request: held against its own bounds.
        parameters: with ``max_evaluations``, and ``height`` and ``width`` of the frames that are made.

    Raises:
        BadInputError: more model evaluations than allowed, or more bytes of frames than one answer of gRPC holds.
    """
    from ..diffusion.settings import INTERPOLATION_RATE  # here: the client's own imports are numpy and no more

    pairs, guided = frames - 1, is_guided(request.guidance)
    of_pair, most = evaluations(2, request.steps, guided), parameters.get("max_evaluations", MAX_EVALUATIONS)
    if pairs * of_pair > most:
        fewer = "ask for fewer steps" + (", or for no guidance" if guided else "")
        parts = f"send up to {most // of_pair + 1} frames at a time, in parts that share a frame, or "
        raise BadInputError(
            f"{frames} frames at {request.steps} steps{' with guidance' if guided else ''} take {pairs * of_pair} "
            f"model evaluations; this model makes up to {most} for a request: "
            f"{parts if most >= of_pair else ''}{fewer}"
        )
    frame_bytes = parameters["height"] * parameters["width"] * 3
    made = INTERPOLATION_RATE * pairs + 1
    if made * frame_bytes > MAX_ANSWER_BYTES:
        fitting = (MAX_ANSWER_BYTES // frame_bytes - 1) // INTERPOLATION_RATE + 1
        raise BadInputError(
            f"{frames} frames become {made} of {parameters['width']}x{parameters['height']} px, "
            f"{made * frame_bytes} bytes; an answer holds up to {MAX_ANSWER_BYTES}: send up to "
            f"{fitting} frames at a time, in parts that share a frame"
        )
