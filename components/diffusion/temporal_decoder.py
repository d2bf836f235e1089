"""Finetuning an autoencoder's decoder on videos: its temporal layers, the discriminator it learns against, the losses.

Align your Latents, section 3.1.1, which Stable Video Diffusion takes over: the encoder stays as it is, so that latents
keep their meaning and a trained U-Net its use; the decoder gets temporal layers and learns from videos, against a
patch-wise discriminator made of 3D convolutions. Neither paper tells losses, weights or widths: the first are those of
latent diffusion's autoencoders (Esser et al., 2021, equations 4 to 7), the others fields of ``DecoderLosses``.

Legend: B batch, F frames, C channels, H W pixel sides, c h w latents'; T, Y and X index the discriminator's patches.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder
from torch.nn import functional as F

from ..common.errors import BadInputError
from ..common.lpips import Lpips
from .autoencoder import fill_identities
from .settings import DecoderLosses

_RATIO_MOST = 1e4  # of the two gradients, as in latent diffusion
_NORM_LEAST = 1e-8


def with_temporal_decoder(vae: Any) -> AutoencoderKLTemporalDecoder:
    """An autoencoder whose decoder has temporal layers; one that has them is given back as it is.

    Out of Stable Diffusion's AutoencoderKL: same encoder, same decoder, and temporal layers that add nothing yet. The
    temporal architecture has no ``post_quant_conv``: it goes into the decoder's first convolution. So frames are the
    same where it has no bias; a bias is lost at the border, where that convolution sees zeros.

    Raises:
        BadInputError: an autoencoder of another kind, or of an architecture that the temporal one has no place for.
    """
    if isinstance(vae, AutoencoderKLTemporalDecoder):
        return vae
    if not isinstance(vae, AutoencoderKL):
        raise BadInputError(f"a decoder of {type(vae).__name__} cannot be finetuned on videos, AutoencoderKL's can")
    given = vae.config
    taken = ("in_channels", "out_channels", "down_block_types", "block_out_channels", "layers_per_block",
             "latent_channels", "sample_size", "scaling_factor", "force_upcast")  # fmt: skip
    temporal = AutoencoderKLTemporalDecoder(**{name: given[name] for name in taken})
    tensors = {_temporal_name(name): tensor for name, tensor in vae.state_dict().items()}
    if (weight := tensors.pop("post_quant_conv.weight", None)) is not None:
        bias_c = tensors.pop("post_quant_conv.bias")
        first = tensors["decoder.conv_in.weight"]
        tensors["decoder.conv_in.weight"] = torch.einsum("ochw,ci->oihw", first, weight[:, :, 0, 0])
        tensors["decoder.conv_in.bias"] = tensors["decoder.conv_in.bias"] + torch.einsum("ochw,c->o", first, bias_c)
    if "quant_conv.weight" not in tensors:
        tensors |= {name: tensor for name, tensor in _identity(2 * given["latent_channels"]).items()}
    missing, unexpected = temporal.load_state_dict(tensors, strict=False)
    if unexpected:
        raise BadInputError(f"the autoencoder's tensor {unexpected[0]} has no place in a temporal decoder")
    last = temporal.decoder.time_conv_out
    with torch.no_grad():
        torch.nn.init.zeros_(last.bias)
        last.weight.copy_(torch.zeros_like(last.weight))
        last.weight[:, :, last.kernel_size[0] // 2, 0, 0] = torch.eye(last.out_channels)
    fill_identities(temporal, [name for name in missing if "time_conv_out" not in name])
    return temporal


def _temporal_name(name: str) -> str:
    """A tensor's name in the temporal architecture, whose decoder has a temporal block in each residual one."""
    if not name.startswith("decoder.") or ".resnets." not in name:
        return name
    before, _, after = name.partition(".resnets.")
    number, _, rest = after.partition(".")
    return f"{before}.resnets.{number}.spatial_res_block.{rest}"


def _identity(channels: int) -> dict[str, torch.Tensor]:
    return {"quant_conv.weight": torch.eye(channels)[:, :, None, None], "quant_conv.bias": torch.zeros(channels)}


class PatchDiscriminator(torch.nn.Module):
    """Tells true patches of videos from made ones, by 3D convolutions: half the sides at each layer, all frames kept.

    Its norms look at one video alone, so that what it says of one does not depend on others beside it.

    Args:
        width: channels of the first layer; they double at each, up to eight times as many.
        layers: how many halve the sides.
    """

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        widths = [width * min(2**n, 8) for n in range(layers)]
        parts: list[torch.nn.Module] = []
        for n, (before, after) in enumerate(zip([3, *widths], widths, strict=False)):
            parts.append(torch.nn.Conv3d(before, after, (3, 4, 4), (1, 2, 2), 1))
            parts += [torch.nn.GroupNorm(math.gcd(32, after // 4), after)] * (n > 0) + [torch.nn.LeakyReLU(0.2)]
        parts.append(torch.nn.Conv3d(widths[-1], 1, 3, 1, 1))
        self.layers = torch.nn.Sequential(*parts)

    def forward(self, video_BFCHW: torch.Tensor) -> torch.Tensor:
        """Videos from -1 to 1 to a number for each patch, [B, T, Y, X]: above 0 for true."""
        return self.layers(video_BFCHW.transpose(1, 2))[:, 0]


class DecoderFinetuning(torch.nn.Module):
    """A decoder and its discriminator, if its loss has a weight; one optimiser moves both at the same time.

    Each learns from its own loss alone: the decoder's goes through the discriminator without touching its weights, the
    discriminator's looks at frames that the decoder is no longer behind.

    Args:
        decoder: of an AutoencoderKLTemporalDecoder.
        losses: the weights of the losses.
        perceptual: LPIPS, where its weight is not zero.
    """

    def __init__(self, decoder: torch.nn.Module, losses: DecoderLosses, perceptual: Lpips | None = None) -> None:
        super().__init__()
        self.decoder, self.settings, self._perceptual = decoder, losses, perceptual
        self.discriminator: PatchDiscriminator | None = None
        if losses.adversarial_weight:
            self.discriminator = PatchDiscriminator(losses.discriminator_width, losses.discriminator_layers)

    def forward(
        self, latents_BFchw: torch.Tensor, frames_BFCHW: torch.Tensor, adversarial: bool = True
    ) -> tuple[torch.Tensor, ...]:
        """Decode, and tell the losses.

        Args:
            latents_BFchw: not scaled, as the decoder takes them.
            frames_BFCHW: the true frames, float32 from -1 to 1.
            adversarial: whether decoder and discriminator learn from each other.

        Returns:
            The decoded frames [B, F, C, H, W], float32; the loss, the absolute error and, with gradients and a
            discriminator, that one's own loss, [B] each. The loss has the value of the reconstruction's: a decoder's
            and a discriminator's against each other would tell nothing of how far training is. Its gradient is that of
            all of them.
        """
        made_BFCHW = self._decoded(latents_BFchw)
        absolute_B = (made_BFCHW - frames_BFCHW).abs().flatten(1).mean(1)
        reconstruction_B = absolute_B
        if self._perceptual is not None:
            apart_BF = self._perceptual.differences(made_BFCHW.flatten(0, 1), frames_BFCHW.flatten(0, 1))
            perceptual_B = apart_BF.view(made_BFCHW.shape[:2]).mean(1)
            reconstruction_B = absolute_B + self.settings.perceptual_weight * perceptual_B
        if self.discriminator is None or not torch.is_grad_enabled():
            return made_BFCHW, reconstruction_B, absolute_B
        fixed = {name: tensor.detach() for name, tensor in self.discriminator.named_parameters()}
        against_B = -_judged(self.discriminator, made_BFCHW, fixed).flatten(1).mean(1)
        weight_B = self.settings.adversarial_weight * _ratio(reconstruction_B, against_B, made_BFCHW)
        real, made = (_judged(self.discriminator, video) for video in (frames_BFCHW, made_BFCHW.detach()))
        apart_B = 0.5 * (F.relu(1 - real) + F.relu(1 + made)).flatten(1).mean(1)
        learned_B = (weight_B * against_B + apart_B) * float(adversarial)
        return made_BFCHW, reconstruction_B + learned_B - learned_B.detach(), absolute_B, apart_B

    def enable_gradient_checkpointing(self, run: Any = None) -> None:
        """Keep the inputs of the decoder's blocks alone, and run the blocks again in the backward pass."""
        from torch.utils.checkpoint import checkpoint

        how: Any = run or partial(checkpoint, use_reentrant=False)
        vars(self.decoder).update(_gradient_checkpointing_func=how, gradient_checkpointing=True)

    def _decoded(self, latents_BFchw: torch.Tensor) -> torch.Tensor:
        batch, frames = latents_BFchw.shape[:2]
        dtype = next(self.decoder.parameters()).dtype
        images_BF = torch.zeros(batch, frames, dtype=dtype, device=latents_BFchw.device)  # no frame stands alone
        made = self.decoder(latents_BFchw.flatten(0, 1).to(dtype), images_BF, frames)
        return made.float().unflatten(0, (batch, frames))


def _judged(
    discriminator: PatchDiscriminator, video_BFCHW: torch.Tensor, weights: dict[str, torch.Tensor] | None = None
) -> torch.Tensor:
    """What a discriminator says, with its own weights or others, [B, T, Y, X] in float32."""
    video_BFCHW = video_BFCHW.to(next(discriminator.parameters()).dtype)
    return torch.func.functional_call(discriminator, weights or {}, (video_BFCHW,)).float()


def _ratio(reconstruction_B: torch.Tensor, against_B: torch.Tensor, made_BFCHW: torch.Tensor) -> torch.Tensor:
    """How much steeper the one loss is in the decoded frames than the other, for each video, [B].

    Esser et al. (equation 7) take the gradients in the decoder's last layer, of a whole batch; taken in the frames,
    each video has its own, and what is learned does not depend on how a batch is split over processes.
    """
    norms = []
    for losses_B in (reconstruction_B, against_B):
        (slope,) = torch.autograd.grad(losses_B.sum(), made_BFCHW, retain_graph=True)
        norms.append(slope.flatten(1).norm(dim=1))
    return (norms[0] / (norms[1] + _NORM_LEAST)).clamp(0, _RATIO_MOST).detach()
