"""Where the frames of a unit come from: plain values, so that a unit can be sent to where it is decoded."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...common.errors import BadInputError
from ...common.lossless_frames import unpack_frames
from ...common.storage import DataRoot
from ...common.video import decode
from ...common.windows import nearest_in_time

_FORMATS = ["PNG", "JPEG", "WEBP"]
_MAX_PIXELS = 8192 * 8192


@dataclass(frozen=True)
class Sequence:
    """The frames of a clip that are encoded: so many, at a rate, from a time in the clip on.

    Attributes:
        frames: how many, if the clip holds what it claims.
        fps: their rate.
        start_s: time of the first one from the clip's first frame.
        available: how many there would be without a limit.
    """

    frames: int
    fps: float
    start_s: float
    available: int

    @property
    def times_s(self) -> list[float]:
        """The time of each frame in the clip."""
        return [self.start_s + i / self.fps for i in range(self.frames)]


@dataclass(frozen=True)
class ClipSource:
    """A sequence of a clip; fewer frames when it ends early. ``offset``, ``bytes``: of the clip in its shard."""

    clip_shard: str
    offset: int
    bytes: int
    sequence: Sequence

    def frames(self, root: DataRoot) -> Iterator[np.ndarray]:
        """As decoded, uint8 [H, W, 3], one at a time.

        Raises:
            BadInputError: its bytes do not decode.
        """
        data = root.read_range(self.clip_shard, self.offset, self.bytes)
        return nearest_in_time(decode(data), self.sequence.times_s)


@dataclass(frozen=True)
class OrbitSource:
    """Every ``stride``-th view of an orbit, which is to have ``views``."""

    views_shard: str
    orbit_id: str
    views: int
    stride: int

    def frames(self, root: DataRoot) -> Iterator[np.ndarray]:
        """As rendered, uint8 [H, W, 3], one at a time.

        Raises:
            BadInputError: the shard holds other views, or none.
        """
        found = unpack_frames(root, self.views_shard)
        if len(found) != self.views:
            raise BadInputError(f"{self.views_shard}: orbit {self.orbit_id} has {len(found)} views, not {self.views}")
        return iter(found[:: self.stride])


@dataclass(frozen=True)
class PictureSource:
    """A picture in a file of this machine; ``uri``: its copy in the data root, for those that see no such file."""

    path: str
    uri: str | None = None

    def frames(self, root: DataRoot) -> Iterator[np.ndarray]:
        """The picture upright, uint8 [H, W, 3], alone.

        Raises:
            BadInputError: it is no picture.
        """
        yield read_image(Path(self.path), root.read(self.uri) if self.uri else None)


Source = ClipSource | OrbitSource | PictureSource


def read_image(path: Path, data: bytes | None = None) -> np.ndarray:
    """A picture upright, uint8 RGB [H, W, 3].

    Args:
        path: its file.
        data: its bytes, where they are at hand.

    Raises:
        BadInputError: it is no PNG, JPEG or WebP, is damaged, or claims too many pixels.
    """
    from PIL import Image, ImageOps

    source = path if data is None else io.BytesIO(data)
    try:
        with warnings.catch_warnings(), Image.open(source, formats=_FORMATS) as image:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the bound below is ours
            if image.width * image.height > _MAX_PIXELS:
                raise BadInputError(f"{path}: claims more than {_MAX_PIXELS} pixels")
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadInputError(f"{path}: is no picture that can be read ({str(error).splitlines()[0][:200]})") from error
