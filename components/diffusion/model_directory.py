"""A model on disk: diffusers' directory format with ``svdflow.json`` beside ``model_index.json``. Safetensors only.

``StableVideoDiffusionPipeline.from_pretrained`` loads an ``image_to_video`` directory as it is. diffusers has no
pipeline for the other kinds: their ``model_index.json`` names our own format, and ``load_model`` reads every kind.
Reading a card alone loads neither torch nor diffusers: steps that find their work done start quickly.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.errors import BadInputError
from .json_files import read_json
from .settings import KINDS, Kind, SamplingSettings

if TYPE_CHECKING:
    from .edm import Parameterisation

CARD = "svdflow.json"
FORMAT = 1
_WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "image_encoder": "model"}
_TEXT_PARTS = ("tokenizer", "text_encoder")
_WITHIN = "."  # as the text encoder's name on a card: in the model's own directory
_PIPELINES = {
    "image": "svdflow.ImageDiffusion",
    "text_to_video": "svdflow.TextToVideoDiffusion",
    "image_to_video": "StableVideoDiffusionPipeline",
    "multi_view": "svdflow.MultiViewDiffusion",
    "interpolation": "svdflow.InterpolationDiffusion",
}


def _edm() -> Parameterisation:
    from .edm import EDM

    return EDM


@dataclass
class VideoModel:
    """A model in memory.

    Attributes:
        kind: image, text_to_video, image_to_video, multi_view or interpolation.
        unet: a diffusers UNet.
        vae: an AutoencoderKLTemporalDecoder, or the AutoencoderKL of an image model.
        image_encoder: a CLIPVisionModelWithProjection; None for kinds that take text.
        feature_extractor: a CLIPImageProcessor; None likewise.
        text_encoder: what ``conditioning.TextEncoder`` loads; None for kinds that take an image.
        card: what svdflow.json tells beside kind and text encoder: stage, parents, dataset, configuration, metrics, …
        parameterisation: what the UNet predicts and how it is told the noise level; Stable Video Diffusion's, or that
            of an imported image model. On disk it is the scheduler's configuration.
    """

    kind: Kind
    unet: Any
    vae: Any
    image_encoder: Any = None
    feature_extractor: Any = None
    text_encoder: str | None = None
    card: dict[str, Any] = field(default_factory=dict)
    parameterisation: Parameterisation = field(default_factory=_edm)


def save_model(model: VideoModel, directory: Path) -> None:
    """Write a model directory; byte-identical for equal models.

    Raises:
        BadInputError: the parts do not make a model of the kind.
    """
    import diffusers

    from .unet import unet_kind

    if (found := unet_kind(model.unet)) != model.kind:
        raise BadInputError(f"a model of kind {model.kind} cannot hold a UNet of kind {found}")
    check_parts(model, directory)
    directory.mkdir(parents=True, exist_ok=True)
    index: dict[str, Any] = {"_class_name": _PIPELINES[model.kind], "_diffusers_version": _diffusers_version()}
    for name, part in {"unet": model.unet, "vae": model.vae, "image_encoder": model.image_encoder}.items():
        if part is None:
            continue
        part.save_pretrained(directory / name, safe_serialization=True)
        _scrub(directory / name / "config.json")
        for path in (directory / name).iterdir():
            path.chmod(0o644)  # safetensors writes files that only their owner may read
        index[name] = [type(part).__module__.partition(".")[0], type(part).__name__]
    if model.feature_extractor is not None:
        model.feature_extractor.save_pretrained(directory / "feature_extractor")
        index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    scheduler = "EulerDiscreteScheduler" if model.parameterisation.schedule is None else "DDIMScheduler"
    config = scheduler_config(model.parameterisation)
    getattr(diffusers, scheduler)(**config).save_pretrained(directory / "scheduler")
    index["scheduler"] = ["diffusers", scheduler]
    _write_json(directory / "model_index.json", index)
    text_encoder = _keep_text_encoder(model.text_encoder, directory)
    card = {**model.card, "format": FORMAT, "kind": model.kind, "text_encoder": text_encoder}
    _write_json(directory / CARD, card)


def load_model(directory: Path) -> VideoModel:
    """Read a model directory, for inference (float32, no gradients).

    Raises:
        BadInputError: something is missing or damaged; the message names the file.
    """
    from .unet import unet_kind

    directory = Path(directory)
    card = read_card(directory)
    kind: Kind = card.pop("kind")
    read_json(directory / "model_index.json")
    card.pop("format", None)
    text_encoder = card.pop("text_encoder", None)
    model = load_parts(directory, str(directory) if text_encoder == _WITHIN else text_encoder)
    model.card = card
    if (found := unet_kind(model.unet)) != kind:
        raise BadInputError(f"{directory}: {CARD} says {kind}, but the UNet is of kind {found}")
    model.kind = kind
    check_parts(model, directory)
    return model


def load_parts(directory: Path, text_encoder: str | None) -> VideoModel:
    """The parts of a directory in diffusers' format, whether svdflow wrote it or not, with an empty card.

    Args:
        directory: with ``unet/``, ``vae/``, ``scheduler/``, and ``image_encoder/`` where there is one.
        text_encoder: what the model shall name.

    Raises:
        BadInputError: something is missing or damaged; the message names the file.
    """
    from .image_only import allow_image_only
    from .unet import unet_kind
    from .weights_files import AUTOENCODERS, IMAGE_ENCODERS, UNETS, load_network

    unet = load_network(directory / "unet", _WEIGHTS["unet"], UNETS)
    vae = load_network(directory / "vae", _WEIGHTS["vae"], AUTOENCODERS)
    image_encoder = feature_extractor = None
    if (directory / "image_encoder").is_dir():
        from transformers import CLIPImageProcessor

        image_encoder = load_network(directory / "image_encoder", _WEIGHTS["image_encoder"], IMAGE_ENCODERS)
        read_json(directory / "feature_extractor" / "preprocessor_config.json")
        feature_extractor = CLIPImageProcessor.from_pretrained(directory / "feature_extractor", local_files_only=True)
    if (kind := unet_kind(unet)) != "image":
        allow_image_only(unet)
    path = directory / "scheduler" / "scheduler_config.json"
    try:
        parameterisation = parameterisation_of(read_json(path))
    except BadInputError as error:
        raise error if str(error).startswith(str(path)) else BadInputError(f"{path}: {error}") from None
    return VideoModel(
        kind, unet, vae, image_encoder, feature_extractor, text_encoder, parameterisation=parameterisation
    )


def read_card(directory: Path) -> dict[str, Any]:
    """``svdflow.json`` alone, without loading any weights.

    Raises:
        BadInputError: it is missing, no JSON, or of a format or kind this version does not know.
    """
    card = read_json(Path(directory) / CARD)
    if card.get("kind") not in KINDS:
        raise BadInputError(f"{directory}/{CARD}: kind {card.get('kind')!r} is none of {', '.join(KINDS)}")
    if card.get("format") != FORMAT:
        raise BadInputError(
            f"{directory}/{CARD}: format {card.get('format')!r}, this version of svdflow reads {FORMAT}"
        )
    return card


def write_card(directory: Path, card: dict[str, Any]) -> None:
    """Write ``svdflow.json``, whole or not at all."""
    partial = Path(directory) / (CARD + ".partial")
    _write_json(partial, card)
    partial.replace(Path(directory) / CARD)


def scheduler_config(parameterisation: Parameterisation | None = None) -> dict[str, Any]:
    """EulerDiscreteScheduler as the released models configure it, or DDIMScheduler for a discrete schedule."""
    schedule = parameterisation.schedule if parameterisation else None
    prediction = parameterisation.prediction if parameterisation else "v_prediction"
    if schedule is not None:
        return {
            "prediction_type": prediction,
            "beta_schedule": schedule.beta_schedule,
            "beta_start": schedule.beta_start,
            "beta_end": schedule.beta_end,
            "num_train_timesteps": schedule.timesteps,
            "clip_sample": False,
            "set_alpha_to_one": False,
            "steps_offset": 1,
            "timestep_spacing": "leading",
        }
    sampling = SamplingSettings()
    return {
        "prediction_type": prediction,
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


def parameterisation_of(config: dict[str, Any]) -> Parameterisation:
    """What a diffusers scheduler's configuration says of the UNet beside it.

    Raises:
        BadInputError: a prediction type or a schedule that is not known here.
    """
    from .discrete import PREDICTIONS, DiscreteSchedule
    from .edm import Parameterisation

    scheduler = str(config.get("_class_name", ""))
    if scheduler.startswith(("FlowMatch", "EDM")) or config.get("use_flow_sigmas"):
        raise BadInputError(
            f"{scheduler or 'a scheduler with flow sigmas'} noises latents in another way than Stable Diffusion and "
            "Stable Video Diffusion do, and is not read here"
        )
    prediction = config.get("prediction_type", "epsilon")  # diffusers' default, for old configurations
    if prediction not in PREDICTIONS:
        raise BadInputError(f"prediction_type {prediction!r} is none of {', '.join(PREDICTIONS)}")
    if config.get("timestep_type") == "continuous":
        return Parameterisation(prediction)
    return Parameterisation(prediction, DiscreteSchedule.from_config(config))


def _keep_text_encoder(source: str | None, directory: Path) -> str | None:
    """Copy a text encoder that lies in a directory, so that the model can be moved; a shipped one stays a name."""
    if source is None or not all(Path(source, part).is_dir() for part in _TEXT_PARTS):
        return source
    for part in _TEXT_PARTS:
        if Path(source, part).resolve() != (directory / part).resolve():
            pickled = shutil.ignore_patterns("*.bin", "*.ckpt", "*.pt", "*.pth", "*.pkl", "*.msgpack", "*.h5")
            shutil.copytree(Path(source, part), directory / part, dirs_exist_ok=True, ignore=pickled)
    return _WITHIN


def variant_of(directory: Path) -> str | None:
    """The variant that a directory's UNet is stored in: ``fp16``, or None for full precision."""
    from .weights_files import find_weights

    return find_weights(directory / "unet", _WEIGHTS["unet"])[1]


def check_parts(model: VideoModel, directory: Path) -> None:
    """Refuse parts that do not fit one another.

    Raises:
        BadInputError: says which widths differ.
    """
    if model.unet.config.out_channels != model.vae.config.latent_channels:
        raise BadInputError(
            f"{directory}: the UNet makes {model.unet.config.out_channels} latent channels, "
            f"the autoencoder has {model.vae.config.latent_channels}"
        )
    if model.kind in ("image_to_video", "multi_view", "interpolation"):
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


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def _diffusers_version() -> str:
    from importlib.metadata import version

    return version("diffusers")
