"""CLIP through transformers or open_clip: pictures and texts to vectors of one space."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .batching import in_batches_of
from .errors import BadInputError, ConfigError
from .pretrained import loaded, weights, weights_file

OPEN_CLIP = "open_clip:"


class ClipEncoder(ABC):
    """A CLIP model and its preprocessing. Networks are loaded on first use: to prepare pictures they are not needed."""

    @abstractmethod
    def pixels(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Uint8 RGB pictures as the network reads them, float32 [N, 3, S, S]."""

    @abstractmethod
    def tokens(self, texts: Sequence[str]) -> np.ndarray:
        """Tokens and their mask [N, 2, L], always as long as the model reads; longer texts are cut."""

    @abstractmethod
    def image_features(self, pixels_NCHW: np.ndarray) -> Any:
        """Torch [N, D] in the space that pictures and texts share."""

    @abstractmethod
    def text_features(self, tokens_N2L: np.ndarray) -> Any:
        """Torch [N, D] in the space that pictures and texts share."""

    def images(self, pixels_NCHW: np.ndarray, batch: int) -> np.ndarray:
        """Unit vectors, float32 [N, D]."""
        return in_batches_of(batch, pixels_NCHW, lambda rows: _unit(self.image_features, rows))

    def texts(self, texts: Sequence[str], batch: int) -> np.ndarray:
        """Unit vectors, float32 [N, D]."""
        return in_batches_of(batch, self.tokens(texts), lambda rows: _unit(self.text_features, rows))


class TransformersClip(ClipEncoder):
    """By hub id or from a local directory."""

    def __init__(self, model: str, revision: str | None, device: str) -> None:
        self.model, self.revision, self.device = model, revision, device

    def pixels(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """See the base class."""
        return _image_processor(self.model, self.revision)(images=list(pictures), return_tensors="np")["pixel_values"]

    def tokens(self, texts: Sequence[str]) -> np.ndarray:
        """See the base class."""
        length = self._network.config.text_config.max_position_embeddings
        made = _tokenizer(self.model, self.revision)(
            list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="np"
        )
        return np.stack([made["input_ids"], made["attention_mask"]], 1)

    def image_features(self, pixels_NCHW: np.ndarray) -> Any:
        """See the base class."""
        states = self._network.vision_model(pixel_values=_tensor(pixels_NCHW, self.device)).pooler_output
        return self._network.visual_projection(states)

    def text_features(self, tokens_N2L: np.ndarray) -> Any:
        """See the base class."""
        ids, mask = _tensor(tokens_N2L, self.device).unbind(1)
        return self._network.text_projection(self._network.text_model(input_ids=ids, attention_mask=mask).pooler_output)

    @property
    def _network(self) -> Any:
        return _clip_network(self.model, self.revision, self.device)


class OpenClip(ClipEncoder):
    """An architecture of the package open_clip with weights from a file: ``open_clip:ViT-L-14/clip.safetensors``."""

    def __init__(self, model: str, device: str, setting: str) -> None:
        self.architecture, self.weights = open_clip_parts(model.removeprefix(OPEN_CLIP), setting)
        self.device = device

    def pixels(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """See the base class."""
        from PIL import Image

        transform = open_clip_transform(self.architecture)
        return np.stack([transform(Image.fromarray(rgb)).numpy() for rgb in pictures])

    def tokens(self, texts: Sequence[str]) -> np.ndarray:
        """See the base class."""
        ids = open_clip_module().get_tokenizer(self.architecture)(list(texts)).numpy()
        return np.stack([ids, np.ones_like(ids)], 1)

    def image_features(self, pixels_NCHW: np.ndarray) -> Any:
        """See the base class."""
        network = open_clip_model(self.architecture, self.weights, self.device)
        return network.encode_image(_tensor(pixels_NCHW, self.device))

    def text_features(self, tokens_N2L: np.ndarray) -> Any:
        """See the base class."""
        network = open_clip_model(self.architecture, self.weights, self.device)
        return network.encode_text(_tensor(tokens_N2L[:, 0], self.device))


def open_clip_module() -> Any:
    """The package, which is no dependency of this one.

    Raises:
        BadInputError: it is not there.
    """
    try:
        import open_clip
    except ImportError as error:
        raise BadInputError(
            f"this model needs the package open_clip_torch ({error}); install it, or choose another"
        ) from error
    return open_clip


def open_clip_parts(model: str, setting: str) -> tuple[str, str]:
    """Architecture and weights of ``ARCHITECTURE/FILE.safetensors``.

    open_clip's own names are not taken: behind many lie pickles, which it would fetch and read.

    Raises:
        ConfigError: the weights are no such file.
    """
    architecture, _, file = model.partition("/")
    if not architecture or ":" in architecture or Path(file).suffix != ".safetensors" or not Path(file).is_file():
        raise ConfigError(
            f"{setting}: {model!r} is not ARCHITECTURE/FILE.safetensors with a file that is there; weights "
            "published as a pickle are converted by python -m svdflow.curation.annotate.convert_weights any --sha256 …"
        )
    return architecture, file


@lru_cache(maxsize=2)
def open_clip_model(architecture: str, file: str, device: str) -> Any:
    """A network of open_clip with weights from a safetensors file, and from nowhere else."""
    try:
        network = open_clip_module().create_model(
            architecture, pretrained=file, device=device, pretrained_image=False, pretrained_text=False
        )
    except (RuntimeError, OSError, ValueError) as error:
        raise BadInputError(f"open_clip cannot load {architecture}/{file}: {error}") from error
    return network.eval().requires_grad_(False)


@lru_cache(maxsize=2)
def open_clip_transform(architecture: str) -> Any:
    """How pictures are made ready for an architecture; the network is not loaded for it."""
    package = open_clip_module()
    known = package.get_model_config(architecture)
    if known is None:
        raise BadInputError(f"open_clip knows no architecture {architecture!r}")
    return package.image_transform(known["vision_cfg"].get("image_size", 224), is_train=False)


def _tensor(rows: np.ndarray, device: str) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(rows)).to(device)


def _unit(features: Callable[[np.ndarray], Any], rows: np.ndarray) -> np.ndarray:
    import torch

    with torch.inference_mode():
        vectors = features(rows)
        return (vectors / vectors.norm(dim=-1, keepdim=True)).float().cpu().numpy()


@lru_cache(maxsize=1)
def _clip_network(model: str, revision: str | None, device: str) -> Any:
    from transformers import CLIPModel

    return loaded(CLIPModel, model, revision, use_safetensors=True).eval().requires_grad_(False).to(device)


@lru_cache(maxsize=1)
def _image_processor(model: str, revision: str | None) -> Any:
    from transformers import AutoImageProcessor

    return loaded(AutoImageProcessor, model, revision, use_fast=False)


@lru_cache(maxsize=1)
def _tokenizer(model: str, revision: str | None) -> Any:
    from transformers import AutoTokenizer

    return loaded(AutoTokenizer, model, revision)


def clip_encoder(model: str, revision: str | None, device: str, setting: str) -> ClipEncoder:
    """The CLIP of a name: hub id, directory, or ``open_clip:ARCHITECTURE/FILE.safetensors``.

    Args:
        model: its name.
        revision: of a hub id.
        device: where it computes.
        setting: names the model in messages.

    Raises:
        ConfigError: open_clip's weights are no safetensors file.
    """
    if model.startswith(OPEN_CLIP):
        return OpenClip(model, device, setting)
    return TransformersClip(model, revision, device)


def clip_identity(model: str, revision: str | None, setting: str) -> str:
    """What names the weights; a file that open_clip reads, by the architecture and its content."""
    if model.startswith(OPEN_CLIP):
        return open_clip_identity(model.removeprefix(OPEN_CLIP), setting)
    return weights(model, revision)


def open_clip_identity(model: str, setting: str) -> str:
    """What names an architecture with a file's weights.

    Raises:
        ConfigError: the weights are no safetensors file.
    """
    architecture, file = open_clip_parts(model, setting)
    return f"{OPEN_CLIP}{architecture}:{weights_file(file)}"
