"""CLIP through transformers or open_clip: embeddings, similarity to captions, LAION's aesthetic head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ...common.errors import BadInputError, ConfigError
from ...common.identity import file_sha256
from .annotator import ClipView, ModelAnnotator, register
from .batching import in_batches_of
from .embeddings import embedding_columns, thumbnails
from .pretrained import loaded, one_thread, weights
from .settings import AnnotateSettings

SIMILARITY_COLUMNS = ("similarity_image", "similarity_video", "similarity_summary")
CAPTION_COLUMNS = ("caption_image", "caption_video", "caption_summary")
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

    def __init__(self, model: str, device: str) -> None:
        self.architecture, self.weights = open_clip_parts(model.removeprefix(OPEN_CLIP), "annotate.clip_model")
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
    one_thread(device)
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

    one_thread(device)
    return loaded(CLIPModel, model, revision, use_safetensors=True).eval().requires_grad_(False).to(device)


@lru_cache(maxsize=1)
def _image_processor(model: str, revision: str | None) -> Any:
    from transformers import AutoImageProcessor

    return loaded(AutoImageProcessor, model, revision, use_fast=False)


@lru_cache(maxsize=1)
def _tokenizer(model: str, revision: str | None) -> Any:
    from transformers import AutoTokenizer

    return loaded(AutoTokenizer, model, revision)


def encoder_of(settings: AnnotateSettings) -> ClipEncoder:
    """The CLIP that the settings name."""
    if settings.clip_model.startswith(OPEN_CLIP):
        return OpenClip(settings.clip_model, settings.device)
    return TransformersClip(settings.clip_model, settings.clip_revision, settings.device)


def clip_identity(model: str, revision: str | None) -> str:
    """What names the weights; a file that open_clip reads, by the architecture and its content."""
    if model.startswith(OPEN_CLIP):
        return open_clip_identity(model.removeprefix(OPEN_CLIP), "annotate.clip_model")
    return weights(model, revision)


def open_clip_identity(model: str, setting: str) -> str:
    """What names an architecture with a file's weights.

    Raises:
        ConfigError: the weights are no safetensors file.
    """
    architecture, file = open_clip_parts(model, setting)
    return f"{OPEN_CLIP}{architecture}:{_file(file)}"


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
        return {"weights": clip_identity(self.settings.clip_model, self.settings.clip_revision)}

    def prepare(self, clip: ClipView) -> None:
        """Keep the key frames as CLIP reads them."""
        self._pixels(clip)

    def embeddings(self, clips: Sequence[ClipView]) -> list[np.ndarray]:
        """Unit vectors of each clip's key frames, [3, D]."""
        todo = [clip for clip in clips if _EMBEDDINGS not in clip.taken]
        if todo:
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
        return {**super().config(), "head": _file(self.settings.aesthetic_head)}

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


@lru_cache(maxsize=4)
def _file(path: str) -> str:
    return file_sha256(Path(path))


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
