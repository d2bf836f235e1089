"""The views of an orbit as bytes: a tar of lossless PNG pictures, view 0 (the input view) first."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass

import numpy as np

from .errors import BadInputError
from .fanout import in_pods
from .pixels import keep_frames
from .storage import DataRoot


def pack_views(orbit_id: str, views_VHWC: np.ndarray) -> bytes:
    """A tar with members ``<orbit_id>/<view:03d>.png``; equal views give equal bytes.

    Args:
        orbit_id: the orbit's identity.
        views_VHWC: uint8 [V, H, W, 3].
    """
    from PIL import Image

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for index, view in enumerate(views_VHWC):
            png = io.BytesIO()
            Image.fromarray(view).save(png, "PNG")
            member = tarfile.TarInfo(f"{orbit_id}/{index:03d}.png")  # time, owner and mode keep their fixed defaults
            member.size = png.tell()
            png.seek(0)
            tar.addfile(member, png)
    return buffer.getvalue()


def read_views(root: DataRoot, shard_uri: str) -> np.ndarray:
    """The views of an orbit, uint8 [V, H, W, 3], in order around the object.

    Raises:
        BadInputError: the shard is no tar of pictures of one size.
        StorageError: the data root does not hold it.
    """
    from PIL import Image, UnidentifiedImageError

    views: dict[str, np.ndarray] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(root.read(shard_uri)), mode="r:") as tar:
            for member in tar:
                stream = tar.extractfile(member)
                if stream is not None and member.name.endswith(".png"):
                    views[member.name] = np.asarray(Image.open(stream, formats=["PNG"]).convert("RGB"))
        return np.stack([views[name] for name in sorted(views)])
    except (tarfile.TarError, UnidentifiedImageError, OSError, ValueError) as error:
        raise BadInputError(f"{shard_uri}: not a shard of orbit views ({error}); render the orbit again") from error


@dataclass(frozen=True)
class OrbitPlace:
    """Where an orbit's views lie: the data root's location, and the shard's URI."""

    root: str
    uri: str

    def read(self) -> np.ndarray:
        """See ``read_views``."""
        return read_views(DataRoot.open(self.root), self.uri)


@in_pods
def keep_views(orbit: OrbitPlace) -> str:
    """Put an orbit's views into the data root as plain frames; returns the URI.

    Raises:
        BadInputError: see ``read_views``.
    """
    return keep_frames(orbit.read(), DataRoot.open(orbit.root))
