"""The discrete noise schedule that Stable Diffusion 2.1 and the paper's ablation models use (SVD E.2.1), with DDIM.

A noisy latent is x = sqrt(a) · x0 + sqrt(1 - a) · n with a = alphas_cumprod[t], t = 0 … 999. In the terms of ``edm`` it
is c_in · (x0 + sigma · n) with sigma = sqrt((1 - a) / a).
Legend: B batch, F frames, C channels, H and W latent sides, T timesteps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch

from ..common.errors import BadInputError
from .network import ModelFn

Prediction = Literal["epsilon", "v_prediction", "sample"]
PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "v_prediction", "sample")

# SVD E.2.1 names offset noise and no strength: this one is ours.
OFFSET_NOISE = 0.1
# SVD E.2.1: deterministic DDIM, 50 steps, guidance 12
ABLATION_STEPS, ABLATION_GUIDANCE = 50, 12.0


@dataclass(frozen=True)
class DiscreteSchedule:
    """How beta rises over the timesteps. Defaults: Stable Diffusion's.

    Attributes:
        beta_start: at timestep 0.
        beta_end: at the last timestep.
        beta_schedule: ``scaled_linear`` (the square root of beta is linear) or ``linear``.
        timesteps: how many there are.
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    timesteps: int = 1000

    @staticmethod
    def from_config(config: dict[str, Any]) -> DiscreteSchedule:
        """From a diffusers scheduler's configuration.

        Raises:
            BadInputError: its betas are of a kind that is not known here.
        """
        shape = config.get("beta_schedule", "linear")  # diffusers' defaults, for old configurations
        if shape not in ("linear", "scaled_linear") or config.get("trained_betas") is not None:
            raise BadInputError(f"beta_schedule {shape!r}, or betas of its own: only scaled_linear and linear are read")
        if config.get("rescale_betas_zero_snr"):
            raise BadInputError("rescale_betas_zero_snr is set: its last noise level is infinite and is not read here")
        return DiscreteSchedule(
            float(config.get("beta_start", 0.0001)),
            float(config.get("beta_end", 0.02)),
            shape,
            int(config.get("num_train_timesteps", 1000)),
        )

    def alphas_cumprod(self) -> torch.Tensor:
        """The share of signal in the variance at each timestep, falling, float32 [T]."""
        return _alphas_cumprod(self)

    def sigmas(self) -> torch.Tensor:
        """Noise over signal at each timestep, rising, float32 [T]."""
        a_T = self.alphas_cumprod()
        return ((1 - a_T) / a_T).sqrt()

    def nearest_timestep(self, sigma_B: torch.Tensor) -> torch.Tensor:
        """The timestep whose sigma is nearest, float32 [B]: c_noise before adaptation (SVD D.1)."""
        distance_BT = (sigma_B.float()[:, None] - self.sigmas().to(sigma_B.device)[None]).abs()
        return distance_BT.argmin(dim=1).float()


@lru_cache(maxsize=8)
def _alphas_cumprod(schedule: DiscreteSchedule) -> torch.Tensor:
    power = 0.5 if schedule.beta_schedule == "scaled_linear" else 1.0
    beta_T = np.linspace(schedule.beta_start**power, schedule.beta_end**power, schedule.timesteps) ** (1 / power)
    return torch.from_numpy(np.cumprod(1 - beta_T).astype(np.float32))


def offset_noise(noise_BFCHW: torch.Tensor, offset_BC: torch.Tensor, strength: float = OFFSET_NOISE) -> torch.Tensor:
    """Noise whose mean varies too, so that a model learns to change a picture's overall brightness.

    The offset is the same for all frames of a sample (ours: the paper does not say).

    Args:
        noise_BFCHW: standard normal.
        offset_BC: standard normal, one value per sample and channel.
        strength: standard deviation of the offset.
    """
    return noise_BFCHW + strength * offset_BC[:, None, :, None, None].to(noise_BFCHW)


def add_noise(
    schedule: DiscreteSchedule, x0_BFCHW: torch.Tensor, noise_BFCHW: torch.Tensor, timestep_B: torch.Tensor
) -> torch.Tensor:
    """sqrt(a) · x0 + sqrt(1 - a) · noise."""
    signal, sigma = _rates(schedule, timestep_B, x0_BFCHW)
    return signal * x0_BFCHW + sigma * noise_BFCHW


def target(
    schedule: DiscreteSchedule,
    prediction: Prediction,
    x0_BFCHW: torch.Tensor,
    noise_BFCHW: torch.Tensor,
    timestep_B: torch.Tensor,
) -> torch.Tensor:
    """What the network should return: the noise, v = sqrt(a) · noise - sqrt(1 - a) · x0, or x0."""
    if prediction == "epsilon":
        return noise_BFCHW
    if prediction == "sample":
        return x0_BFCHW
    signal, sigma = _rates(schedule, timestep_B, x0_BFCHW)
    return signal * noise_BFCHW - sigma * x0_BFCHW


def training_loss(
    model_fn: ModelFn,
    x0_BFCHW: torch.Tensor,
    noise_BFCHW: torch.Tensor,
    timestep_B: torch.Tensor,
    *,
    schedule: DiscreteSchedule = DiscreteSchedule(),
    prediction: Prediction = "v_prediction",
) -> torch.Tensor:
    """The mean squared error on the target per sample, [B], unweighted.

    Args:
        model_fn: takes the noisy latent as it is and the timestep.
        x0_BFCHW: clean latents.
        noise_BFCHW: standard normal, or ``offset_noise`` of it.
        timestep_B: whole numbers, drawn uniformly from 0 … T - 1.
        schedule: of the noise.
        prediction: what the network returns; the paper's ablation models predict v.
    """
    noisy_BFCHW = add_noise(schedule, x0_BFCHW, noise_BFCHW, timestep_B)
    prediction_BFCHW = model_fn(noisy_BFCHW, timestep_B.float())
    wanted_BFCHW = target(schedule, prediction, x0_BFCHW, noise_BFCHW, timestep_B)
    return (prediction_BFCHW.float() - wanted_BFCHW.float()).square().flatten(1).mean(1)


def ddim_timesteps(steps: int, timesteps: int = 1000, offset: int = 1) -> list[int]:
    """The timesteps that DDIM visits, falling: evenly spaced from 0, plus 1, as Stable Diffusion has it.

    Raises:
        BadInputError: more steps than timesteps, or none.
    """
    if not 1 <= steps <= timesteps:
        raise BadInputError(f"{steps} DDIM steps: between 1 and {timesteps}, the timesteps of the schedule")
    stride = timesteps // steps
    return [index * stride + min(offset, stride - 1) for index in reversed(range(steps))]


def ddim_sample(
    model_fn: ModelFn,
    noise_BFCHW: torch.Tensor,
    steps: int = ABLATION_STEPS,
    on_step: Callable[[int], None] | None = None,
    *,
    schedule: DiscreteSchedule = DiscreteSchedule(),
    prediction: Prediction = "v_prediction",
) -> torch.Tensor:
    """Deterministic DDIM (eta 0) from unit noise to a clean latent, one model call a step.

    The step before the first timestep ends at alphas_cumprod[0] (diffusers' set_alpha_to_one false), as Stable
    Diffusion's own configuration has it.

    Args:
        model_fn: the (guided) network; takes the noisy latent as it is and the timestep.
        noise_BFCHW: standard normal.
        steps: model calls.
        on_step: called with the index of each finished step.
        schedule: of the noise.
        prediction: what the network returns.
    """
    a_T = schedule.alphas_cumprod()
    stride = schedule.timesteps // steps
    x_BFCHW = noise_BFCHW
    for index, timestep in enumerate(ddim_timesteps(steps, schedule.timesteps)):
        a, following = float(a_T[timestep]), float(a_T[max(timestep - stride, 0)])
        output_BFCHW = model_fn(x_BFCHW, torch.full((len(x_BFCHW),), float(timestep), device=x_BFCHW.device))
        x0_BFCHW, noise_hat_BFCHW = clean_and_noise(prediction, output_BFCHW, x_BFCHW, a)
        x_BFCHW = following**0.5 * x0_BFCHW + (1 - following) ** 0.5 * noise_hat_BFCHW
        if on_step:
            on_step(index)
    return x_BFCHW


def clean_and_noise(
    prediction: Prediction, output_BFCHW: torch.Tensor, x_BFCHW: torch.Tensor, a: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a network's output says of the clean latent and of the noise in x = sqrt(a) · x0 + sqrt(1 - a) · noise."""
    signal, sigma = a**0.5, (1 - a) ** 0.5
    if prediction == "epsilon":
        return (x_BFCHW - sigma * output_BFCHW) / signal, output_BFCHW
    if prediction == "sample":
        return output_BFCHW, (x_BFCHW - signal * output_BFCHW) / sigma
    return signal * x_BFCHW - sigma * output_BFCHW, signal * output_BFCHW + sigma * x_BFCHW


def _rates(
    schedule: DiscreteSchedule, timestep_B: torch.Tensor, like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    a_B = schedule.alphas_cumprod().to(like.device)[timestep_B.long()].to(like.dtype)
    a = a_B[(...,) + (None,) * (like.ndim - 1)]
    return a.sqrt(), (1 - a).sqrt()
