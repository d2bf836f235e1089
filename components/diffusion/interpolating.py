"""Frame interpolation: a video of four times the frame rate, its own frames where they stood (SVD 4.4, D.5).

Every two neighbours are the ends of a clip of five frames, whose middle ones are made. Clips are made a few at a time,
so that memory does not grow with the video. All noise is drawn in main memory, that of a clip from seed and place, so
that it does not depend on who shares a batch; a network's rounding may, by a grey level here and there.
Legend: B batch of clips, F frames, H, W pixel sides, c, h, w latent ones, D context width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from ..common.errors import BadInputError
from .autoencoder import decode_latents, encode_frames, spatial_factor
from .conditioning import Conditions, end_latents, image_embeddings, vector_conditioning
from .edm import euler_sample, karras_sigmas
from .guidance import GuidanceShape
from .sampling import conditional_model_fn
from .settings import INTERPOLATED_FRAMES, INTERPOLATION_RATE, SamplingSettings

if TYPE_CHECKING:
    from .model_directory import VideoModel

KeyFrames = Literal["given", "decoded"]
_DEFAULTS = SamplingSettings()
_CLIP_NOISE, _FRAME_NOISE = 0, 1  # streams that must not share bits


@dataclass(frozen=True)
class _KeyFrame:
    """A given frame as the network sees it."""

    pixels_HWC: np.ndarray
    latent_chw: torch.Tensor
    embedding_D: torch.Tensor
    noise_chw: torch.Tensor


def interpolate(
    model: VideoModel,
    frames_FHWC: np.ndarray,
    *,
    fps: float,
    motion_bucket: float = _DEFAULTS.motion_bucket,
    noise_aug: float = _DEFAULTS.noise_aug,
    steps: int = _DEFAULTS.steps,
    guidance: tuple[float, float] = (1.0, 1.0),
    guidance_shape: GuidanceShape = "constant",
    seed: int = 0,
    decode_chunk: int = _DEFAULTS.decode_chunk,
    batch: int = 1,
    key_frames: KeyFrames = "given",
    on_step: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Three frames between every two of a video.

    Args:
        model: of kind ``interpolation``.
        frames_FHWC: uint8 RGB, two or more; sides are multiples of the autoencoder's factor.
        fps: of the frames given. The model is told that of the result, four times as many, less one.
        motion_bucket: 0 to 255.
        noise_aug: strength of the noise on the given frames' latents, in units of their deviation.
        steps: model evaluations for a batch of clips (twice as many with guidance).
        guidance: scale at the first and the last frame of a clip; no guidance when neither exceeds 1, as by default
            (ours: the frames that are given leave little open).
        guidance_shape: ``constant`` (the second scale everywhere), ``linear`` or ``triangular``.
        seed: of all noise, not negative.
        decode_chunk: frames decoded at a time, of the five of a clip.
        batch: clips that go through the network together.
        key_frames: ``given`` returns the given frames' own pixels, ``decoded`` what the autoencoder makes of them, so
            that all frames have passed through it.
        on_step: called after each step with how many were made before it; there are ``steps`` for each batch.

    Returns:
        uint8 [4 (F - 1) + 1, H, W, 3].

    Raises:
        BadInputError: the model is of another kind, frames are no uint8 RGB, fewer than two or of sides that do not
            fit, or a number is out of range.
    """
    if frames_FHWC.dtype != np.uint8 or frames_FHWC.ndim != 4 or frames_FHWC.shape[3] != 3:
        raise BadInputError(f"frames must be uint8 [F, H, W, 3], not {frames_FHWC.dtype} {list(frames_FHWC.shape)}")
    count = len(frames_FHWC)
    made = interpolated(
        model, frames_FHWC, fps=fps, motion_bucket=motion_bucket, noise_aug=noise_aug, steps=steps, guidance=guidance,
        guidance_shape=guidance_shape, seed=seed, decode_chunk=decode_chunk, batch=batch, key_frames=key_frames,
        on_step=on_step,
    )  # fmt: skip
    out_FHWC = np.empty((INTERPOLATION_RATE * max(count - 1, 0) + 1, *frames_FHWC.shape[1:]), np.uint8)
    for place, frame_HWC in enumerate(made):
        out_FHWC[place] = frame_HWC
    return out_FHWC


@torch.no_grad()
def interpolated(
    model: VideoModel,
    frames: Iterable[np.ndarray],
    *,
    fps: float,
    motion_bucket: float = _DEFAULTS.motion_bucket,
    noise_aug: float = _DEFAULTS.noise_aug,
    steps: int = _DEFAULTS.steps,
    guidance: tuple[float, float] = (1.0, 1.0),
    guidance_shape: GuidanceShape = "constant",
    seed: int = 0,
    decode_chunk: int = _DEFAULTS.decode_chunk,
    batch: int = 1,
    key_frames: KeyFrames = "given",
    on_step: Callable[[int], None] | None = None,
) -> Iterator[np.ndarray]:
    """The frames of ``interpolate`` one after another, of frames that come one after another: a video of any length.

    Arguments and errors are its, these when the first frame is asked for; frames are uint8 [H, W, 3], and of one size.
    """
    _check(model, fps, steps, seed, batch, key_frames)
    seen = _key_frames(model, frames, seed)
    ends = list(islice(seen, 1))
    clips = 0
    last: np.ndarray | None = None
    while more := list(islice(seen, batch)):
        ends += more
        starts, stops = ends[:-1], ends[1:]
        pairs = list(zip(starts, stops, strict=True))
        ends_B2chw = torch.stack([torch.stack([a.latent_chw, b.latent_chw]) for a, b in pairs])
        conditions = between(
            ends_B2chw,
            torch.stack([torch.stack([a.embedding_D, b.embedding_D]) for a, b in pairs]),
            torch.stack([torch.stack([a.noise_chw, b.noise_chw]) for a, b in pairs]),
            fps=INTERPOLATION_RATE * fps, motion_bucket=motion_bucket, noise_aug=noise_aug,
        )  # fmt: skip
        noise_BFchw = torch.stack([clip_noise(seed, clips + i, *ends_B2chw.shape[2:]) for i in range(len(pairs))])
        before = clips // batch * steps
        told = (lambda index, before=before: on_step(before + index)) if on_step else None
        made_BFchw = sample_between(model, conditions, noise_BFchw, steps, guidance, guidance_shape, told).cpu()
        made_BFchw[:, [0, -1]] = ends_B2chw.to(made_BFchw)  # temporal layers of a decoder see the frames that are known
        for (start, stop), made_Fchw in zip(pairs, made_BFchw, strict=True):
            decoded_FHWC = decode_latents(model.vae, made_Fchw, decode_chunk)
            yield start.pixels_HWC if key_frames == "given" else decoded_FHWC[0]
            yield from decoded_FHWC[1:-1]
            last = stop.pixels_HWC if key_frames == "given" else decoded_FHWC[-1]
        clips += len(pairs)
        ends = stops[-1:]
    if last is None:
        raise BadInputError(f"{len(ends)} frames: nothing lies between fewer than two")
    yield last


@torch.no_grad()
def sample_between(
    model: VideoModel,
    conditions: Conditions,
    noise_BFchw: torch.Tensor,
    steps: int,
    guidance: tuple[float, float] = (1.0, 1.0),
    guidance_shape: GuidanceShape = "constant",
    on_step: Callable[[int], None] | None = None,
) -> torch.Tensor:
    """The latents of clips whose ends are given, [B, F, c, h, w]: also the ends as the model sees them.

    Args:
        model: of kind ``interpolation``.
        conditions: of the clips, as ``between`` makes them.
        noise_BFchw: standard normal.
        steps: model evaluations.
        guidance: as in ``interpolate``.
        guidance_shape: likewise.
        on_step: called after each step with its index.
    """
    device, frames = model.unet.device, noise_BFchw.shape[1]
    model_fn = conditional_model_fn(model.unet, conditions.to(device), guidance, frames, guidance_shape)
    sigmas = karras_sigmas(steps, _DEFAULTS.sigma_min, _DEFAULTS.sigma_max, _DEFAULTS.rho)
    return euler_sample(model_fn, noise_BFchw.to(device), sigmas, on_step, model.parameterisation)


def between(
    ends_B2chw: torch.Tensor,
    embeddings_B2D: torch.Tensor,
    noise_B2chw: torch.Tensor,
    *,
    fps: float,
    motion_bucket: float,
    noise_aug: float,
) -> Conditions:
    """What clips are made from: their ends' scaled latents and embeddings, and the scalars that all of them share.

    Args:
        ends_B2chw: of the clean frames.
        embeddings_B2D: likewise.
        noise_B2chw: standard normal; put on the latents with the strength ``noise_aug``.
        fps: of the clips that are made.
        motion_bucket: 0 to 255.
        noise_aug: see ``interpolate``.
    """
    count = len(ends_B2chw)
    vector_BK = vector_conditioning(
        "interpolation", fps=[fps] * count, motion_bucket=[motion_bucket] * count, noise_aug=[noise_aug] * count
    )
    joined_BFChw = end_latents(ends_B2chw, noise_B2chw, [noise_aug] * count, INTERPOLATED_FRAMES)
    return Conditions(embeddings_B2D, vector_BK, joined_BFChw)


def clip_noise(seed: int, place: int, channels: int, height: int, width: int) -> torch.Tensor:
    """What a clip is denoised from, [5, c, h, w]: standard normal, by seed and place of the clip in the video."""
    return _noise(_CLIP_NOISE, seed, place, (INTERPOLATED_FRAMES, channels, height, width))


def frame_noise(seed: int, place: int, channels: int, height: int, width: int) -> torch.Tensor:
    """What a given frame's latent is noised with, [c, h, w]: the same in both clips that it ends."""
    return _noise(_FRAME_NOISE, seed, place, (channels, height, width))


def _noise(stream: int, seed: int, place: int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng([stream, seed, place]).standard_normal(shape, dtype=np.float32))


def _key_frames(model: VideoModel, frames: Iterable[np.ndarray], seed: int) -> Iterator[_KeyFrame]:
    """Given frames with what the network is given of them, each by itself: nothing depends on its neighbours."""
    factor, size = spatial_factor(model.vae), None
    for place, pixels_HWC in enumerate(frames):
        if pixels_HWC.dtype != np.uint8 or pixels_HWC.ndim != 3 or pixels_HWC.shape[2] != 3:
            raise BadInputError(
                f"frame {place} must be uint8 [H, W, 3], not {pixels_HWC.dtype} {list(pixels_HWC.shape)}"
            )
        height, width = pixels_HWC.shape[:2]
        if height % factor or width % factor:
            raise BadInputError(f"frames of {width}x{height} px: both sides must be multiples of {factor}")
        if size not in (None, (height, width)):
            raise BadInputError(f"frame {place} has {width}x{height} px, those before it {size[1]}x{size[0]}")
        size = (height, width)
        latent_chw = encode_frames(model.vae, pixels_HWC[None])[0].cpu()
        embedding_D = image_embeddings(model.image_encoder, model.feature_extractor, pixels_HWC[None])[0].cpu()
        noise_chw = frame_noise(seed, place, *latent_chw.shape)
        yield _KeyFrame(np.array(pixels_HWC), latent_chw, embedding_D, noise_chw)


def _check(model: VideoModel, fps: float, steps: int, seed: int, batch: int, key_frames: str) -> None:
    if model.kind != "interpolation":
        raise BadInputError(f"a model of kind {model.kind} makes no frames between others; interpolation does")
    if not fps > 0:
        raise BadInputError(f"{fps} frames a second: the rate of the given frames must be positive")
    if steps < 1 or batch < 1 or seed < 0:
        raise BadInputError(
            f"{steps} steps, batches of {batch}, seed {seed}: at least one of each, and a seed that is not negative"
        )
    if key_frames not in ("given", "decoded"):
        raise BadInputError(f"key frames {key_frames!r} are neither given nor decoded")
