"""Features of many videos, each computed once and kept, and summed up without holding them."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, TypeVar

import numpy as np

from ...common.errors import BadInputError
from ...common.identity import identity
from ...common.progress import track
from ...common.storage import DataRoot
from ..gaussians import Moments
from ..video_network import NetworkFile, VideoNetwork

T = TypeVar("T")
KIND = "video_features"


class VideoFeatures:
    """The features of a network, kept in the data root. The network is loaded when the first ones are missing.

    Attributes:
        computed: of how many videos this instance computed them.
    """

    def __init__(self, file: NetworkFile, root: DataRoot, batch: int) -> None:
        self.file, self.root, self.batch = file, root, batch
        self.computed = 0
        self._loaded: VideoNetwork | None = None

    def moments(
        self,
        items: Sequence[T],
        depends_on: Callable[[T], dict[str, Any]],
        frames: Callable[[T], np.ndarray],
        what: str,
    ) -> tuple[Moments | None, dict[int, str]]:
        """Mean and covariance of the features of videos; None where there is no video.

        Args:
            items: one a video.
            depends_on: what a video's frames depend on.
            frames: a video's frames, uint8 [F, H, W, 3], all of one size; read only where features are missing.
            what: as the progress calls it.

        Returns:
            The moments, and by its place the reason why a video could not be used.
        """
        total: Moments | None = None
        refused: dict[int, str] = {}
        places = range(0, len(items), self.batch)
        for start in track(places, f"{what}, batches of {self.batch}"):
            rows, missing = [], []
            for place, item in enumerate(items[start : start + self.batch], start):
                key = identity(network=self.file.sha256, torch=version("torch"), **depends_on(item))
                if (found := self.root.find(KIND, key)) is not None:
                    rows.append((place, _unpacked(found)))
                    continue
                try:
                    missing.append((place, key, frames(item)))
                except BadInputError as error:
                    refused[place] = str(error)
            rows += self._computed(missing)
            if rows:
                # in the order of the videos: the sum is the same, to the bit, however often the work was broken off
                here = Moments.of(np.stack([row for _, row in sorted(rows, key=lambda pair: pair[0])]))
                total = here if total is None else total + here
        return total, refused

    def _computed(self, missing: list[tuple[int, str, np.ndarray]]) -> list[tuple[int, np.ndarray]]:
        if not missing:
            return []
        if self._loaded is None:
            from ...diffusion.device import default_device

            self._loaded = self.file.load(default_device())
        # always of one size, the last video repeated: with another, torch may take kernels that round otherwise
        videos = [frames for _, _, frames in missing]
        videos += [videos[-1]] * (self.batch - len(videos))
        rows_ND = self._loaded.features(np.stack(videos))
        for (_, key, _), row in zip(missing, rows_ND, strict=False):
            self.root.record(KIND, key, _packed(row))
        self.computed += len(missing)
        return [(place, row) for (place, _, _), row in zip(missing, rows_ND, strict=False)]


def _packed(row_D: np.ndarray) -> dict[str, str]:
    return {"float64_le_base64": base64.b64encode(row_D.astype("<f8").tobytes()).decode()}


def _unpacked(kept: dict[str, str]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(kept["float64_le_base64"]), "<f8")
