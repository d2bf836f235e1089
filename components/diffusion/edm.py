"""Continuous-noise diffusion after Karras et al. (EDM) as Stable Video Diffusion uses it (D.1): sigma_data is 1.

Legend: B batch, F frames, C channels, H and W latent sides. A noisy latent is x = x0 + sigma · n. The network F sees
c_in · x and c_noise; the denoised latent is D = c_skip · x + c_out · F. With the paper's coefficients the target of F
is what v-prediction predicts. Models that predict something else, or know whole timesteps only, have coefficients of
their own (``Parameterisation``), with which the same sampler and the same loss hold for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from .discrete import DiscreteSchedule, Prediction
from .network import ModelFn
from .network import unet_model_fn as unet_model_fn


@dataclass(frozen=True)
class Parameterisation:
    """What a network predicts and how it is told the noise level. Defaults: Stable Video Diffusion's.

    Attributes:
        prediction: ``v_prediction``, ``epsilon`` (Stable Diffusion 2.1's base) or ``sample``.
        schedule: the discrete timesteps that the network knows; None: it is told 0.25 ln sigma.
    """

    prediction: Prediction = "v_prediction"
    schedule: DiscreteSchedule | None = None


EDM = Parameterisation()


@dataclass(frozen=True)
class Preconditioning:
    """The four coefficients for given sigmas; each has the shape of sigma."""

    c_skip: torch.Tensor
    c_out: torch.Tensor
    c_in: torch.Tensor
    c_noise: torch.Tensor


def precondition(sigma: torch.Tensor, parameterisation: Parameterisation = EDM) -> Preconditioning:
    """c_skip, c_out, c_in and c_noise (SVD D.1).

    The defaults are the paper's column after adaptation. ``Parameterisation("epsilon", DiscreteSchedule())`` is the one
    before it: c_skip 1, c_out -sigma, and the nearest of 1000 timesteps for c_noise.
    """
    total = sigma.square() + 1
    if parameterisation.prediction == "epsilon":
        c_skip, c_out = torch.ones_like(sigma), -sigma
    elif parameterisation.prediction == "sample":
        c_skip, c_out = torch.zeros_like(sigma), torch.ones_like(sigma)
    else:
        c_skip, c_out = 1 / total, -sigma / total.sqrt()
    return Preconditioning(c_skip, c_out, c_in=1 / total.sqrt(), c_noise=noise_label(sigma, parameterisation))


def noise_label(sigma: torch.Tensor, parameterisation: Parameterisation = EDM) -> torch.Tensor:
    """c_noise: how the network is told sigma."""
    if parameterisation.schedule is None:
        return 0.25 * sigma.log()
    return parameterisation.schedule.nearest_timestep(sigma.reshape(-1)).reshape(sigma.shape).to(sigma.dtype)


def loss_weight(sigma: torch.Tensor) -> torch.Tensor:
    """lambda(sigma) = (1 + sigma²) / sigma²; times c_out² it is 1, which makes the loss a plain MSE on the v-target."""
    return (1 + sigma.square()) / sigma.square()


def v_target(x0_BFCHW: torch.Tensor, noise_BFCHW: torch.Tensor, sigma_B: torch.Tensor) -> torch.Tensor:
    """What the network should return for x0 + sigma · noise: (noise - sigma · x0) / sqrt(1 + sigma²)."""
    sigma = _expand(sigma_B, x0_BFCHW)
    return (noise_BFCHW - sigma * x0_BFCHW) / (1 + sigma.square()).sqrt()


def denoise(
    model_fn: ModelFn, x_BFCHW: torch.Tensor, sigma_B: torch.Tensor, parameterisation: Parameterisation = EDM
) -> torch.Tensor:
    """The denoised latent D(x; sigma), [B, F, C, H, W]."""
    c = precondition(sigma_B, parameterisation)
    prediction_BFCHW = model_fn(_expand(c.c_in, x_BFCHW) * x_BFCHW, c.c_noise)
    return _expand(c.c_skip, x_BFCHW) * x_BFCHW + _expand(c.c_out, x_BFCHW) * prediction_BFCHW


def training_loss(
    model_fn: ModelFn,
    x0_BFCHW: torch.Tensor,
    noise_BFCHW: torch.Tensor,
    sigma_B: torch.Tensor,
    parameterisation: Parameterisation = EDM,
) -> torch.Tensor:
    """The mean of lambda(sigma) · |D - x0|² per sample, [B].

    Computed as the equal error of the network's own output, which loses no digits at small sigma: a plain MSE where it
    predicts v, weighted by 1 + sigma² where it predicts the noise.
    """
    c_in = _expand(precondition(sigma_B).c_in, x0_BFCHW)
    x_BFCHW = x0_BFCHW + _expand(sigma_B, x0_BFCHW) * noise_BFCHW
    prediction_BFCHW = model_fn(c_in * x_BFCHW, noise_label(sigma_B, parameterisation))
    if parameterisation.prediction == "v_prediction":
        wanted_BFCHW = v_target(x0_BFCHW, noise_BFCHW, sigma_B)
    else:
        wanted_BFCHW = noise_BFCHW if parameterisation.prediction == "epsilon" else x0_BFCHW
    error_B = (prediction_BFCHW.float() - wanted_BFCHW.float()).square().flatten(1).mean(1)
    if parameterisation.prediction == "v_prediction":
        return error_B
    weight_B = 1 + sigma_B.square() if parameterisation.prediction == "epsilon" else loss_weight(sigma_B)
    return weight_B * error_B


def in_edm_terms(model_fn: ModelFn, parameterisation: Parameterisation) -> ModelFn:
    """A network of another parameterisation, seen as one of the paper's: the same denoised latents.

    The returned function takes 0.25 ln sigma and gives v, so that a model can be measured and sampled before it is
    adapted exactly as after. No weights can be changed to the same end: that is what the adaptation trains.
    """

    def edm_fn(x_BFCHW: torch.Tensor, c_noise_B: torch.Tensor) -> torch.Tensor:
        sigma_B = (4 * c_noise_B).exp()
        c = precondition(sigma_B)
        noisy_BFCHW = x_BFCHW / _expand(c.c_in, x_BFCHW)
        denoised_BFCHW = denoise(model_fn, noisy_BFCHW, sigma_B, parameterisation)
        return (denoised_BFCHW - _expand(c.c_skip, x_BFCHW) * noisy_BFCHW) / _expand(c.c_out, x_BFCHW)

    return edm_fn


def karras_sigmas(steps: int, sigma_min: float = 0.002, sigma_max: float = 700.0, rho: float = 7.0) -> torch.Tensor:
    """Noise levels from sigma_max down to sigma_min, then 0: [steps + 1], float32."""
    ramp = np.linspace(0, 1, steps)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return torch.from_numpy(np.append((high + ramp * (low - high)) ** rho, 0.0).astype(np.float32))


def euler_sample(
    model_fn: ModelFn,
    noise_BFCHW: torch.Tensor,
    sigmas: torch.Tensor,
    on_step: Callable[[int], None] | None = None,
    parameterisation: Parameterisation = EDM,
) -> torch.Tensor:
    """Follow the probability-flow ODE from unit noise to a clean latent, one model call a step.

    Args:
        model_fn: the (guided) network.
        noise_BFCHW: standard normal; scaled here by sqrt(sigma_max² + 1), as the released sampler does.
        sigmas: falling, the last one 0.
        on_step: called with the index of each finished step.
        parameterisation: of the network.
    """
    x_BFCHW = noise_BFCHW * (sigmas[0].square() + 1).sqrt()
    for index in range(len(sigmas) - 1):
        sigma, following = sigmas[index], sigmas[index + 1]
        denoised_BFCHW = denoise(model_fn, x_BFCHW, sigma.to(x_BFCHW).expand(len(x_BFCHW)), parameterisation)
        x_BFCHW = x_BFCHW + (following - sigma).to(x_BFCHW) * (x_BFCHW - denoised_BFCHW) / sigma.to(x_BFCHW)
        if on_step:
            on_step(index)
    return x_BFCHW


def _expand(value_B: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return value_B.to(like)[(...,) + (None,) * (like.ndim - value_B.ndim)]
