"""Orbits of rendered objects to training samples: views in place of frames, and the elevation of the camera."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...common.errors import BadInputError
from ...common.frames import fit_frame
from ...common.manifests import read_rows
from ...common.orbit_views import read_views
from ...common.report import StepReport
from ...common.storage import DataRoot
from .samples import Unit, encode_units
from .settings import EncodeSettings

ORBIT_FPS = 7.0  # an orbit has no frame rate; the model is told the one it knows best (the released models' default)


def encode_orbits(orbits: Path, out: Path, root: DataRoot, settings: EncodeSettings) -> StepReport:
    """Encode the orbits of a manifest: views in place of frames, the first one conditions.

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
        BadInputError: a view is missing, or the shard is none.
    """
    views = read_views(root, row["shard_uri"])
    if len(views) != row["frames"]:
        raise BadInputError(f"{row['shard_uri']}: orbit {row['orbit_id']} has {len(views)} views, not {row['frames']}")
    stride = len(views) // settings.frames if len(views) % settings.frames == 0 else 1
    return [(np.stack([fit_frame(view, settings.height, settings.width) for view in views[::stride]]), ORBIT_FPS)]
