"""CLIP through transformers, by hub id or from a local directory: embeddings, similarity, LAION's aesthetic head."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ...common.errors import BadInputError, ConfigError
from ...common.identity import file_sha256
from .annotator import Annotator, ClipView, register, weights_identity
from .embeddings import EmbeddingAnnotator
from .settings import AnnotateSettings

SIMILARITY_COLUMNS = ("similarity_image", "similarity_video", "similarity_summary")
CAPTION_COLUMNS = ("caption_image", "caption_video", "caption_summary")


class ClipEncoder:
    """A CLIP model and its preprocessing; embeddings are of unit length."""

    def __init__(self, model: str, revision: str | None, device: str) -> None:
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

        where: dict[str, Any] = {"revision": revision} if revision else {}
        try:
            self.network = (
                CLIPModel.from_pretrained(model, use_safetensors=True, **where).eval().requires_grad_(False).to(device)
            )
            self.processor = AutoImageProcessor.from_pretrained(model, use_fast=False, **where)
            self.tokenizer = AutoTokenizer.from_pretrained(model, **where)
        except (OSError, ValueError) as error:
            raise BadInputError(
                f"CLIP {model!r} cannot be loaded: {str(error).splitlines()[0]}; annotate.clip_model takes a hub id "
                "or a directory"
            ) from error
        self.device = device

    def images(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Float32 [N, D] of uint8 RGB pictures."""
        import torch

        pixels = self.processor(images=list(pictures), return_tensors="pt")["pixel_values"].to(self.device)
        with torch.inference_mode():
            states = self.network.vision_model(pixel_values=pixels).pooler_output
            return self._unit(self.network.visual_projection(states))

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Float32 [N, D]; texts longer than the model reads are cut."""
        import torch

        length = self.network.config.text_config.max_position_embeddings
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt").to(
            self.device
        )
        with torch.inference_mode():
            states = self.network.text_model(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            ).pooler_output
            return self._unit(self.network.text_projection(states))

    def _unit(self, vectors: Any) -> np.ndarray:
        return (vectors / vectors.norm(dim=-1, keepdim=True)).float().cpu().numpy()


@lru_cache(maxsize=1)
def _encoder(model: str, revision: str | None, device: str) -> ClipEncoder:
    import torch

    if device == "cpu":
        torch.set_num_threads(1)
    return ClipEncoder(model, revision, device)


@lru_cache(maxsize=4)
def _weights(model: str, revision: str | None) -> str:
    return weights_identity(model, revision)


@lru_cache(maxsize=4)
def _file(path: str) -> str:
    return file_sha256(Path(path))


def _of(settings: AnnotateSettings) -> ClipEncoder:
    return _encoder(settings.clip_model, settings.clip_revision, settings.device)


def _image_embeddings(clip: ClipView, settings: AnnotateSettings) -> np.ndarray:
    return clip.once("clip image embeddings", lambda: _of(settings).images(clip.pictures()))


def cosine_columns(images_ND: np.ndarray, captions: Sequence[str | None], embed: Any) -> dict[str, Any]:
    """Cosines of every caption to every key frame; None for a caption that is not there.

    Args:
        images_ND: unit vectors of the frames.
        captions: image, video and summary caption.
        embed: texts to unit vectors [N, D].
    """
    there = [text for text in captions if text]
    rows = iter(np.clip(embed(there) @ images_ND.T, -1, 1).tolist() if there else [])
    return {column: next(rows) if text else None for column, text in zip(SIMILARITY_COLUMNS, captions, strict=True)}


@register
class ClipEmbedding(EmbeddingAnnotator):
    """CLIP embeddings of the key frames."""

    name, version, axis = "clip", "1", "embedding"

    def config(self) -> dict[str, Any]:
        """The settings its result depends on."""
        return {"weights": _weights(self.settings.clip_model, self.settings.clip_revision)}

    def embed(self, clip: ClipView) -> np.ndarray:
        """Unit vectors of the key frames."""
        return _image_embeddings(clip, self.settings)


@register
class ClipSimilarity(Annotator):
    """Cosine of CLIP's embeddings of every caption and every key frame (paper, App. C)."""

    name, version, axis = "clip", "1", "similarity"
    columns, needs = SIMILARITY_COLUMNS, CAPTION_COLUMNS

    def config(self) -> dict[str, Any]:
        """The settings its result depends on."""
        return {"weights": _weights(self.settings.clip_model, self.settings.clip_revision)}

    def annotate(self, clip: ClipView) -> dict[str, Any]:
        """Its columns for one clip."""
        captions = [clip.columns.get(name) for name in CAPTION_COLUMNS]
        return cosine_columns(_image_embeddings(clip, self.settings), captions, _of(self.settings).texts)


@register
class ClipAestheticHead(Annotator):
    """LAION's predictor: linear layers on the unit CLIP embedding, read from a safetensors file."""

    name, version, axis = "clip-aesthetic-head", "1", "aesthetic"
    columns = ("aesthetic",)

    def __init__(self, settings: AnnotateSettings) -> None:
        super().__init__(settings)
        if not Path(settings.aesthetic_head).is_file():
            raise ConfigError(
                f"annotate.aesthetic_head: {settings.aesthetic_head!r} is no file; name the safetensors file with "
                "LAION's head, or choose annotate.aesthetic=colourfulness-contrast-sharpness"
            )

    def config(self) -> dict[str, Any]:
        """The settings its result depends on."""
        return {
            "weights": _weights(self.settings.clip_model, self.settings.clip_revision),
            "head": _file(self.settings.aesthetic_head),
        }

    def annotate(self, clip: ClipView) -> dict[str, Any]:
        """Its columns for one clip."""
        x_ND = _image_embeddings(clip, self.settings).astype(np.float64)
        for weight, bias in _layers(self.settings.aesthetic_head):
            if weight.shape[1] != x_ND.shape[1]:
                raise BadInputError(
                    f"{self.settings.aesthetic_head}: a layer takes {weight.shape[1]} values, not {x_ND.shape[1]}; "
                    "the head was trained on another CLIP model"
                )
            x_ND = x_ND @ weight.T + bias
        return {"aesthetic": x_ND[:, 0].tolist()}


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
