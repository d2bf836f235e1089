"""`svdflow generate`: a picture in, an MP4 out, through the served model."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from svdflow.common.errors import BadInputError
from svdflow.common.storage import write_atomic

MAX_IMAGE_PIXELS = 64_000_000


def generate_video(image: Path, out: Path, *, url: str, seed: int, fps: int, motion_bucket: int) -> int:
    """Send a picture to Triton and write the video; returns the number of frames.

    Raises:
        BadInputError: the picture cannot be read. ServiceError: the server does not answer or refuses.
    """
    from svdflow.common.video import encode_mp4
    from svdflow.export.client import VideoClient

    with VideoClient(url) as client:
        frames_FHWC = client.generate(read_image(image), seed=seed, fps=fps, motion_bucket=motion_bucket)
    write_atomic(out, encode_mp4(frames_FHWC, fps))
    return len(frames_FHWC)


def read_image(path: Path) -> np.ndarray:
    """A picture file as uint8 RGB [H, W, 3], turned upright.

    Raises:
        BadInputError: no such file, not a picture, or too large.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MAX_IMAGE_PIXELS:
                raise BadInputError(f"{path}: {picture.width}x{picture.height} is more than {MAX_IMAGE_PIXELS} pixels; make it smaller")
            return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    except FileNotFoundError:
        raise BadInputError(f"{path}: no such file") from None
    except (OSError, Image.DecompressionBombError) as error:
        raise BadInputError(f"{path}: cannot be read as a picture ({error})") from error
