"""Pixels to latents and back, through the shipped autoencoder or any in diffusers' format.

Legend: F frames, C and c channels of pixels and latents, H, W pixel sides, h, w latent sides.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..common.errors import BadInputError
from ..common.identity import file_sha256

SHIPPED = Path(__file__).parent / "weights" / "autoencoder"
SHIPPED_NAME = "svdflow small autoencoder"  # for the record: it is not Stable Diffusion's
_FILES = ("config.json", "diffusion_pytorch_model.safetensors")


@lru_cache
def autoencoder_id(source: str = "shipped") -> str:
    """16 hex digits of the content of an autoencoder's directory (its configuration and weights)."""
    directory = _directory(source)
    digest = hashlib.sha256("".join(file_sha256(directory / name) for name in _FILES).encode())
    return digest.hexdigest()[:16]


def load_autoencoder(source: str | Path = "shipped") -> Any:
    """An AutoencoderKLTemporalDecoder in float32, for inference.

    Args:
        source: ``shipped``, or a directory in diffusers' format (safetensors).

    Raises:
        BadInputError: there is none, or its files are damaged.
    """
    from diffusers import AutoencoderKLTemporalDecoder

    directory = _directory(str(source))
    try:
        vae = AutoencoderKLTemporalDecoder.from_pretrained(directory, torch_dtype=torch.float32, use_safetensors=True, local_files_only=True)
    except Exception as error:  # diffusers raises whatever its readers raise
        raise BadInputError(f"{directory}: no readable autoencoder ({str(error).splitlines()[0][:200]})") from error
    return vae.eval().requires_grad_(False)


def spatial_factor(vae: Any) -> int:
    """How many pixels a latent's side covers: 8 for Stable Diffusion's and the shipped one."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def to_unit_range(frames_FHWC: np.ndarray) -> torch.Tensor:
    """uint8 [F, H, W, 3] to float32 in [-1, 1], [F, 3, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(frames_FHWC)).permute(0, 3, 1, 2).float() / 255.0 * 2.0 - 1.0


@torch.no_grad()
def encode_moments(vae: Any, pixels_FCHW: torch.Tensor, chunk: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (which is also the mode) and standard deviation of the posterior, unscaled, each [F, c, h, w].

    Raises:
        BadInputError: the sides are no multiples of the autoencoder's factor.
    """
    factor = spatial_factor(vae)
    height, width = pixels_FCHW.shape[-2:]
    if height % factor or width % factor:
        raise BadInputError(f"frames of {width}x{height} px: both sides must be multiples of {factor}")
    posteriors = [vae.encode(part.to(vae.dtype)).latent_dist for part in pixels_FCHW.split(chunk)]
    return torch.cat([p.mode() for p in posteriors]), torch.cat([p.std for p in posteriors])


def encode_frames(vae: Any, frames_FHWC: np.ndarray, chunk: int = 8) -> torch.Tensor:
    """uint8 frames [F, H, W, 3] to the latents that the diffusion model sees: posterior means, scaled, float32 [F, c, h, w]."""
    mean_Fchw, _ = encode_moments(vae, to_unit_range(frames_FHWC), chunk)
    return mean_Fchw.float() * vae.config.scaling_factor


@torch.no_grad()
def decode_latents(vae: Any, latents_Fchw: torch.Tensor, chunk: int = 14) -> np.ndarray:
    """Scaled latents [F, c, h, w] to uint8 frames [F, H, W, 3]; ``chunk`` frames at a time share the temporal decoder."""
    parts = []
    for part in (latents_Fchw / vae.config.scaling_factor).to(vae.dtype).split(chunk):
        pixels_FCHW = vae.decode(part, num_frames=len(part)).sample.float()
        parts.append(((pixels_FCHW / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)


def _directory(source: str) -> Path:
    directory = SHIPPED if source == "shipped" else Path(source)
    for name in _FILES:
        if not (directory / name).is_file():
            raise BadInputError(f"{directory}: no autoencoder there, {name} is missing")
    return directory


def __getattr__(name: str) -> str:
    if name == "AUTOENCODER_ID":
        return autoencoder_id("shipped")
    raise AttributeError(name)
