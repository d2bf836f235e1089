"""Image embeddings of the key frames, kept as safetensors in the data root, with tiny pictures beside them."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from .annotator import ClipView

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


def thumbnails(clip: ClipView) -> np.ndarray:
    """Of the key frames, float [3, 256]."""
    return clip.once("thumbnails", lambda: np.stack([thumbnail(rgb) for rgb in clip.pictures()]))


def embedding_columns(embeddings_3D: np.ndarray, clip: ClipView) -> dict[str, Any]:
    """Columns of what embeds the three key frames: its vectors and the thumbnails, in half precision."""
    return {"embedding_uri": {"image": embeddings_3D.astype(np.float16), "thumbnail": np.float16(thumbnails(clip))}}
