"""Image embeddings of the key frames, kept as safetensors in the data root, with tiny pictures beside them."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import cv2
import numpy as np

from .annotator import Annotator, ClipView

THUMBNAIL_PX = 16


def thumbnail(rgb: np.ndarray) -> np.ndarray:
    """A 16 x 16 grey picture as a unit vector around its mean, float [256]; zeros for a flat picture.

    It survives scaling, compression and noise, where a network's embedding may not: it finds two videos of one scene.
    """
    grey = (
        cv2.resize(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), (THUMBNAIL_PX,) * 2, interpolation=cv2.INTER_AREA)
        .astype(np.float64)
        .ravel()
    )
    grey -= grey.mean()
    length = float(np.linalg.norm(grey))
    return grey / length if length > 1 else np.zeros_like(grey)


class EmbeddingAnnotator(Annotator):
    """Base of what embeds the three key frames."""

    columns = ("embedding_uri",)

    @abstractmethod
    def embed(self, clip: ClipView) -> np.ndarray:
        """Float [3, D]: first, middle and last frame."""

    def annotate(self, clip: ClipView) -> dict[str, Any]:
        """Its columns for one clip."""
        return {
            "embedding_uri": {
                "image": self.embed(clip),
                "thumbnail": np.stack([thumbnail(rgb) for rgb in clip.pictures()]),
            }
        }

    def store(self, columns: dict[str, Any], root: Any) -> dict[str, Any]:
        """Arrays go into the data root."""
        from safetensors.numpy import save

        arrays = {
            name: np.ascontiguousarray(array, dtype=np.float16) for name, array in columns["embedding_uri"].items()
        }
        about = {"model": f"{self.name}@{self.version}"}  # one entry: safetensors writes several in a random order
        return {"embedding_uri": root.put_bytes(save(arrays, metadata=about))}
