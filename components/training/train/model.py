"""The model a stage starts from, and the one it leaves: each kind grows out of another one (``presets.GROWN_FROM``)."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...common.block_cache import BlockCache
from ...common.errors import BadInputError
from ...common.sample_tensors import CLIP
from ...common.storage import DataRoot
from ...common.storage_directory import DirectoryRoot
from ...diffusion import conditioning
from ...diffusion.autoencoder import load_autoencoder, spatial_factor
from ...diffusion.hub import resolve_model
from ...diffusion.import_model import open_model
from ...diffusion.lora import ADAPTER, inject_lora, merge_lora, save_lora
from ...diffusion.model_directory import VideoModel, save_model
from ...diffusion.motion import MotionCalibration
from ...diffusion.settings import UNetSettings
from ...diffusion.unet import (
    build_image_unet,
    inflate,
    settings_of,
    to_image_to_video,
    to_interpolation,
    to_multi_view,
)
from .data import Gathering, SampleSource
from .datasets import read_datasets
from .draws import Plan
from .live import LiveSource
from .objective import UNKNOWN_MOTION
from .packed_rows import only
from .presets import GROWN_FROM, MODEL_KIND
from .settings import StageSettings
from .start import parameterisation_to_train, unknown_motion

if TYPE_CHECKING:
    from .job import Job


def prepare_model(job: Job) -> tuple[VideoModel, SampleSource, SampleSource, Plan]:
    """The stage's model before its first step, its training and held-out samples, and the plan of draws.

    Raises:
        BadInputError: no training samples, latents of another autoencoder, or an init of the wrong kind.
    """
    datasets = read_datasets(job.samples, job.stage, job.settings)
    root = DataRoot.open(job.root)
    remote = not isinstance(root, DirectoryRoot)
    cache = BlockCache(root.scratch("blocks"), int(job.settings.cache_gib * 2**30)) if remote else None
    size = _usual_size(datasets.train) if job.stage == "interpolation" else None
    model = start_model(job.stage, job.init, job.settings, size)
    sources = {
        split: _source(root, rows, Gathering.of(job.stage, job.settings, training=split == "train"), cache, model)
        for split, rows in (("train", datasets.train), ("held_out", datasets.held_out))
    }
    places = list(zip(datasets.dataset, sources["train"].buckets, strict=True))
    plan = Plan(job.settings, places, datasets.weights)
    if job.stage != "image" and (job.settings.refit_motion or not _calibrated(model)):
        scored = only(sources["train"].rows, "motion_score")
        scores = [row["motion_score"] for row in scored if row["motion_score"] is not None]
        if any(math.isfinite(score) for score in scores):
            model.card["motion_calibration"] = MotionCalibration.fit(scores, datasets.motion_unit).to_dict()
    channels = sources["train"].latent_channels
    expected = model.unet.config.out_channels
    if channels != expected:
        raise BadInputError(
            f"{job.samples}: latents have {channels} channels, the model takes {expected}; "
            "encode the samples with the model's own autoencoder"
        )
    if (wide := sources["train"].context_width(model.kind)) != (takes := model.unet.config.cross_attention_dim):
        encoder = "text" if model.kind in ("image", "text_to_video") else "image"
        raise BadInputError(
            f"{job.samples}: the {encoder} encoder's states are {wide} wide, the model takes {takes}; encode the "
            f"samples with the model's own (encode.{encoder}_encoder)"
        )
    return model, sources["train"], sources["held_out"], plan


def _source(
    root: DataRoot, rows: Sequence[dict[str, Any]], gathering: Gathering, cache: BlockCache | None, model: VideoModel
) -> SampleSource:
    if any(row["layout"] == CLIP for row in only(rows, "layout")):
        return LiveSource(root, rows, gathering, cache, model)
    return SampleSource(root, rows, gathering, cache)


def _usual_size(rows: Sequence[dict[str, Any]]) -> tuple[int, int] | None:
    """Height and width of most samples, px."""
    sizes = Counter((row["height"], row["width"]) for row in only(rows, "height", "width"))
    return sizes.most_common(1)[0][0] if sizes else None


def start_model(
    stage: str, init: Path | None, settings: StageSettings, size: tuple[int, int] | None = None
) -> VideoModel:
    """The model that a stage trains, before its first step.

    An init of the stage's own kind is trained on; one of the kind before is grown into it without changing what it
    computes.

    Args:
        stage: its kind.
        init: model directory; None for the image stage.
        settings: of the stage.
        size: height and width of most samples, px: where the settings leave it open, that of interpolation's latent for
            frames that are not given.

    Raises:
        BadInputError: a stage after the first has no init, or one of a kind that cannot become the stage's.
    """
    import torch

    kind: Any = MODEL_KIND[stage]
    torch.manual_seed(settings.seed)  # fresh weights are the same in every process
    if init is None and stage == "image" and settings.base:
        init = resolve_model(settings.base)
    if init is None:
        if stage != "image":
            raise BadInputError(f"stage {stage} starts from a model of kind {GROWN_FROM[stage]}: give it one as init")
        unet = build_image_unet(UNetSettings(**settings.unet))
        if settings.lora:
            inject_lora(unet, settings.lora, f"train_{stage}.lora")
        return VideoModel(
            "image",
            unet,
            load_autoencoder(settings.autoencoder),
            text_encoder=_text_encoder(settings),
            parameterisation=parameterisation_to_train(stage, None, settings),
        )
    model = open_model(init)
    if model.kind not in (kind, before := GROWN_FROM.get(stage)):
        raise BadInputError(
            f"{init}: a model of kind {model.kind} cannot start stage {stage}, which takes {before} or {kind}"
        )
    if "imported" in model.card and model.kind != "image" and not (_calibrated(model) or settings.refit_motion):
        raise unknown_motion(stage, init)
    if model.kind != kind:
        if kind == "text_to_video":
            model.unet = _inflated(model.unet, settings)
        elif kind == "multi_view":
            model.unet = to_multi_view(model.unet)
        else:
            model.unet = _given_pictures(model, kind, settings, size)
            _give_image_encoder(model, settings)
            model.text_encoder = None
        model.kind = kind
    model.parameterisation = parameterisation_to_train(stage, model.parameterisation, settings, str(init))
    model.card.pop("unconditional", None)  # captions are dropped to zeros here, whatever the start was guided away from
    model.unet.requires_grad_(True)
    if settings.lora:
        inject_lora(model.unet, settings.lora, f"train_{stage}.lora")
    model.unet.train()
    return model


def save_trained(
    job: Job,
    model: VideoModel,
    train: SampleSource,
    weights: dict[str, Any],
    result: dict[str, Any],
    held_out: float | None,
) -> None:
    """Write the trained model's directory, whole or not at all; ``held_out`` is the loss of these very weights."""
    unet, lora = type(model.unet).from_config(model.unet.config), job.settings.lora
    unet.load_state_dict(merge_lora(weights, lora) if lora else weights)
    frames, height, width = train.typical_size
    size = {"frames": frames, "height": height, "width": width}
    card = {
        **job.card,
        "configuration": {**job.card["configuration"], **size},  # as trained, also where the settings left it open
        "conditioning": {
            "fps": train.typical_fps,
            "motion_bucket": UNKNOWN_MOTION,
            "noise_aug": math.exp(job.settings.augment_mean),
        },
        "stage": job.stage,
        "steps": result["handed_on"],
        "motion_calibration": model.card.get("motion_calibration"),
        "metrics": {"held_out_before": _mean(result["before"]), "held_out_after": held_out},
        "parents": [
            *model.card.get("parents", []),
            *([_parent(model, job)] if job.init else []),
        ],
    }
    model.vae.to("cpu")
    partial = job.out.with_name(job.out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    save_model(
        replace(model, unet=unet, card=card),
        partial,
    )
    if lora:
        save_lora(weights, lora, partial / ADAPTER)
    shutil.rmtree(job.out, ignore_errors=True)
    partial.rename(job.out)


def _parent(model: VideoModel, job: Job) -> dict[str, Any]:
    """What the trained model's card tells of the one it started from."""
    imported = model.card.get("imported")
    told = {"stage": model.card.get("stage"), "tree": job.card["init"]}
    return told | ({"name": imported["name"]} if imported else {})


def _calibrated(model: VideoModel) -> bool:
    return bool(model.card.get("motion_calibration"))


def _mean(loss: dict[str, Any] | None) -> float | None:
    return loss["mean"] if loss else None


def _text_encoder(settings: StageSettings) -> str:
    return conditioning.LOCAL_TEXT_ENCODER if settings.text_encoder == "local" else settings.text_encoder


def _given_pictures(model: VideoModel, kind: str, settings: StageSettings, size: tuple[int, int] | None) -> Any:
    """A text-to-video U-Net that takes a picture, or two, in place of the text."""
    if kind == "image_to_video":
        return to_image_to_video(model.unet)
    asked = (settings.height, settings.width) if settings.height and settings.width else size
    factor = spatial_factor(model.vae)
    return to_interpolation(model.unet, (asked[0] // factor, asked[1] // factor) if asked else None)


def _give_image_encoder(model: VideoModel, settings: StageSettings) -> None:
    if settings.image_encoder == "local":
        model.image_encoder = conditioning.build_image_encoder(model.unet.config.cross_attention_dim)
    else:
        from transformers import CLIPVisionModelWithProjection

        model.image_encoder = CLIPVisionModelWithProjection.from_pretrained(
            settings.image_encoder, local_files_only=True, use_safetensors=True
        )
    model.feature_extractor = conditioning.build_feature_extractor()


def _inflated(unet: Any, settings: StageSettings) -> Any:
    """A video U-Net out of an image one; what the latter does not tell comes from the settings."""
    told = {name: settings.unet[name] for name in ("addition_time_embed_dim", "num_frames") if settings.unet.get(name)}
    if settings.frames:
        told["num_frames"] = settings.frames
    return inflate(unet, settings_of(unet, **told))
