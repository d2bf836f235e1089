"""Orbits of rendered objects to training samples: views in place of frames, and the elevation of the camera."""

from __future__ import annotations

import io
import tarfile
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from ...common.errors import BadInputError
from ...common.frames import fit_frame
from ...common.manifests import read_rows
from ...common.report import StepReport
from ...common.storage import DataRoot
from .samples import Unit, encode_units
from .settings import EncodeSettings

ORBIT_FPS = 7.0  # an orbit has no frame rate; the model is told the one it knows best (the released models' default)


def encode_orbits(orbits: Path, out: Path, root: DataRoot, settings: EncodeSettings) -> StepReport:
    """Encode the orbits of a manifest; every ``frames``-th part of the circle becomes a frame, the first view conditions.

    Args:
        orbits: orbits manifest.
        out: the samples manifest to write; ``clip_id`` is the orbit's id.
        root: where the views lie and shards go.
        settings: size and encoders; frames as well, when an orbit has a whole multiple of them, else all its views.

    Raises:
        BadInputError: the manifest cannot be read. An orbit that cannot be used is set aside and counted.
    """
    units = [
        Unit(
            unit_id=row["orbit_id"],
            key_parts={"fps": ORBIT_FPS},
            captions=[],
            row={"split": row["split"], "motion_score": None, "elevation_deg": row["elevation_deg"]},
            load=partial(load_orbit, row, root, settings),
        )
        for row in read_rows("orbits", orbits)
    ]
    return encode_units(units, out, root, settings, "Encode orbits", "encode_orbits")


def load_orbit(row: dict[str, Any], root: DataRoot, settings: EncodeSettings) -> list[tuple[np.ndarray, float]]:
    """The views of one orbit as one window.

    Raises:
        BadInputError: a view is missing or is no PNG.
    """
    from PIL import Image, UnidentifiedImageError

    stride = row["frames"] // settings.frames if row["frames"] % settings.frames == 0 else 1
    frames = []
    for view in range(0, row["frames"], stride):
        name = f"{row['orbit_id']}/{view:03d}.png"
        offset, size = _members(root, row["shard_uri"]).get(name, (0, 0))
        if not size:
            raise BadInputError(f"{row['shard_uri']}: has no view {name}")
        try:
            with Image.open(io.BytesIO(root.read_range(row["shard_uri"], offset, size)), formats=["PNG"]) as image:
                frames.append(fit_frame(np.asarray(image.convert("RGB")), settings.height, settings.width))
        except (UnidentifiedImageError, OSError) as error:
            raise BadInputError(f"{row['shard_uri']}: {name} is no readable PNG ({error})") from error
    return [(np.stack(frames), ORBIT_FPS)]


@lru_cache(maxsize=8)
def _members(root: DataRoot, uri: str) -> dict[str, tuple[int, int]]:
    with tarfile.open(root.fetch(uri), "r:") as tar:
        return {member.name: (member.offset_data, member.size) for member in tar if member.isfile()}
