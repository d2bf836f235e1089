"""Watermark and NSFW scores: the probability of one label of an image classifier that transformers loads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ...common.batching import in_batches_of
from ...common.errors import BadInputError, ConfigError
from ...common.pretrained import loaded, one_thread, weights
from .annotator import ClipView, ModelAnnotator, register
from .settings import AnnotateSettings


class _Classifier(ModelAnnotator):
    """Base: model, revision and label are the settings ``<axis>_model``, ``<axis>_revision`` and ``<axis>_label``."""

    name, version = "transformers-classifier", "1"

    def __init__(self, settings: AnnotateSettings) -> None:
        super().__init__(settings)
        self.model: str = getattr(settings, f"{self.axis}_model")
        self.revision: str | None = getattr(settings, f"{self.axis}_revision")
        self.label: str = getattr(settings, f"{self.axis}_label")
        if not self.model:
            raise ConfigError(f"annotate.{self.axis}_model: name an image classifier, by hub id or directory")

    def config(self) -> dict[str, Any]:
        """The settings its result depends on."""
        return {"weights": weights(self.model, self.revision), "label": self.label}

    def prepare(self, clip: ClipView) -> None:
        """Keep what the network reads of the three key frames."""
        self._pixels(clip)

    def measure(self, clips: Sequence[ClipView]) -> list[dict[str, Any]]:
        """The label's probability on each key frame."""
        import torch

        network = _network(self.model, self.revision, self.settings.device)
        place = _place(network.config.id2label, self.label, f"annotate.{self.axis}_label")

        def run(pixels: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                logits = network(pixel_values=torch.from_numpy(pixels).to(self.settings.device)).logits
                return (logits.softmax(-1) if logits.shape[-1] > 1 else logits.sigmoid()).float().cpu().numpy()

        pixels_NCHW = np.concatenate([self._pixels(clip) for clip in clips])
        scores = in_batches_of(3 * self.settings.unit_clips, pixels_NCHW, run)[:, place]
        return [{self.axis: row.tolist()} for row in scores.astype(np.float64).reshape(-1, 3)]

    def _pixels(self, clip: ClipView) -> np.ndarray:
        def make() -> np.ndarray:
            processor = _processor(self.model, self.revision)
            return processor(images=clip.pictures(), return_tensors="np")["pixel_values"]

        return clip.once(f"{self.axis} pixels", make)


def _place(labels: dict[int, str], label: str, setting: str) -> int:
    for place, name in labels.items():
        if name.lower() == label.lower():
            return int(place)
    raise BadInputError(f"{setting}: the model has no label {label!r}; it has {sorted(labels.values())}")


@lru_cache(maxsize=2)
def _network(model: str, revision: str | None, device: str) -> Any:
    from transformers import AutoModelForImageClassification

    one_thread(device)
    network = loaded(AutoModelForImageClassification, model, revision, use_safetensors=True)
    return network.eval().requires_grad_(False).to(device)


@lru_cache(maxsize=2)
def _processor(model: str, revision: str | None) -> Any:
    from transformers import AutoImageProcessor

    return loaded(AutoImageProcessor, model, revision, use_fast=False)


@register
class Watermark(_Classifier):
    """How likely a key frame bears a watermark."""

    axis, columns = "watermark", ("watermark",)


@register
class NSFW(_Classifier):
    """How likely a key frame is not safe for work."""

    axis, columns = "nsfw", ("nsfw",)
