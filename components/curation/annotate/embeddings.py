"""Image embeddings of the key frames, kept as safetensors in the data root."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np

from .annotator import Annotator, ClipView


class EmbeddingAnnotator(Annotator):
    """Base of what embeds the three key frames."""

    columns = ("embedding_uri",)

    @abstractmethod
    def embed(self, clip: ClipView) -> np.ndarray:
        """Float [3, D]: first, middle and last frame."""

    def annotate(self, clip: ClipView) -> dict[str, Any]:
        return {"embedding_uri": self.embed(clip)}

    def store(self, columns: dict[str, Any], root: Any) -> dict[str, Any]:
        from safetensors.numpy import save

        array = np.ascontiguousarray(columns["embedding_uri"], dtype=np.float16)
        return {"embedding_uri": root.put_bytes(save({"image": array}, metadata={"model": self.name, "version": self.version}))}
