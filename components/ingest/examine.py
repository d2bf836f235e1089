"""What a file is: a video that can be used, or a reason why not. Runs in worker processes: the bytes are untrusted."""

from __future__ import annotations

import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

import av
import numpy as np

from ..common.errors import BadInputError
from ..common.video import open_video, probe, upright_rgb

VERSION = "1"
_THUMBNAIL_PX = 128  # height
_REASONS = (  # what common.video says, and the short name under which it is counted
    ("no readable video container", "unreadable"),
    ("has no video stream", "no video stream"),
    ("claims more than", "too large"),
    ("holds no", "damaged"),
    ("its first frame does not decode", "damaged"),
    ("breaks off", "damaged"),
)


def examine(path: str) -> dict[str, Any]:
    """The verdict on one file: ``error`` (``<short name>: <what is wrong>``), or ``info`` and ``thumbnail`` (JPEG).

    The verdict depends on the bytes alone and names no path, so that it can be kept under their hash.
    """
    file = Path(path)
    if not file.stat().st_size:
        return {"error": "empty: the file has no bytes"}
    try:
        info = probe(file)
        if info.frames < 2:
            return {"error": "one frame: a video needs at least two"}
        return {"info": asdict(info), "thumbnail": _thumbnail(file, info.duration_s)}
    except BadInputError as error:
        message = str(error).removeprefix(f"{path}: ").replace(f": '{path}'", "").replace(path, "the file")
        name = next((name for start, name in _REASONS if message.startswith(start)), "damaged")
        return {"error": f"{name}: {message}"}


def _thumbnail(path: Path, duration_s: float) -> bytes:
    """The first frame and the key frame before the middle, side by side, as JPEG."""
    from PIL import Image

    pictures = []
    with open_video(path) as container:
        stream = container.streams.video[0]
        for place_s in (0.0, duration_s / 2):
            try:
                if place_s:
                    container.seek(int(place_s / stream.time_base) + (stream.start_time or 0), stream=stream)
                frame = next(container.decode(stream), None)
            except av.error.FFmpegError:
                continue
            if frame is not None:
                picture = Image.fromarray(upright_rgb(frame))
                picture.thumbnail((4 * _THUMBNAIL_PX, _THUMBNAIL_PX))
                pictures.append(np.asarray(picture))
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(pictures, axis=1)).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
