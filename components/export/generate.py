"""An image file in, a video file out: through a server, or in process from a model directory; interpolated if asked."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..common.errors import BadInputError
from ..common.files import write_atomic
from ..common.video import encode_mp4
from ..diffusion.settings import INTERPOLATION_RATE
from .client import VideoClient
from .in_process import SIZE, generate_in_process
from .interpolate import interpolate_frames, interpolation_directory

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_MAX_PIXELS = 8192 * 8192


def generate_file(
    image: Path,
    out: Path,
    url: str = "",
    model: Path | None = None,
    token_file: Path | None = None,
    lora: Sequence[str] = (),
    interpolate: Path | None = None,
    **asked: Any,
) -> str:
    """Write the video that begins with an image, and say so in one line.

    Args:
        image: a PNG, JPEG, WebP or BMP file.
        out: the MP4 file to write.
        url: gRPC address of a server, as ``svdflow serve`` prints it.
        model: to do it in this process instead: a model directory, svdflow's or a released one, or a single file.
        token_file: holds the bearer token that the server's gateway asks for: a file, so that no command line shows it.
        lora: adapters to put on the model first, each as ``parse_lora`` reads it; several add up.
        interpolate: an interpolation model's directory: the video is brought to four times its frame rate by it, in
            this process, with the same seed, motion and steps.
        asked: seed, fps, motion_bucket, noise_aug, steps, guidance; with ``model`` also frames, height, width and
            motion_score. None or absent takes the default.

    Raises:
        BadInputError: no such image, neither or both of ``url`` and ``model``, a value out of its bounds, no token in
        the file, or one that would travel in the clear; no such adapter, one that does not fit the model, or one for a
        server's model; no interpolation model, or a video of one frame.
        ServiceError: the server does not answer.
    """
    if lora and model is None:
        raise BadInputError(
            f"--lora {lora[0]}: a server puts no adapter on its model. Name a model directory by --model in place of "
            "--url; to serve it, export a model that has the adapter merged in, as the stage camera_motion hands it on"
        )
    if model is None and (own := [name for name in (*SIZE, "motion_score") if asked.get(name) is not None]):
        raise BadInputError(
            f"--{own[0].replace('_', '-')}: a served model has a size of its own and takes motion buckets; name a "
            "model directory by --model in place of --url"
        )
    asked = {name: value for name, value in asked.items() if value is not None}
    if bool(url) == (model is not None):
        raise BadInputError("say where to generate: either --url of a server or --model, a model directory")
    if out.suffix.lower() != ".mp4":
        raise BadInputError(f"{out}: the video is an MP4 file; let its name end in .mp4")
    adapters = [parse_lora(text) for text in lora]
    if interpolate is not None:
        interpolation_directory(interpolate)  # complains before the video is made
        if asked.get("frames") == 1:
            raise BadInputError("--interpolate: nothing lies between fewer than two frames; ask for more by --frames")
    rgb = read_image(image)
    started = time.monotonic()
    if model is not None:
        frames, parameters = generate_in_process(model, adapters, rgb, asked)
    else:
        with VideoClient(url, token=_token(token_file)) as client:
            frames, parameters = client.generate(rgb, **asked), client.parameters()
    fps = asked.get("fps") or parameters["default_fps"]
    if interpolate is not None:
        frames, fps = interpolate_frames(frames, interpolate, fps, asked), INTERPOLATION_RATE * fps
    seconds = time.monotonic() - started
    write_atomic(out, encode_mp4(frames, fps))
    count, height, width = frames.shape[:3]
    return f"{out}: {count} frames of {width}x{height} px at {fps} fps, made in {seconds:.1f} s"


def read_image(path: Path) -> np.ndarray:
    """An image file as uint8 RGB [H, W, 3], turned upright.

    Raises:
        BadInputError: no such file, not an image of a known format, damaged or too large.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path, formats=_FORMATS) as picture:
            if picture.width * picture.height > _MAX_PIXELS:
                raise BadInputError(
                    f"{path}: {picture.width}x{picture.height} px; at most {_MAX_PIXELS} pixels are read"
                )
            return np.array(ImageOps.exif_transpose(picture).convert("RGB"))
    except FileNotFoundError:
        raise BadInputError(f"{path}: there is no such image") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadInputError(
            f"{path}: no readable image ({', '.join(_FORMATS)} are read): {str(error).splitlines()[0]}"
        ) from None


def parse_lora(text: str) -> tuple[Path, float]:
    """An adapter's file, and how much of it: ``DIR`` or ``DIR=WEIGHT``, 1 where no weight is told.

    Args:
        text: names a directory with ``lora.safetensors``, as the stage camera_motion leaves it, or such a file.

    Raises:
        BadInputError: there is no adapter, or the weight is no finite number.
    """
    from ..diffusion.lora import ADAPTER

    place, told, number = text.rpartition("=")
    if not told or Path(text).exists():  # a path may have an equals sign too
        place, number = text, "1"
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise BadInputError(f"--lora {text}: {number!r} is no weight; write DIR=0.8, or DIR for a weight of 1")
    path = Path(place) / ADAPTER if Path(place).is_dir() else Path(place)
    if not path.is_file():
        raise BadInputError(
            f"--lora {text}: there is no adapter {path}; the stage camera_motion leaves a {ADAPTER} beside its model"
        )
    return path, weight


def _token(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path}: no readable token ({type(error).__name__})") from None
    if not token or len(token.split()) != 1:
        raise BadInputError(f"{path}: holds no token; a bearer token is one word")
    return token
