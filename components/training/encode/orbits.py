"""Orbits of rendered objects to training samples: views in place of frames, and the elevation of the camera."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...common.manifests import read_rows
from ...common.report import StepReport
from ...common.storage import DataRoot
from .samples import encode_units
from .settings import EncodeSettings
from .sources import OrbitSource, Sequence
from .units import Unit
from .variants import PLAIN, nearest_size

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
    units = [_unit(row, settings) for row in read_rows("orbits", orbits)]
    return encode_units(units, out, root, settings, "Encode orbits", "encode_orbits")


def _unit(row: dict[str, Any], settings: EncodeSettings) -> Unit:
    stride = row["frames"] // settings.frames if row["frames"] % settings.frames == 0 else 1
    views = row["frames"] // stride
    return Unit(
        unit_id=row["orbit_id"],
        sequence=Sequence(views, ORBIT_FPS, 0.0, views),
        size=nearest_size(row["height"], row["width"], settings.targets),
        variants=[PLAIN],  # a flipped orbit would turn the other way
        key_parts={"stride": stride},
        starts=1,
        window=(views, 1),  # an orbit is one window: all the way around
        captions=[],
        row={"split": row["split"], "source_id": row["object_id"], "elevation_deg": row["elevation_deg"]},
        source=OrbitSource(row["shard_uri"], row["orbit_id"], row["frames"], stride),
    )
