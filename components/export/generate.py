"""An image file in, a video file out: through a server, or in process from a model directory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from ..common.errors import BadInputError
from ..common.storage import write_atomic
from ..common.video import encode_mp4
from .client import VideoClient
from .model_config import request_parameters
from .settings import ExportSettings

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_MAX_PIXELS = 8192 * 8192


def generate_file(
    image: Path, out: Path, url: str = "", model: Path | None = None, token_file: Path | None = None, **asked: Any
) -> str:
    """Write the video that begins with an image, and say so in one line.

    Args:
        image: a PNG, JPEG, WebP or BMP file.
        out: the MP4 file to write.
        url: gRPC address of a server, as ``svdflow serve`` prints it.
        model: a model directory, to do it in this process instead.
        token_file: holds the bearer token that the server's gateway asks for: a file, so that no command line shows it.
        asked: seed, fps, motion_bucket, noise_aug, steps, guidance; None or absent takes the default.

    Raises:
        BadInputError: no such image, neither or both of ``url`` and ``model``, a value out of its bounds, no token in
        the file, or one that would travel in the clear.
        ServiceError: the server does not answer.
    """
    if bool(url) == (model is not None):
        raise BadInputError("say where to generate: either --url of a server or --model, a model directory")
    if out.suffix.lower() != ".mp4":
        raise BadInputError(f"{out}: the video is an MP4 file; let its name end in .mp4")
    rgb = read_image(image)
    started = time.monotonic()
    if model is not None:
        frames, parameters = _in_process(model, rgb, asked)
    else:
        with VideoClient(url, token=_token(token_file)) as client:
            frames, parameters = client.generate(rgb, **asked), client.parameters()
    seconds = time.monotonic() - started
    fps = asked.get("fps") or parameters["default_fps"]
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


def _in_process(model: Path, rgb: np.ndarray, asked: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
    from .repository import read_card, video_size
    from .service import VideoService

    settings = ExportSettings()
    size = dict(zip(("frames", "height", "width"), video_size(model, read_card(model), settings), strict=True))
    parameters = request_parameters(settings) | size
    return VideoService(model, parameters).generate(rgb, asked), parameters
