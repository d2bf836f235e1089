"""How the shipped autoencoder starts, and what its training leaves out; ``train_autoencoder`` trains it.

diffusers fixes 32 groups for every norm of this architecture, which at small widths normalises each channel by itself
and so loses an image's brightness and contrast. Two things put that right without leaving the architecture: the first
and last widths are 64, so that a group can hold a channel and its negative (whose common mean is 0), and the norms are
trained with an epsilon of 1, which is the same as activations a thousand times smaller with the epsilon of 1e-6 that
diffusers uses: ``fold`` makes the one into the other.

Training starts from the principal components of 8×8 patches. Residual blocks that training leaves out, the decoder's
temporal ones among them, are identities, so that it decodes frame by frame and can be tuned on video later, as Align
your Latents does.
Legend: N patches, K and C channels, H, W.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import AutoencoderKLTemporalDecoder
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D, SpatioTemporalResBlock
from torch.nn import functional as F

from .autoencoder import fill_identities

WIDTHS = (64, 32, 32, 64)
TRAINED_EPSILON = 1.0
LATENT_CHANNELS = 8  # 4, as SVD has, keep too little at this size: see README
LATENT_NOISE = 0.05  # std of the posterior, held fixed: latents a diffusion model gets slightly wrong must still decode


def build_autoencoder(patches_N388: torch.Tensor, seed: int) -> AutoencoderKLTemporalDecoder:
    """The autoencoder before training: its linear trunk encodes the principal components of ``patches`` ([N, 3, 8, 8]).

    All residual branches are zero. The decoder starts by painting each latent's mean colour.
    """
    torch.manual_seed(seed)
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=WIDTHS,
        down_block_types=("DownEncoderBlock2D",) * len(WIDTHS),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        sample_size=128,
        force_upcast=False,
    )
    skipped = {
        id(tensor) for module in skipped_in_training(vae) for tensor in module.state_dict(keep_vars=True).values()
    }
    fill_identities(vae, [name for name, tensor in vae.state_dict(keep_vars=True).items() if id(tensor) in skipped])
    fill_identities(vae, [name for name in vae.state_dict() if ".conv2." in name])
    with torch.no_grad():
        for attention in (vae.encoder.mid_block.attentions[0], vae.decoder.mid_block.attentions[0]):
            attention.to_out[0].weight.zero_()
            attention.to_out[0].bias.zero_()
        vae.decoder.time_conv_out.weight.zero_()
        vae.decoder.time_conv_out.weight[:, :, 1, 0, 0] = torch.eye(3)
        vae.decoder.time_conv_out.bias.zero_()
        _start_from_principal_components(vae, patches_N388)
    return vae


def _start_from_principal_components(vae: AutoencoderKLTemporalDecoder, patches_N388: torch.Tensor) -> None:
    encoder, decoder, latents = vae.encoder, vae.decoder, LATENT_CHANNELS
    for module in [*encoder.modules(), *decoder.modules()]:
        if isinstance(module, torch.nn.Conv2d) and module.weight.abs().max() > 0:
            module.weight.mul_(0.3)  # spare channels of the trunk start small
            torch.nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    # encoder: 2×2 pixels side by side, then 4×4, then 8×8 patches, each by its leading components
    x = patches_N388
    _set_centre(encoder.conv_in.weight, torch.eye(3))
    side_by_side = torch.zeros(12, 3, 2, 2)
    for index in range(12):
        side_by_side[index, index % 3, index // 6, index // 3 % 2] = 1
    x = _set_downsampler(encoder.down_blocks[0], side_by_side, x)
    _set_centre(encoder.down_blocks[1].resnets[0].conv_shortcut.weight, torch.eye(12))
    x = _set_downsampler(encoder.down_blocks[1], _components(x, WIDTHS[1], whiten=False), x)
    x = _set_downsampler(encoder.down_blocks[2], _components(x, WIDTHS[2], whiten=True), x)
    _set_pairs(encoder.down_blocks[3].resnets[0].conv_shortcut, WIDTHS[2])
    gain = (1 + TRAINED_EPSILON) ** 0.5  # what the norm divides features of unit variance by
    encoder.conv_out.weight.zero_()
    encoder.conv_out.weight[:latents, : 2 * latents, 1, 1] = gain * _pairs(torch.eye(latents))
    encoder.conv_out.bias.zero_()
    vae.quant_conv.weight.zero_()
    _set_centre(vae.quant_conv.weight, torch.eye(latents))
    vae.quant_conv.bias.zero_()
    vae.quant_conv.bias[latents:] = 2 * math.log(LATENT_NOISE)
    # decoder: latents run through to the end, where each becomes its mean colour
    colours_N3, z_Nc = patches_N388.mean((2, 3)), x[:, :latents, 0, 0]
    centre_c, centre_3 = z_Nc.mean(0), colours_N3.mean(0)
    encoder.conv_out.bias[:latents] = -centre_c
    mean_colour_c3 = torch.linalg.lstsq(z_Nc - centre_c, colours_N3 - centre_3).solution
    _set_centre(decoder.conv_in.weight, torch.eye(latents))
    for block in decoder.up_blocks[:3]:
        _set_centre(block.upsamplers[0].conv.weight, torch.eye(latents))
    _set_centre(decoder.up_blocks[1].resnets[0].spatial_res_block.conv_shortcut.weight, torch.eye(latents))
    _set_pairs(decoder.up_blocks[3].resnets[0].spatial_res_block.conv_shortcut, WIDTHS[2])
    decoder.conv_out.weight.mul_(0.1)
    decoder.conv_out.weight[:, : 2 * latents] = 0
    decoder.conv_out.weight[:, : 2 * latents, 1, 1] = gain * _pairs(mean_colour_c3.T)
    decoder.conv_out.bias.copy_(centre_3)


def _components(features_NCHW: torch.Tensor, count: int, whiten: bool) -> torch.Tensor:
    """Leading principal components over 2×2 neighbours, [count, C, 2, 2]; each, or their mean, of unit variance."""
    blocks = features_NCHW.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)  # [M, C, 2, 2]
    values, vectors = torch.linalg.eigh(torch.cov(blocks.flatten(1).T))
    values, vectors = values.flip(0)[:count].clamp(min=1e-8), vectors.flip(1)[:, :count]
    scale = values.sqrt() if whiten else values.mean().sqrt().expand(count)
    return (vectors / scale).T.unflatten(1, blocks.shape[1:])


def _set_downsampler(block: Any, kernel_KC22: torch.Tensor, features_NCHW: torch.Tensor) -> torch.Tensor:
    """Put a 2×2 kernel where diffusers' 3×3 convolution of stride 2 sees a block (it pads right and below).

    Returns:
        What the kernel makes of the features.
    """
    weight = block.downsamplers[0].conv.weight
    weight[: len(kernel_KC22)] = 0
    weight[: len(kernel_KC22), : kernel_KC22.shape[1], :2, :2] = kernel_KC22
    return F.conv2d(features_NCHW, kernel_KC22, stride=2)


def _set_centre(weight: torch.Tensor, matrix_KC: torch.Tensor) -> None:
    rows, columns = matrix_KC.shape
    weight[:rows] = 0
    weight[:rows, :columns, weight.shape[2] // 2, weight.shape[3] // 2] = matrix_KC


def _set_pairs(shortcut: torch.nn.Conv2d, channels: int) -> None:
    """Each channel and its negative, so that the norm's groups of two have mean 0."""
    shortcut.weight.zero_()
    shortcut.weight[:, :channels, 0, 0] = _pairs(torch.eye(channels)).T


def _pairs(matrix_KC: torch.Tensor) -> torch.Tensor:
    """Columns and their negatives alternately: silu(u) - silu(-u) = u, so a pair passes the activation unchanged."""
    return torch.stack([matrix_KC, -matrix_KC], dim=2).flatten(1)


def skipped_in_training(vae: AutoencoderKLTemporalDecoder) -> list[torch.nn.Module]:
    """Residual blocks that stay identities: the temporal ones, and the two that cost most at full resolution."""
    temporal = [m.temporal_res_block for m in vae.decoder.modules() if isinstance(m, SpatioTemporalResBlock)]
    return [*temporal, vae.encoder.down_blocks[0].resnets[0], vae.decoder.up_blocks[3].resnets[1].spatial_res_block]


def skip_identities(vae: AutoencoderKLTemporalDecoder) -> None:
    """Do not compute what is an identity."""
    vae.encoder.down_blocks[0].resnets[0].forward = lambda h, temb=None: h
    for module in vae.decoder.modules():
        if isinstance(module, SpatioTemporalResBlock):
            spatial = module.spatial_res_block
            module.forward = lambda h, temb=None, image_only_indicator=None, spatial=spatial: spatial(h, temb)
    vae.decoder.up_blocks[3].resnets[1].forward = lambda h, temb=None, image_only_indicator=None: h


@contextmanager
def trunk_only(vae: AutoencoderKLTemporalDecoder) -> Iterator[None]:
    """Skip every residual branch: what remains is all but linear, learns fast and costs a tenth."""
    changed = [m for m in vae.modules() if isinstance(m, (ResnetBlock2D, Attention))]
    before = [m.forward for m in changed]
    for module in changed:
        shortcut = getattr(module, "conv_shortcut", None) or (lambda h: h)
        module.forward = lambda h, *args, shortcut=shortcut, **kwargs: shortcut(h)
    try:
        yield
    finally:
        for module, forward in zip(changed, before, strict=True):
            module.forward = forward


def trunk_norms(vae: AutoencoderKLTemporalDecoder) -> list[torch.nn.GroupNorm]:
    """Norms whose input is the residual trunk itself."""
    return [
        module
        for name, module in vae.named_modules()
        if isinstance(module, torch.nn.GroupNorm)
        and name.endswith(("norm1", "group_norm", "conv_norm_out"))
        and "temporal" not in name
    ]


def fold(vae: AutoencoderKLTemporalDecoder) -> None:
    """Turn a model trained with an epsilon of 1 into an equal one with 1e-6, by scaling all that enters the trunk."""
    norms = trunk_norms(vae)
    scale = (1e-6 / TRAINED_EPSILON) ** 0.5
    with torch.no_grad():
        for name, module in vae.named_modules():
            if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)) and "temporal" not in name:
                writes = name in ("encoder.conv_in", "decoder.conv_in") or name.endswith((".conv2", ".to_out.0"))
                if writes:
                    module.weight.mul_(scale)
                if writes or name.endswith(("conv_shortcut", "samplers.0.conv")):
                    module.bias *= scale
    for norm in norms:
        norm.eps = 1e-6
