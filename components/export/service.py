"""A model directory as a service: a request in, frames out. The same code answers in Triton and in process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..common.errors import BadInputError
from .request import check_image, video_request


class Cancelled(Exception):
    """The client has gone: what was computed is of no use."""


class VideoService:
    """An image-to-video model, loaded, with the defaults and bounds of its repository."""

    def __init__(self, model: Path, parameters: Mapping[str, Any], device: str = "cpu") -> None:
        """Load the model.

        Args:
            model: of kind image_to_video: a model directory, a released one, or a file in the authors' layout.
            parameters: of ``config.pbtxt``, decoded: default_…, max_…, frames, height, width.
            device: torch's name of where it runs.

        Raises:
            BadInputError: no model directory, or one of another kind.
        """
        from ..diffusion.device import place
        from ..diffusion.import_model import open_model

        self.parameters = dict(parameters)
        self.model = open_model(model)
        if self.model.kind != "image_to_video":
            raise BadInputError(f"{model}: a model of kind {self.model.kind!r}; image_to_video is what is served")
        place(self.model, device)

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

        def on_step(_step: int) -> None:
            if gone():
                raise Cancelled

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
            on_step=on_step,
        )
