"""A video made in this process from a model directory, a released one or a single file, with adapters put on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.errors import BadInputError
from ..common.identity import file_sha256
from ..common.progress import Progress
from .model_config import request_parameters
from .settings import ExportSettings

if TYPE_CHECKING:
    from ..diffusion.model_directory import VideoModel

SIZE = ("frames", "height", "width")
RELEASED_SIZE_PX = (576, 1024)  # of the released models, which do not tell it


def generate_in_process(
    model: Path, adapters: Sequence[tuple[Path, float]], rgb: np.ndarray, asked: Mapping[str, Any]
) -> tuple[np.ndarray, dict[str, Any]]:
    """The video's frames, and the parameters that were in force, on this process's GPU if it has one.

    Args:
        model: a model directory, a released one, a file in the authors' layout, or a repository of a hub.
        adapters: files, and how much of each.
        rgb: the picture, of any size.
        asked: fields of a request; ``frames``, ``height`` and ``width``, else as the model was trained;
            ``motion_score`` in place of ``motion_bucket``. None or absent takes the default.

    Raises:
        BadInputError: no such model, an adapter that does not fit or is merged in already, a value out of its bounds.
    """
    from ..diffusion.device import default_device, within_memory
    from ..diffusion.hub import resolve_model
    from ..diffusion.lora import ADAPTER, apply_lora
    from .service import VideoService

    place = resolve_model(model)
    merged = file_sha256(place / ADAPTER) if adapters and (place / ADAPTER).is_file() else None
    for path, weight in adapters:
        if weight > 0 and merged == file_sha256(path):
            raise BadInputError(
                f"--lora {path}: {model} has this adapter merged in already; name the model that it was trained on"
            )
    parameters = request_parameters(ExportSettings())
    service = VideoService(place, parameters, str(default_device()))
    service.parameters |= video_size_of(service.model, asked)
    request = {name: value for name, value in asked.items() if name not in (*SIZE, "motion_score")}
    if asked.get("motion_score") is not None:
        request["motion_bucket"] = bucket_of_score(model, service.model, asked)
    for path, weight in adapters:
        apply_lora(service.model.unet, path, weight)
    size = "{frames} frames of {width}x{height} px".format(**service.parameters)
    steps = asked.get("steps") or parameters["default_steps"]
    with within_memory(size), Progress("denoising steps", steps) as progress:

        def count() -> bool:
            progress.advance()
            return False  # nobody who could go

        return service.generate(rgb, request, count), service.parameters


def video_size_of(model: VideoModel, asked: Mapping[str, Any]) -> dict[str, int]:
    """Frames, height and width: as asked, else as the model was trained, else as the released models were."""
    trained = model.card.get("configuration") or {}
    others = dict(zip(SIZE, (model.unet.config.num_frames, *RELEASED_SIZE_PX), strict=True))
    return {name: int(asked.get(name) or trained.get(name) or model.card.get(name) or others[name]) for name in SIZE}


def bucket_of_score(name: Path, model: VideoModel, asked: Mapping[str, Any]) -> int:
    """The bucket of ``asked["motion_score"]`` by the model's own map.

    Raises:
        BadInputError: a bucket is asked for as well, or the model has no map.
    """
    from ..diffusion.motion import MotionCalibration

    if asked.get("motion_bucket") is not None:
        raise BadInputError("--motion-score and --motion-bucket are two ways to say the same: give one of them")
    calibration = model.card.get("motion_calibration")
    if not calibration:
        raise BadInputError(
            f"--motion-score: {name} has no motion map; `svdflow train calibrate` estimates one, or give "
            "--motion-bucket"
        )
    return MotionCalibration.from_dict(calibration).apply(asked["motion_score"])
