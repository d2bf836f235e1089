"""Sampling: noise and conditions in, frames out. Deterministic for a seed, a device and a number of threads.

A model computes where its parts lie; all noise is drawn in main memory, so that it is the same everywhere.

For image-to-video models it computes what diffusers' StableVideoDiffusionPipeline computes.
Legend: F frames, H, W pixel sides, c, h, w latent ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..common.errors import BadInputError
from .autoencoder import decode_latents, spatial_factor
from .conditioning import Conditions, frame_latents, image_embeddings, load_text_encoder, vector_conditioning
from .discrete import ddim_sample
from .edm import euler_sample, karras_sigmas
from .guidance import GuidanceShape, guidance_scales, guided
from .motion import MotionCalibration
from .network import ModelFn, unet_model_fn
from .settings import SamplingSettings

if TYPE_CHECKING:
    from .model_directory import VideoModel

_DEFAULTS = SamplingSettings()
EMPTY_PROMPT = "empty prompt"  # on a card, under "unconditional"


@torch.no_grad()
def generate(
    model: VideoModel,
    image_HWC: np.ndarray,
    *,
    frames: int,
    fps: float = _DEFAULTS.fps,
    motion_bucket: float = _DEFAULTS.motion_bucket,
    noise_aug: float = _DEFAULTS.noise_aug,
    steps: int = _DEFAULTS.steps,
    guidance: tuple[float, float] = (_DEFAULTS.guidance_min, _DEFAULTS.guidance_max),
    seed: int = 0,
    elevation_deg: float | None = None,
    decode_chunk: int = _DEFAULTS.decode_chunk,
    on_step: Callable[[int], None] | None = None,
    guidance_shape: GuidanceShape = "linear",
    motion_score: float | None = None,
) -> np.ndarray:
    """A video that starts from an image (image-to-video), or an orbit around it (multi-view).

    Args:
        model: of kind ``image_to_video`` or ``multi_view``.
        image_HWC: uint8 RGB; the video has its size, a multiple of the autoencoder's factor.
        frames: how many to make.
        fps: told to the model (less one).
        motion_bucket: 0 to 255, more is more motion.
        noise_aug: strength of the noise on the conditioning image, in units of [-1, 1] pixels.
        steps: model evaluations (twice as many with guidance).
        guidance: scale at the first and the last frame (or the middle one: see ``guidance_shape``); no guidance when
            neither exceeds 1.
        seed: of all noise.
        elevation_deg: of the camera, for multi-view.
        decode_chunk: frames decoded at a time.
        on_step: called after each step with its index.
        guidance_shape: ``linear``, ``constant`` (the second scale everywhere) or ``triangular`` (for closed orbits).
        motion_score: asked for in place of ``motion_bucket``, in the unit of the model's motion calibration.

    Returns:
        uint8 [F, H, W, 3].

    Raises:
        BadInputError: the model is of another kind, the image is no uint8 RGB or has sides that do not fit, or a
        motion score is asked for of a model without calibration.
    """
    if model.kind not in ("image_to_video", "multi_view"):
        raise BadInputError(f"a {model.kind} model takes no image; image-to-video and multi-view models do")
    if image_HWC.dtype != np.uint8 or image_HWC.ndim != 3 or image_HWC.shape[2] != 3:
        raise BadInputError(f"the image must be uint8 [H, W, 3], not {image_HWC.dtype} {list(image_HWC.shape)}")
    _check(frames, steps)
    bucket = motion_bucket if motion_score is None else _bucket(model, motion_score)
    generator = torch.Generator().manual_seed(seed)
    noise_1CHW = torch.randn((1, 3, *image_HWC.shape[:2]), generator=generator)
    latent_1chw = frame_latents(model.vae, image_HWC[None], noise_1CHW, [noise_aug])
    conditions = Conditions(
        context_BND=image_embeddings(model.image_encoder, model.feature_extractor, image_HWC[None])[:, None],
        vector_BK=vector_conditioning(
            model.kind, fps=[fps], motion_bucket=[bucket], noise_aug=[noise_aug],
            elevation_deg=None if elevation_deg is None else [elevation_deg],
        ),
        concat_BFchw=latent_1chw[:, None].expand(-1, frames, -1, -1, -1),
    )  # fmt: skip
    noise_1Fchw = torch.randn((1, frames, *latent_1chw.shape[1:]), generator=generator)
    return _sample(model, conditions, noise_1Fchw, steps, guidance, decode_chunk, on_step, guidance_shape)


@torch.no_grad()
def generate_from_text(
    model: VideoModel,
    prompt: str,
    *,
    frames: int,
    height: int,
    width: int,
    fps: float = _DEFAULTS.fps,
    motion_bucket: float = _DEFAULTS.motion_bucket,
    steps: int = _DEFAULTS.steps,
    guidance: tuple[float, float] = (_DEFAULTS.guidance_min, _DEFAULTS.guidance_max),
    seed: int = 0,
    decode_chunk: int = _DEFAULTS.decode_chunk,
    on_step: Callable[[int], None] | None = None,
    guidance_shape: GuidanceShape = "linear",
    motion_score: float | None = None,
    negative_prompt: str | None = None,
) -> np.ndarray:
    """A video of what a text says, uint8 [F, H, W, 3]; an image model gives ``frames`` unrelated images.

    A model of the discrete schedule (Stable Diffusion 2.1, the ablation models) is sampled by deterministic DDIM, for
    which the paper takes 50 steps and a constant guidance of 12; all others by Euler steps.

    Args:
        model: of kind ``text_to_video`` or ``image``.
        prompt: plain words.
        frames: how many to make.
        height: px, a multiple of the autoencoder's factor.
        width: px, likewise.
        fps: told to the model (less one).
        motion_bucket: 0 to 255.
        steps: model evaluations (twice as many with guidance).
        guidance: scale at the first and the last frame.
        seed: of all noise.
        decode_chunk: frames decoded at a time.
        on_step: called after each step with its index.
        guidance_shape: ``linear``, ``constant`` (the second scale everywhere) or ``triangular``.
        motion_score: asked for in place of ``motion_bucket``, in the unit of the model's motion calibration.
        negative_prompt: what guidance steers away from. Where it is not given: nothing (zeros), as our training drops
            captions, or the empty prompt for a Stable Diffusion model as it was imported.

    Raises:
        BadInputError: the model is of another kind, names no text encoder, or the size does not fit.
    """
    if model.kind not in ("image", "text_to_video"):
        raise BadInputError(f"a {model.kind} model takes no text; image and text-to-video models do")
    if not model.text_encoder:
        raise BadInputError("the model's svdflow.json names no text encoder, so no text can be given to it")
    _check(frames, steps)
    factor = spatial_factor(model.vae)
    if height % factor or width % factor:
        raise BadInputError(f"a size of {width}x{height} px: both must be multiples of {factor}")
    bucket = motion_bucket if motion_score is None else _bucket(model, motion_score)
    vector_BK = vector_conditioning(model.kind, fps=[fps], motion_bucket=[bucket])
    encoder = load_text_encoder(model.text_encoder)
    if negative_prompt is None and model.card.get("unconditional") == EMPTY_PROMPT:
        negative_prompt = ""
    away_BND = None if negative_prompt is None else encoder([negative_prompt])
    conditions = Conditions(encoder([prompt]), None if model.kind == "image" else vector_BK)
    shape = (1, frames, model.unet.config.out_channels, height // factor, width // factor)
    noise_1Fchw = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return _sample(model, conditions, noise_1Fchw, steps, guidance, decode_chunk, on_step, guidance_shape, away_BND)


def conditional_model_fn(
    unet: torch.nn.Module,
    conditions: Conditions,
    guidance: tuple[float, float],
    frames: int,
    guidance_shape: GuidanceShape = "linear",
    away_BND: torch.Tensor | None = None,
) -> ModelFn:
    """The network with its conditions bound, guided where a scale exceeds 1, away from zeros or a given context."""
    conditional = _bind(unet, conditions)
    scale_F = guidance_scales(guidance_shape, *guidance, frames)
    if max(guidance) <= 1:
        return conditional
    return guided(conditional, _bind(unet, conditions.unconditional(away_BND)), scale_F)


def _bind(unet: torch.nn.Module, conditions: Conditions) -> ModelFn:
    return unet_model_fn(unet, conditions.context_BND, conditions.vector_BK, conditions.concat_BFchw)


def _bucket(model: VideoModel, score: float) -> int:
    calibration = model.card.get("motion_calibration")
    if not calibration:
        raise BadInputError("the model's card has no motion calibration, so it takes a motion bucket, not a score")
    return MotionCalibration.from_dict(calibration).apply(score)


def _sample(
    model: VideoModel,
    conditions: Conditions,
    noise_1Fchw: torch.Tensor,
    steps: int,
    guidance: tuple[float, float],
    decode_chunk: int,
    on_step: Callable[[int], None] | None,
    guidance_shape: GuidanceShape,
    away_BND: torch.Tensor | None = None,
) -> np.ndarray:
    frames = noise_1Fchw.shape[1]
    device = model.unet.device
    away_BND = None if away_BND is None else away_BND.to(device)
    model_fn = conditional_model_fn(model.unet, conditions.to(device), guidance, frames, guidance_shape, away_BND)
    noise_1Fchw = noise_1Fchw.to(device)
    told = model.parameterisation
    if told.schedule is not None:
        latents_1Fchw = ddim_sample(
            model_fn, noise_1Fchw, steps, on_step, schedule=told.schedule, prediction=told.prediction
        )
    else:
        sigmas = karras_sigmas(steps, _DEFAULTS.sigma_min, _DEFAULTS.sigma_max, _DEFAULTS.rho)
        latents_1Fchw = euler_sample(model_fn, noise_1Fchw, sigmas, on_step, told)
    return decode_latents(model.vae, latents_1Fchw[0], decode_chunk)


def _check(frames: int, steps: int) -> None:
    if frames < 1 or steps < 1:
        raise BadInputError(f"{frames} frames in {steps} steps: both must be at least 1")
