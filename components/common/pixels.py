"""Pictures as plain pixels: what comes back from where a file was decoded, with nothing left in it to decode."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import BadInputError
from .shards import ShardReader, write_shard
from .storage import DataRoot

_FRAMES = "frames"


@dataclass(frozen=True)
class Pixels:
    """A picture: height and width in px, and its RGB values row by row, 8 bits each."""

    height: int
    width: int
    rgb: bytes

    @staticmethod
    def of(picture: np.ndarray) -> Pixels:
        """Of a picture uint8 [H, W, 3]."""
        return Pixels(picture.shape[0], picture.shape[1], np.ascontiguousarray(picture, np.uint8).tobytes())

    def array(self) -> np.ndarray:
        """The picture, uint8 [H, W, 3].

        Raises:
            BadInputError: size and values do not agree.
        """
        if min(self.height, self.width) < 1 or len(self.rgb) != self.height * self.width * 3:
            raise BadInputError(f"a picture of {self.width}x{self.height} px came with {len(self.rgb)} bytes")
        return np.frombuffer(self.rgb, np.uint8).reshape(self.height, self.width, 3).copy()


def keep_frames(frames_FHWC: np.ndarray, root: DataRoot) -> str:
    """Put frames into the data root as they are, uint8 [F, H, W, 3], as one tensor; returns the URI."""
    with tempfile.TemporaryDirectory(dir=root.scratch("frames")) as folder:
        path = Path(folder) / "frames.safetensors"
        write_shard(path, {_FRAMES: {_FRAMES: frames_FHWC}})
        return root.put_file(path)


def kept_frames(root: DataRoot, uri: str, frames: int, height: int, width: int) -> np.ndarray:
    """What ``keep_frames`` put there.

    Raises:
        BadInputError: it is not of that size.
    """
    found = ShardReader.open(root, uri).read(_FRAMES, _FRAMES)
    if found.dtype != np.uint8 or found.shape != (frames, height, width, 3):
        raise BadInputError(f"{uri}: holds {found.dtype} of {found.shape}, not {frames} frames of {width}x{height} px")
    return found
