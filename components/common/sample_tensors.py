"""The tensors of a training sample by name, and its lossless pictures.

The names are the layout that ``training/encode/README.md`` describes; whoever reads samples reads them through this.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from .errors import BadInputError
from .shards import ShardReader

WINDOW, FRAMES, CLIP = "window", "frames", "clip"  # the layouts, see ``manifests.SAMPLES``

_PNG = b"\x89PNG\r\n\x1a\n"
_COMPRESSION = 3  # of zlib's 9: beyond that a picture takes several times as long to write and shrinks by a few percent


def picture_name(frame: int) -> str:
    """The tensor that holds a frame's pixels."""
    return f"picture-{frame:06d}"


def pack_picture(rgb: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] as the bytes of a PNG, a flat uint8 array."""
    import cv2

    return cv2.imencode(".png", rgb[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, _COMPRESSION])[1].reshape(-1)


def unpack_picture(data: np.ndarray, height: int, width: int, label: str) -> np.ndarray:
    """Inverse of ``pack_picture``; the size is held against the expected one before anything is unpacked.

    Raises:
        BadInputError: no PNG of that size.
    """
    import cv2

    head = data[:26].tobytes()
    if head[:8] != _PNG or len(head) < 26 or struct.unpack(">IIBB", head[16:26]) != (width, height, 8, 2):
        raise BadInputError(f"{label}: is no RGB PNG of {width}x{height} px; encode the clip again")
    bgr = cv2.imdecode(data, cv2.IMREAD_COLOR)
    if bgr is None or bgr.shape != (height, width, 3):
        raise BadInputError(f"{label}: its picture cannot be unpacked, it is damaged; encode the clip again")
    return np.ascontiguousarray(bgr[..., ::-1])


def read_picture(reader: ShardReader, row: Mapping[str, Any], frame: int) -> np.ndarray:
    """The clean pixels of a frame of a sample, uint8 [H, W, 3].

    Args:
        reader: of the sample's shard.
        row: of the samples manifest.
        frame: one of the sample's ``starts``; 0 in a sample that is one window.

    Raises:
        BadInputError: the shard holds no such picture, or it is damaged.
    """
    if row.get("layout") in (None, WINDOW):
        return reader.read(row["tensor_prefix"], "frame")
    name = picture_name(frame)
    label = f"{reader.label}: {row['tensor_prefix']}.{name}"
    return unpack_picture(reader.read(row["tensor_prefix"], name), row["height"], row["width"], label)
