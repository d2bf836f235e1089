"""CLIP of the key frames: embeddings, similarity to captions, LAION's aesthetic head."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ...common.clip_encoder import ClipEncoder, clip_encoder, clip_identity
from ...common.errors import BadInputError, ConfigError
from ...common.pretrained import one_thread, weights_file
from .annotator import ClipView, ModelAnnotator, register
from .embeddings import embedding_columns, thumbnails
from .settings import AnnotateSettings

SIMILARITY_COLUMNS = ("similarity_image", "similarity_video", "similarity_summary")
CAPTION_COLUMNS = ("caption_image", "caption_video", "caption_summary")
_SETTING = "annotate.clip_model"


def encoder_of(settings: AnnotateSettings) -> ClipEncoder:
    """The CLIP that the settings name."""
    return clip_encoder(settings.clip_model, settings.clip_revision, settings.device, _SETTING)


def cosine_columns(images_ND: np.ndarray, captions: Sequence[str | None], texts_ND: np.ndarray) -> dict[str, Any]:
    """Cosines of every caption to every key frame; None for a caption that is not there.

    Args:
        images_ND: unit vectors of the frames.
        captions: image, video and summary caption.
        texts_ND: unit vectors of those that are there.
    """
    rows = iter(np.clip(texts_ND @ images_ND.T, -1, 1).tolist() if len(texts_ND) else [])
    return {column: next(rows) if text else None for column, text in zip(SIMILARITY_COLUMNS, captions, strict=True)}


class _Clip(ModelAnnotator):
    """Base of what sees the key frames through CLIP; their embeddings are computed once for all of them."""

    def config(self) -> dict[str, Any]:
        """The settings its result depends on."""
        return {"weights": clip_identity(self.settings.clip_model, self.settings.clip_revision, _SETTING)}

    def prepare(self, clip: ClipView) -> None:
        """Keep the key frames as CLIP reads them."""
        self._pixels(clip)

    def embeddings(self, clips: Sequence[ClipView]) -> list[np.ndarray]:
        """Unit vectors of each clip's key frames, [3, D]."""
        todo = [clip for clip in clips if _EMBEDDINGS not in clip.taken]
        if todo:
            one_thread(self.settings.device)
            pixels_NCHW = np.concatenate([self._pixels(clip) for clip in todo])
            rows_ND = encoder_of(self.settings).images(pixels_NCHW, 3 * self.settings.unit_clips)
            for clip, of_clip in zip(todo, rows_ND.reshape(len(todo), 3, -1), strict=True):
                clip.taken[_EMBEDDINGS] = of_clip
        return [clip.taken[_EMBEDDINGS] for clip in clips]

    def _pixels(self, clip: ClipView) -> np.ndarray:
        return clip.once("CLIP pixels", lambda: encoder_of(self.settings).pixels(clip.pictures()))


_EMBEDDINGS = "CLIP image embeddings"


@register
class ClipEmbedding(_Clip):
    """CLIP embeddings of the key frames."""

    name, version, axis = "clip", "2", "embedding"
    columns = ("embedding_uri",)

    def prepare(self, clip: ClipView) -> None:
        """Keep the key frames as CLIP reads them, and as thumbnails."""
        super().prepare(clip)
        thumbnails(clip)

    def measure(self, clips: Sequence[ClipView]) -> list[dict[str, Any]]:
        """Their columns."""
        return [embedding_columns(rows, clip) for rows, clip in zip(self.embeddings(clips), clips, strict=True)]


@register
class ClipSimilarity(_Clip):
    """Cosine of CLIP's embeddings of every caption and every key frame (paper, App. C)."""

    name, version, axis = "clip", "2", "similarity"
    columns, needs = SIMILARITY_COLUMNS, CAPTION_COLUMNS

    def measure(self, clips: Sequence[ClipView]) -> list[dict[str, Any]]:
        """Their columns."""
        captions = [[clip.columns.get(name) for name in CAPTION_COLUMNS] for clip in clips]
        texts = [text for of_clip in captions for text in of_clip if text]
        if not texts:
            return [dict.fromkeys(SIMILARITY_COLUMNS) for _ in clips]
        one_thread(self.settings.device)
        rows_ND = encoder_of(self.settings).texts(texts, 3 * self.settings.unit_clips)
        found = []
        for images_ND, of_clip in zip(self.embeddings(clips), captions, strict=True):
            count = sum(1 for text in of_clip if text)
            found.append(cosine_columns(images_ND, of_clip, rows_ND[:count]))
            rows_ND = rows_ND[count:]
        return found


@register
class ClipAestheticHead(_Clip):
    """LAION's predictor: linear layers on the unit CLIP embedding, read from a safetensors file."""

    name, version, axis = "clip-aesthetic-head", "2", "aesthetic"
    columns = ("aesthetic",)

    def __init__(self, settings: AnnotateSettings) -> None:
        super().__init__(settings)
        if not Path(settings.aesthetic_head).is_file():
            raise ConfigError(
                f"annotate.aesthetic_head: {settings.aesthetic_head!r} is no file; make it of LAION's release with "
                "python -m svdflow.curation.annotate.convert_weights laion-aesthetic, or choose "
                "annotate.aesthetic=colourfulness-contrast-sharpness"
            )

    def config(self) -> dict[str, Any]:
        """The settings its result depends on."""
        return {**super().config(), "head": weights_file(self.settings.aesthetic_head)}

    def measure(self, clips: Sequence[ClipView]) -> list[dict[str, Any]]:
        """Their columns."""
        return [{"aesthetic": self._score(rows.astype(np.float64))} for rows in self.embeddings(clips)]

    def _score(self, x_ND: np.ndarray) -> list[float]:
        for weight, bias in _layers(self.settings.aesthetic_head):
            if weight.shape[1] != x_ND.shape[1]:
                raise BadInputError(
                    f"{self.settings.aesthetic_head}: a layer takes {weight.shape[1]} values, not {x_ND.shape[1]}; "
                    "the head was trained on another CLIP model"
                )
            x_ND = np.einsum("nd,od->no", x_ND, weight) + bias
        return x_ND[:, 0].tolist()


@lru_cache(maxsize=1)
def _layers(path: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weight and bias of each linear layer in order: ``weight``, or ``<anything>.<number>.weight``."""
    from safetensors.numpy import load_file

    tensors = load_file(path)
    names = sorted(
        (n for n in tensors if n.endswith("weight")), key=lambda n: [int(p) for p in n.split(".") if p.isdigit()]
    )
    if not names:
        raise BadInputError(f"{path}: holds no linear layer")
    return [(tensors[n].astype(np.float64), tensors[n[: -len("weight")] + "bias"].astype(np.float64)) for n in names]
