"""Model directories as services: a request in, frames out. The same code answers in Triton and in process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.errors import BadInputError
from .request import INTERPOLATION, MODEL_NAME, check_image, check_interpolation, check_key_frames, video_request

if TYPE_CHECKING:
    from ..diffusion.model_directory import VideoModel


class Cancelled(Exception):
    """The client has gone: what was computed is of no use."""


class VideoService:
    """An image-to-video model, loaded, with the defaults and bounds of its repository."""

    takes = "IMAGE"

    def __init__(self, model: Path, parameters: Mapping[str, Any], device: str = "cpu") -> None:
        """Load the model.

        Args:
            model: of kind image_to_video: a model directory, a released one, or a file in the authors' layout.
            parameters: of ``config.pbtxt``, decoded: default_…, max_…, frames, height, width.
            device: torch's name of where it runs.

        Raises:
            BadInputError: no model directory, or one of another kind.
        """
        self.parameters = dict(parameters)
        self.model = _loaded(model, MODEL_NAME, device)

    def generate(self, image: np.ndarray, asked: Mapping[str, Any], gone: Callable[[], bool] = bool) -> np.ndarray:
        """A video, uint8 [F, H, W, 3], that begins with an image, uint8 [h, w, 3] of any size.

        Args:
            image: RGB; scaled and cropped to the model's size.
            asked: fields of VideoRequest by name; None or absent takes the default.
            gone: asked after each denoising step whether the client has given up.

        Raises:
            BadInputError: the image or a value asked for is out of its bounds.
            Cancelled: ``gone`` said so.
        """
        from ..common.frames import fit_frame
        from ..diffusion.sampling import generate

        check_image(image.shape, str(image.dtype), self.parameters)
        request = video_request(asked, self.parameters)
        fitted = fit_frame(image, self.parameters["height"], self.parameters["width"])
        return generate(
            self.model,
            fitted,
            frames=self.parameters["frames"],
            fps=request.fps,
            motion_bucket=request.motion_bucket,
            noise_aug=request.noise_aug,
            steps=request.steps,
            guidance=request.guidance,
            seed=request.seed,
            on_step=unless(gone),
        )


class InterpolationService:
    """An interpolation model, loaded, with the defaults and bounds of its repository."""

    takes = "KEY_FRAMES"

    def __init__(self, model: Path, parameters: Mapping[str, Any], device: str = "cpu") -> None:
        """Load the model.

        Args:
            model: directory of a model of kind interpolation.
            parameters: of ``config.pbtxt``, decoded: default_…, max_…, height, width.
            device: torch's name of where it runs.

        Raises:
            BadInputError: no model directory, or one of another kind.
        """
        self.parameters = dict(parameters)
        self.model = _loaded(model, INTERPOLATION, device)

    def generate(self, frames: np.ndarray, asked: Mapping[str, Any], gone: Callable[[], bool] = bool) -> np.ndarray:
        """A video at four times the frame rate, uint8 [4 (F - 1) + 1, H, W, 3], of frames, uint8 [F, h, w, 3].

        Args:
            frames: RGB, two at least; scaled and cropped to the model's size.
            asked: fields of VideoRequest by name, ``fps`` that of the frames; None or absent takes the default.
            gone: asked after each denoising step whether the client has given up.

        Raises:
            BadInputError: the frames or a value asked for are out of their bounds.
            Cancelled: ``gone`` said so.
        """
        from ..common.frames import fit_frame
        from ..diffusion.interpolating import interpolate

        check_key_frames(frames.shape, str(frames.dtype), self.parameters)
        request = video_request(asked, self.parameters)
        check_interpolation(len(frames), request, self.parameters)
        size = self.parameters["height"], self.parameters["width"]
        return interpolate(
            self.model,
            np.stack([fit_frame(frame, *size) for frame in frames]),
            fps=request.fps,
            motion_bucket=request.motion_bucket,
            noise_aug=request.noise_aug,
            steps=request.steps,
            guidance=request.guidance,
            guidance_shape="linear",
            seed=request.seed,
            on_step=unless(gone),
        )


def unless(gone: Callable[[], bool]) -> Callable[[int], None]:
    """What is called after each denoising step: it raises Cancelled when the client has gone."""

    def on_step(_step: int) -> None:
        if gone():
            raise Cancelled

    return on_step


def _loaded(model: Path, kind: str, device: str) -> VideoModel:
    from ..diffusion.device import place
    from ..diffusion.import_model import open_model

    opened = open_model(model)
    if opened.kind != kind:
        raise BadInputError(f"{model}: a model of kind {opened.kind!r}; it takes one of kind {kind}")
    return place(opened, device)
