"""A model on disk: diffusers' directory format with ``svdflow.json`` beside ``model_index.json``. Safetensors only.

``StableVideoDiffusionPipeline.from_pretrained`` loads an ``image_to_video`` directory as it is. diffusers has no
pipeline for the other kinds: their ``model_index.json`` names our own format, and ``load_model`` reads every kind.
Reading a card alone loads neither torch nor diffusers: steps that find their work done start quickly.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..common.errors import BadInputError
from .settings import KINDS, Kind, SamplingSettings

CARD = "svdflow.json"
FORMAT = 1
_WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "image_encoder": "model"}
_PIPELINES = {
    "image": "svdflow.ImageDiffusion",
    "text_to_video": "svdflow.TextToVideoDiffusion",
    "image_to_video": "StableVideoDiffusionPipeline",
    "multi_view": "svdflow.MultiViewDiffusion",
}


@dataclass
class VideoModel:
    """A model in memory.

    Attributes:
        kind: image, text_to_video, image_to_video or multi_view.
        unet: a diffusers UNet.
        vae: an AutoencoderKLTemporalDecoder.
        image_encoder: a CLIPVisionModelWithProjection; None for kinds that take text.
        feature_extractor: a CLIPImageProcessor; None likewise.
        text_encoder: what ``conditioning.TextEncoder`` loads; None for kinds that take an image.
        card: what svdflow.json tells beside kind and text encoder: stage, parents, dataset, configuration, metrics, …
    """

    kind: Kind
    unet: Any
    vae: Any
    image_encoder: Any = None
    feature_extractor: Any = None
    text_encoder: str | None = None
    card: dict[str, Any] = field(default_factory=dict)


def save_model(model: VideoModel, directory: Path) -> None:
    """Write a model directory; byte-identical for equal models.

    Raises:
        BadInputError: the parts do not make a model of the kind.
    """
    from diffusers import EulerDiscreteScheduler

    from .unet import unet_kind

    if (found := unet_kind(model.unet)) != model.kind:
        raise BadInputError(f"a model of kind {model.kind} cannot hold a UNet of kind {found}")
    _check_parts(model, directory)
    directory.mkdir(parents=True, exist_ok=True)
    index: dict[str, Any] = {"_class_name": _PIPELINES[model.kind], "_diffusers_version": _diffusers_version()}
    for name, part in {"unet": model.unet, "vae": model.vae, "image_encoder": model.image_encoder}.items():
        if part is None:
            continue
        part.save_pretrained(directory / name, safe_serialization=True)
        _scrub(directory / name / "config.json")
        for path in (directory / name).iterdir():
            path.chmod(0o644)  # safetensors writes files that only their owner may read
        index[name] = ["transformers" if name == "image_encoder" else "diffusers", type(part).__name__]
    if model.feature_extractor is not None:
        model.feature_extractor.save_pretrained(directory / "feature_extractor")
        index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    EulerDiscreteScheduler(**scheduler_config()).save_pretrained(directory / "scheduler")
    index["scheduler"] = ["diffusers", "EulerDiscreteScheduler"]
    _write_json(directory / "model_index.json", index)
    card = {**model.card, "format": FORMAT, "kind": model.kind, "text_encoder": model.text_encoder}
    _write_json(directory / CARD, card)


def load_model(directory: Path) -> VideoModel:
    """Read a model directory, for inference (float32, no gradients).

    Raises:
        BadInputError: something is missing or damaged; the message names the file.
    """
    from diffusers import AutoencoderKLTemporalDecoder, UNet2DConditionModel, UNetSpatioTemporalConditionModel

    from .unet import unet_kind

    directory = Path(directory)
    card = read_card(directory)
    kind: Kind = card.pop("kind")
    index = _read_json(directory / "model_index.json")
    unet_class = UNet2DConditionModel if kind == "image" else UNetSpatioTemporalConditionModel
    unet = _load(directory, "unet", unet_class)
    vae = _load(directory, "vae", AutoencoderKLTemporalDecoder)
    image_encoder = feature_extractor = None
    if "image_encoder" in index:
        from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

        image_encoder = _load(directory, "image_encoder", CLIPVisionModelWithProjection)
        _read_json(directory / "feature_extractor" / "preprocessor_config.json")
        feature_extractor = CLIPImageProcessor.from_pretrained(directory / "feature_extractor", local_files_only=True)
    card.pop("format", None)
    model = VideoModel(kind, unet, vae, image_encoder, feature_extractor, card.pop("text_encoder", None), card)
    if (found := unet_kind(unet)) != kind:
        raise BadInputError(f"{directory}: {CARD} says {kind}, but the UNet is of kind {found}")
    _check_parts(model, directory)
    return model


def read_card(directory: Path) -> dict[str, Any]:
    """``svdflow.json`` alone, without loading any weights.

    Raises:
        BadInputError: it is missing, no JSON, or of a format or kind this version does not know.
    """
    card = _read_json(Path(directory) / CARD)
    if card.get("kind") not in KINDS:
        raise BadInputError(f"{directory}/{CARD}: kind {card.get('kind')!r} is none of {', '.join(KINDS)}")
    if card.get("format") != FORMAT:
        raise BadInputError(
            f"{directory}/{CARD}: format {card.get('format')!r}, this version of svdflow reads {FORMAT}"
        )
    return card


def scheduler_config() -> dict[str, Any]:
    """EulerDiscreteScheduler as the released models configure it."""
    sampling = SamplingSettings()
    return {
        "prediction_type": "v_prediction",
        "timestep_type": "continuous",
        "use_karras_sigmas": True,
        "sigma_min": sampling.sigma_min,
        "sigma_max": sampling.sigma_max,
        "timestep_spacing": "leading",
        "steps_offset": 1,
        "interpolation_type": "linear",
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "num_train_timesteps": 1000,
    }


def _load(directory: Path, part: str, model_class: Any) -> Any:
    import torch

    config, weights = directory / part / "config.json", directory / part / f"{_WEIGHTS[part]}.safetensors"
    _read_json(config)
    if not weights.is_file() and not weights.with_suffix(".safetensors.index.json").is_file():
        raise BadInputError(f"{weights}: missing; only safetensors weights are read")
    dtype = {"dtype" if part == "image_encoder" else "torch_dtype": torch.float32}
    try:
        loaded = model_class.from_pretrained(directory / part, local_files_only=True, use_safetensors=True, **dtype)
    except Exception as error:  # the libraries raise whatever their readers raise
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise BadInputError(f"{directory / part}: damaged or of another architecture ({reason})") from error
    with torch.no_grad():
        for tensor in (*loaded.parameters(), *loaded.buffers()):
            tensor.data = tensor.data.clone()  # mapped files are not aligned as memory is, and round differently
    return loaded.eval().requires_grad_(False)


def _check_parts(model: VideoModel, directory: Path) -> None:
    if model.unet.config.out_channels != model.vae.config.latent_channels:
        raise BadInputError(
            f"{directory}: the UNet makes {model.unet.config.out_channels} latent channels, "
            f"the autoencoder has {model.vae.config.latent_channels}"
        )
    if model.kind in ("image_to_video", "multi_view"):
        if model.image_encoder is None or model.feature_extractor is None:
            raise BadInputError(f"{directory}: a {model.kind} model needs image_encoder and feature_extractor")
        if model.image_encoder.config.projection_dim != model.unet.config.cross_attention_dim:
            raise BadInputError(
                f"{directory}: image embeddings are {model.image_encoder.config.projection_dim} wide, "
                f"the UNet's context {model.unet.config.cross_attention_dim}"
            )


def _scrub(config: Path) -> None:
    """Take out what names the machine a part came from."""
    values = json.loads(config.read_text())
    for key in ("_name_or_path", "transformers_version"):
        values.pop(key, None)
    _write_json(config, values)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise BadInputError(f"{path}: missing; this is no complete model directory") from None
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path}: unreadable ({str(error).splitlines()[0]})") from error
    if not isinstance(values, dict):
        raise BadInputError(f"{path}: holds no JSON object")
    return values


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def _diffusers_version() -> str:
    from importlib.metadata import version

    return version("diffusers")
