"""Image-text similarity without an image-text model: words measured in the frame, compared with the captions."""

from __future__ import annotations

from typing import Any

from ...common.features import SENTENCE_FEATURES, sentence_embeddings
from ...common.visual_words import sentence
from .annotator import Annotator, ClipView, register
from .clip import CAPTION_COLUMNS, SIMILARITY_COLUMNS, cosine_columns


@register
class WordSimilarity(Annotator):
    """Cosine of sentence embeddings: the frame's colour, light and texture words against each caption."""

    name, version, axis = f"visual-words+{SENTENCE_FEATURES}", "1", "similarity"
    columns, needs = SIMILARITY_COLUMNS, CAPTION_COLUMNS
    stand_in_for = "CLIP ViT-L/14"

    def annotate(self, clip: ClipView) -> dict[str, Any]:
        """Its columns for one clip."""
        import torch

        torch.set_num_threads(1)
        frames_ND = sentence_embeddings([sentence(rgb) for rgb in clip.pictures()])
        return cosine_columns(frames_ND, [clip.columns.get(name) for name in CAPTION_COLUMNS], sentence_embeddings)
