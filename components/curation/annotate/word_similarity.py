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

    def prepare(self, clip: ClipView) -> None:
        """Keep the words of the key frames."""
        self._words(clip)

    def annotate(self, clip: ClipView) -> dict[str, Any]:
        """Its columns for one clip."""
        import torch

        torch.set_num_threads(1)
        captions = [clip.columns.get(name) for name in CAPTION_COLUMNS]
        texts_ND = sentence_embeddings([text for text in captions if text])
        return cosine_columns(sentence_embeddings(self._words(clip)), captions, texts_ND)

    def _words(self, clip: ClipView) -> list[str]:
        return clip.once("words of the key frames", lambda: [sentence(rgb) for rgb in clip.pictures()])
