"""The pictures of training samples: lossless ones in shards, and frames of clips that are not encoded.

Names and layouts are those that ``training/encode/README.md`` describes; whoever reads samples reads them through this.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .errors import BadInputError
from .frames import CENTRE, fit_frame
from .shards import ShardReader
from .storage import DataRoot
from .video import decode
from .windows import nearest_in_time

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


def read_clip_frames(
    row: Mapping[str, Any], frames: Sequence[int], read_range: Callable[[str, int, int], bytes]
) -> np.ndarray:
    """Frames of a sample of the layout "clip", decoded from the clip and brought to size, uint8 [F, H, W, 3].

    Args:
        row: of the samples manifest.
        frames: places in the sample's sequence, rising.
        read_range: gives ``(uri, offset, length)`` of an object.

    Raises:
        BadInputError: the clip does not decode, or holds fewer frames than when it was checked.
    """
    data = read_range(row["clip_shard"], row["clip_offset"], row["clip_bytes"])
    times_s = [row["start_s"] + frame / row["sequence_fps"] for frame in frames]
    left, top, right, bottom = row["crop"]
    kept_start, kept_end = left + top == 0 < right + bottom, right + bottom == 0 < left + top
    place = 0.0 if kept_start else 1.0 if kept_end else CENTRE
    fitted = [
        fit_frame(rgb, row["height"], row["width"], place, bool(row["flipped"]))
        for rgb in nearest_in_time(decode(data), times_s)
    ]
    if len(fitted) < len(times_s):
        raise BadInputError(
            f"sample {row['sample_id']}: clip {row['clip_id']} ends before frame {frames[len(fitted)]} of its "
            "sequence; encode it again"
        )
    return np.stack(fitted)


def first_picture(root: DataRoot, row: Mapping[str, Any]) -> np.ndarray:
    """The clean first frame of a sample's reference window, uint8 [H, W, 3], whatever the layout.

    Raises:
        BadInputError: it is not there, or damaged.
    """
    first = row["first_frame"] or 0
    if row["layout"] == CLIP:
        return read_clip_frames(row, [first], root.read_range)[0]
    return read_picture(ShardReader.open(root, row["shard_uri"]), row, first)
