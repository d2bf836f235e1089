"""Pixels to latents and back, through the shipped autoencoder or any in diffusers' format.

Legend: F frames, C and c channels of pixels and latents, H, W pixel sides, h, w latent sides.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..common.errors import BadInputError
from ..common.identity import file_sha256
from .settings import SHIPPED_AUTOENCODER
from .weights_files import AUTOENCODERS, find_weights, load_network

_CONFIG, _WEIGHTS, _COMPACT = "config.json", "diffusion_pytorch_model", "compact.safetensors"


@lru_cache
def autoencoder_id(source: str = "shipped") -> str:
    """16 hex digits of the content of an autoencoder's directory (its configuration and weights)."""
    config, weights = _files(source)
    digest = hashlib.sha256("".join(file_sha256(path) for path in (config, *weights)).encode())
    return digest.hexdigest()[:16]


def load_autoencoder(source: str | Path = "shipped") -> Any:
    """An AutoencoderKLTemporalDecoder, or Stable Diffusion's AutoencoderKL, in float32, for inference.

    Args:
        source: ``shipped``, or a directory in diffusers' format (safetensors, whole, in shards or the fp16 variant).

    Raises:
        BadInputError: there is none, or its files are damaged; tensors at fault are named.
    """
    config, weights = _files(str(source))
    if weights[0].name != _COMPACT:
        return load_network(config.parent, _WEIGHTS, AUTOENCODERS)
    try:
        return read_compact(config.parent).eval().requires_grad_(False)
    except Exception as error:  # diffusers and safetensors raise whatever their readers raise
        raise BadInputError(f"{config.parent}: no readable autoencoder ({str(error).splitlines()[0][:200]})") from error


def write_compact(vae: Any, directory: Path) -> int:
    """Write configuration and half-precision weights, less the residual blocks that are identities.

    Returns:
        The number of stored parameters.
    """
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    stored = {name: tensor.half().contiguous() for name, tensor in vae.state_dict().items()}
    for prefix in {
        name.rpartition("conv2.")[0] for name in stored if name.endswith("conv2.weight") and not stored[name].any()
    }:
        stored = {
            name: tensor for name, tensor in stored.items() if not name.startswith(prefix) or "conv_shortcut" in name
        }
    save_file(stored, directory / _COMPACT)
    (directory / _COMPACT).chmod(0o644)
    config = {name: value for name, value in vae.config.items() if not name.startswith("_") or name == "_class_name"}
    (directory / _CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return sum(tensor.numel() for tensor in stored.values())


def read_compact(directory: Path) -> Any:
    """The autoencoder that ``write_compact`` wrote, whole again, in float32.

    Raises:
        ValueError: a tensor is missing that no identity can stand for, or one is not the architecture's.
    """
    from diffusers import AutoencoderKLTemporalDecoder
    from safetensors.torch import load_file

    vae = AutoencoderKLTemporalDecoder.from_config(json.loads((directory / _CONFIG).read_text()))
    missing, unexpected = vae.load_state_dict(load_file(directory / _COMPACT), strict=False)
    if unexpected:
        raise ValueError(f"unexpected tensor {unexpected[0]}")
    fill_identities(vae, missing)
    return vae


def fill_identities(vae: Any, names: Sequence[str]) -> None:
    """Make the named tensors those of residual blocks that add nothing and can learn: their second convolution is 0.

    Raises:
        ValueError: a tensor belongs to no residual block.
    """
    tensors = vae.state_dict()
    for name in names:
        if ".resnets." not in name or "conv_shortcut" in name:
            raise ValueError(f"tensor {name} is missing")
        tensor = tensors[name]
        if name.endswith("conv1.weight"):
            torch.nn.init.dirac_(tensor)
        else:
            tensor.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)


@contextmanager
def identities_skipped(vae: Any) -> Iterator[None]:
    """Do not compute residual blocks that add nothing (until somebody tunes them): equal frames, five times as fast."""
    from diffusers.models.resnet import ResnetBlock2D, SpatioTemporalResBlock

    changed = []
    for module in vae.modules():
        if isinstance(module, ResnetBlock2D) and _adds_nothing(module):
            shortcut = module.conv_shortcut or torch.nn.Identity()
            module.forward = lambda h, temb=None, shortcut=shortcut: shortcut(h)
        elif isinstance(module, SpatioTemporalResBlock) and _adds_nothing(module.temporal_res_block):
            module.forward = lambda h, temb=None, image_only_indicator=None, block=module.spatial_res_block: block(
                h, temb
            )
        else:
            continue
        changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            module.__dict__.pop("forward", None)


def _adds_nothing(block: Any) -> bool:
    return not (block.conv2.weight.any() or block.conv2.bias.any())


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
    with identities_skipped(vae):
        posteriors = [vae.encode(part.to(vae.device, vae.dtype)).latent_dist for part in pixels_FCHW.split(chunk)]
    return torch.cat([p.mode() for p in posteriors]), torch.cat([p.std for p in posteriors])


def encode_frames(vae: Any, frames_FHWC: np.ndarray, chunk: int = 8) -> torch.Tensor:
    """uint8 frames [F, H, W, 3] to what the diffusion model sees: scaled posterior means, float32 [F, c, h, w]."""
    mean_Fchw, _ = encode_moments(vae, to_unit_range(frames_FHWC), chunk)
    return mean_Fchw.float() * vae.config.scaling_factor


@torch.no_grad()
def decode_latents(vae: Any, latents_Fchw: torch.Tensor, chunk: int = 14) -> np.ndarray:
    """Scaled latents [F, c, h, w] to uint8 frames [F, H, W, 3], ``chunk`` frames at a time."""
    parts = []
    temporal = hasattr(vae.decoder, "time_conv_out")
    for part in (latents_Fchw / vae.config.scaling_factor).to(vae.device, vae.dtype).split(chunk):
        with identities_skipped(vae):
            pixels_FCHW = vae.decode(part, **({"num_frames": len(part)} if temporal else {})).sample.float()
        parts.append(
            ((pixels_FCHW / 2 + 0.5).clamp(0, 1) * 255).round().to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy()
        )
    return np.concatenate(parts)


def _files(source: str) -> tuple[Path, list[Path]]:
    directory = SHIPPED_AUTOENCODER if source == "shipped" else Path(source)
    config = directory / _CONFIG
    if not config.is_file():
        raise BadInputError(f"{directory}: no autoencoder there, {_CONFIG} is missing")
    if (directory / _COMPACT).is_file():
        return config, [directory / _COMPACT]
    return config, find_weights(directory, _WEIGHTS)[0]


def __getattr__(name: str) -> str:
    if name == "AUTOENCODER_ID":
        return autoencoder_id("shipped")
    raise AttributeError(name)
