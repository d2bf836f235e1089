"""Continuous-noise diffusion after Karras et al. (EDM) as Stable Video Diffusion uses it (D.1): sigma_data is 1.

Legend: B batch, F frames, C channels, H and W latent sides. A noisy latent is x = x0 + sigma · n. The network F sees
c_in · x and c_noise; the denoised latent is D = c_skip · x + c_out · F. With these coefficients the target of F is what
v-prediction predicts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

ModelFn = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(c_in · x [B, F, C, H, W], c_noise [B]) -> F [B, F, C, H, W]"""


@dataclass(frozen=True)
class Preconditioning:
    """The four coefficients for given sigmas; each has the shape of sigma."""

    c_skip: torch.Tensor
    c_out: torch.Tensor
    c_in: torch.Tensor
    c_noise: torch.Tensor


def precondition(sigma: torch.Tensor) -> Preconditioning:
    """c_skip, c_out, c_in and c_noise (SVD D.1, the column after adaptation)."""
    total = sigma.square() + 1
    return Preconditioning(
        c_skip=1 / total, c_out=-sigma / total.sqrt(), c_in=1 / total.sqrt(), c_noise=0.25 * sigma.log()
    )


def loss_weight(sigma: torch.Tensor) -> torch.Tensor:
    """lambda(sigma) = (1 + sigma²) / sigma²; times c_out² it is 1, which makes the loss a plain MSE on the v-target."""
    return (1 + sigma.square()) / sigma.square()


def v_target(x0_BFCHW: torch.Tensor, noise_BFCHW: torch.Tensor, sigma_B: torch.Tensor) -> torch.Tensor:
    """What the network should return for x0 + sigma · noise: (noise - sigma · x0) / sqrt(1 + sigma²)."""
    sigma = _expand(sigma_B, x0_BFCHW)
    return (noise_BFCHW - sigma * x0_BFCHW) / (1 + sigma.square()).sqrt()


def denoise(model_fn: ModelFn, x_BFCHW: torch.Tensor, sigma_B: torch.Tensor) -> torch.Tensor:
    """The denoised latent D(x; sigma), [B, F, C, H, W]."""
    c = precondition(sigma_B)
    prediction_BFCHW = model_fn(_expand(c.c_in, x_BFCHW) * x_BFCHW, c.c_noise)
    return _expand(c.c_skip, x_BFCHW) * x_BFCHW + _expand(c.c_out, x_BFCHW) * prediction_BFCHW


def training_loss(
    model_fn: ModelFn, x0_BFCHW: torch.Tensor, noise_BFCHW: torch.Tensor, sigma_B: torch.Tensor
) -> torch.Tensor:
    """The mean of lambda(sigma) · |D - x0|² per sample, [B].

    Computed as the equal MSE on the v-target, which loses no digits at small sigma.
    """
    c_in = _expand(precondition(sigma_B).c_in, x0_BFCHW)
    x_BFCHW = x0_BFCHW + _expand(sigma_B, x0_BFCHW) * noise_BFCHW
    prediction_BFCHW = model_fn(c_in * x_BFCHW, 0.25 * sigma_B.log())
    return (prediction_BFCHW.float() - v_target(x0_BFCHW, noise_BFCHW, sigma_B).float()).square().flatten(1).mean(1)


def karras_sigmas(steps: int, sigma_min: float = 0.002, sigma_max: float = 700.0, rho: float = 7.0) -> torch.Tensor:
    """Noise levels from sigma_max down to sigma_min, then 0: [steps + 1], float32."""
    ramp = np.linspace(0, 1, steps)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return torch.from_numpy(np.append((high + ramp * (low - high)) ** rho, 0.0).astype(np.float32))


def euler_sample(
    model_fn: ModelFn, noise_BFCHW: torch.Tensor, sigmas: torch.Tensor, on_step: Callable[[int], None] | None = None
) -> torch.Tensor:
    """Follow the probability-flow ODE from unit noise to a clean latent, one model call a step.

    Args:
        model_fn: the (guided) network.
        noise_BFCHW: standard normal; scaled here by sqrt(sigma_max² + 1), as the released sampler does.
        sigmas: falling, the last one 0.
        on_step: called with the index of each finished step.
    """
    x_BFCHW = noise_BFCHW * (sigmas[0].square() + 1).sqrt()
    for index in range(len(sigmas) - 1):
        sigma, following = sigmas[index], sigmas[index + 1]
        denoised_BFCHW = denoise(model_fn, x_BFCHW, sigma.to(x_BFCHW).expand(len(x_BFCHW)))
        x_BFCHW = x_BFCHW + (following - sigma).to(x_BFCHW) * (x_BFCHW - denoised_BFCHW) / sigma.to(x_BFCHW)
        if on_step:
            on_step(index)
    return x_BFCHW


def guided(conditional: ModelFn, unconditional: ModelFn, scale_F: torch.Tensor) -> ModelFn:
    """Classifier-free guidance with one scale per frame: u + scale · (c - u). Linear, so it holds for F and D alike."""

    def model_fn(x_BFCHW: torch.Tensor, c_noise_B: torch.Tensor) -> torch.Tensor:
        u_BFCHW, c_BFCHW = unconditional(x_BFCHW, c_noise_B), conditional(x_BFCHW, c_noise_B)
        return u_BFCHW + scale_F.to(u_BFCHW)[None, :, None, None, None] * (c_BFCHW - u_BFCHW)

    return model_fn


def linear_guidance(low: float, high: float, frames: int) -> torch.Tensor:
    """Scales that rise along the frame axis (SVD D.4.1), [F]."""
    return torch.linspace(low, high, frames)


def unet_model_fn(
    unet: Any,
    context_BND: torch.Tensor,
    vector_BK: torch.Tensor | None = None,
    concat_BFCHW: torch.Tensor | None = None,
) -> ModelFn:
    """Bind a diffusers UNet and its conditions; an image UNet sees every frame by itself.

    Args:
        unet: UNet2DConditionModel or UNetSpatioTemporalConditionModel, also inside a training engine.
        context_BND: text token states or one image embedding.
        vector_BK: fps_id, motion bucket and so on (settings.VECTOR_CONDITIONS); None means an image UNet.
        concat_BFCHW: latents joined to the input's channels, for image-to-video.
    """

    def model_fn(x_BFCHW: torch.Tensor, c_noise_B: torch.Tensor) -> torch.Tensor:
        if concat_BFCHW is not None:
            x_BFCHW = torch.cat([x_BFCHW, concat_BFCHW], dim=2)
        if vector_BK is not None:
            return unet(
                x_BFCHW, c_noise_B, encoder_hidden_states=context_BND, added_time_ids=vector_BK, return_dict=False
            )[0]
        frames = x_BFCHW.shape[1]
        flat = unet(
            x_BFCHW.flatten(0, 1),
            c_noise_B.repeat_interleave(frames),
            encoder_hidden_states=context_BND.repeat_interleave(frames, dim=0),
            return_dict=False,
        )[0]
        return flat.unflatten(0, (-1, frames))

    return model_fn


def _expand(value_B: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return value_B.to(like)[(...,) + (None,) * (like.ndim - value_B.ndim)]
