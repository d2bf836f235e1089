"""Measured figures of a picture, where no learned model is to be had; named for what they measure."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from ...common.features import FRAME_FEATURES, image_features
from ...common.picture import colourfulness, contrast, sharpness, shrink
from .annotator import Annotator, ClipView, register
from .embeddings import embedding_columns


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
        """Its columns for one clip."""
        return {"aesthetic": [picture_quality(rgb) for rgb in clip.pictures()]}


@register
class ClassifierEmbedding(Annotator):
    """Pooled features of an ImageNet classifier."""

    name, version, axis = FRAME_FEATURES, "3", "embedding"
    columns = ("embedding_uri",)
    stand_in_for = "CLIP ViT-L/14 image embeddings"

    def annotate(self, clip: ClipView) -> dict[str, Any]:
        """Its columns for one clip."""
        import torch

        torch.set_num_threads(1)
        squares = [cv2.resize(rgb, (224, 224), interpolation=cv2.INTER_AREA) for rgb in clip.pictures()]
        return embedding_columns(image_features(np.stack(squares))[0], clip)
