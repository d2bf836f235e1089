"""Frames kept without loss, of rendered orbits and of generated videos alike: a tar of PNG pictures, in order."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable

import numpy as np

from .errors import BadInputError
from .storage import DataRoot


def pack_frames(name: str, frames_FHWC: np.ndarray) -> bytes:
    """A tar with members ``<name>/<number:03d>.png``; equal frames give equal bytes.

    Args:
        name: identity of the orbit or the video.
        frames_FHWC: uint8 [F, H, W, 3].
    """
    from PIL import Image

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for index, frame in enumerate(frames_FHWC):
            png = io.BytesIO()
            Image.fromarray(frame).save(png, "PNG")
            member = tarfile.TarInfo(f"{name}/{index:03d}.png")  # time, owner and mode keep their fixed defaults
            member.size = png.tell()
            png.seek(0)
            tar.addfile(member, png)
    return buffer.getvalue()


def unpack_frames(root: DataRoot, uri: str) -> np.ndarray:
    """What ``pack_frames`` packed, uint8 [F, H, W, 3], in order.

    Raises:
        BadInputError: it is no tar of pictures of one size.
        StorageError: the data root does not hold it.
    """
    from PIL import Image, UnidentifiedImageError

    frames: dict[str, np.ndarray] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(root.read(uri)), mode="r:") as tar:
            for member in tar:
                stream = tar.extractfile(member)
                if stream is not None and member.name.endswith(".png"):
                    frames[member.name] = np.asarray(Image.open(stream, formats=["PNG"]).convert("RGB"))
        return np.stack([frames[name] for name in sorted(frames)])
    except (tarfile.TarError, UnidentifiedImageError, OSError, ValueError) as error:
        raise BadInputError(
            f"{root.location}/{uri}: no tar of PNG frames of one size ({error}); remove this file and run the step "
            "that made it again, which makes it anew"
        ) from error


def keep_once(root: DataRoot, kind: str, key: str, make: Callable[[], np.ndarray]) -> tuple[str, bool]:
    """Frames that are kept under a key, made where there are none.

    Args:
        root: where they are kept.
        kind: of the record that says so.
        key: names all that they depend on.
        make: gives them, uint8 [F, H, W, 3].

    Returns:
        The URI, for ``unpack_frames``, and whether they were made now.
    """
    if (uri := kept_at(root, kind, key)) is not None:
        return uri, False
    uri = root.put_bytes(pack_frames(key, make()))
    root.record(kind, key, {"uri": uri})
    return uri, True


def kept_at(root: DataRoot, kind: str, key: str) -> str | None:
    """The URI of what ``keep_once`` has kept; None where nothing is, or what was is there no more."""
    found = root.find(kind, key)
    return str(found["uri"]) if found is not None and root.exists(found["uri"]) else None
