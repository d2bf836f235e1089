"""Orbits whose pictures others made, brought into the data root as plain pixels by whoever may decode them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..common.fanout import in_pods
from ..common.lossless_frames import unpack_frames
from ..common.pixels import keep_frames
from ..common.storage import DataRoot


@dataclass(frozen=True)
class OrbitPlace:
    """Where an orbit's views lie: the data root's location, and the shard's URI."""

    root: str
    uri: str

    def read(self) -> np.ndarray:
        """The views, uint8 [V, H, W, 3], in order around the object, the input view first.

        Raises:
            BadInputError, StorageError: as ``unpack_frames``.
        """
        return unpack_frames(DataRoot.open(self.root), self.uri)


@in_pods
def keep_views(orbit: OrbitPlace) -> str:
    """Put an orbit's views into the data root as plain frames; returns the URI.

    Raises:
        BadInputError: see ``OrbitPlace.read``.
    """
    return keep_frames(orbit.read(), DataRoot.open(orbit.root))
