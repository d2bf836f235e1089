"""Measured figures of a picture, where no learned model is to be had; named for what they measure."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from ...common.features import FRAME_FEATURES, image_features
from .annotator import Annotator, ClipView, register
from .embeddings import EmbeddingAnnotator

_SHORT_SIDE_PX = 224


def shrink(rgb: np.ndarray, short_side_px: int = _SHORT_SIDE_PX) -> np.ndarray:
    """Scale a picture down so that its short side is at most ``short_side_px``."""
    scale = short_side_px / min(rgb.shape[:2])
    if scale >= 1:
        return rgb
    return cv2.resize(rgb, (round(rgb.shape[1] * scale), round(rgb.shape[0] * scale)), interpolation=cv2.INTER_AREA)


def colourfulness(rgb: np.ndarray) -> float:
    """Hasler and Süsstrunk's measure (2003): 0 for grey pictures, above 100 for very colourful ones."""
    red, green, blue = (rgb[..., i].astype(np.float64) for i in range(3))
    rg, yb = red - green, (red + green) / 2 - blue
    return float(np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean()))


def contrast(rgb: np.ndarray) -> float:
    """Standard deviation of luma, 0 to 127.5."""
    return float(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float64).std())


def sharpness(rgb: np.ndarray) -> float:
    """Logarithm of one plus the variance of the Laplacian of luma; 0 for a flat picture."""
    return float(np.log1p(cv2.Laplacian(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var()))


def picture_quality(rgb: np.ndarray) -> float:
    """Colourfulness, contrast and sharpness, each saturating at 1, weighted equally on a scale of 0 to 10."""
    small = shrink(rgb)
    parts = (colourfulness(small) / 80, contrast(small) / 70, sharpness(small) / 8)
    return 10 / 3 * sum(min(part, 1.0) for part in parts)


@register
class ColourContrastSharpness(Annotator):
    """A formula of three figures; it knows nothing of beauty."""

    name, version, axis = "colourfulness-contrast-sharpness", "1", "aesthetic"
    columns = ("aesthetic",)
    stand_in_for = "LAION's aesthetic predictor on CLIP ViT-L/14"

    def annotate(self, clip: ClipView) -> dict[str, Any]:
        return {"aesthetic": [picture_quality(rgb) for rgb in clip.pictures()]}


@register
class ClassifierEmbedding(EmbeddingAnnotator):
    """Pooled features of an ImageNet classifier."""

    name, version, axis = FRAME_FEATURES, "1", "embedding"
    stand_in_for = "CLIP ViT-L/14 image embeddings"

    def embed(self, clip: ClipView) -> np.ndarray:
        import torch

        torch.set_num_threads(1)
        return image_features(np.stack([cv2.resize(rgb, (224, 224), interpolation=cv2.INTER_AREA) for rgb in clip.pictures()]))[0]
