"""Classifier-free guidance with one scale per frame.

Legend: B batch, F frames, C channels, H and W latent sides; u and c are the unconditional and the conditional output.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch

from ..common.errors import BadInputError
from .network import ModelFn

GuidanceShape = Literal["constant", "linear", "triangular"]


def guided(conditional: ModelFn, unconditional: ModelFn, scale_F: torch.Tensor) -> ModelFn:
    """U + scale · (c - u), with one scale per frame.

    This is the paper's w · c - (w - 1) · u (SVD D.1). It is linear, so it holds for the network's output as for the
    denoised latent.
    """

    def model_fn(x_BFCHW: torch.Tensor, label_B: torch.Tensor) -> torch.Tensor:
        u_BFCHW, c_BFCHW = unconditional(x_BFCHW, label_B), conditional(x_BFCHW, label_B)
        return u_BFCHW + scale_F.to(u_BFCHW)[None, :, None, None, None] * (c_BFCHW - u_BFCHW)

    return model_fn


def guidance_scales(shape: GuidanceShape, low: float, high: float, frames: int) -> torch.Tensor:
    """The scale of each frame, [F].

    Args:
        shape: ``constant``: ``high`` everywhere; ``linear`` and ``triangular``: see the functions below.
        low: the first frame's scale.
        high: the last frame's, or the middle one's.
        frames: how many.

    Raises:
        BadInputError: no such shape.
    """
    if shape == "constant":
        return constant_guidance(high, frames)
    if shape == "linear":
        return linear_guidance(low, high, frames)
    if shape == "triangular":
        return triangular_guidance(low, high, frames)
    raise BadInputError(f"guidance of shape {shape!r} is none of {', '.join(get_args(GuidanceShape))}")


def constant_guidance(scale: float, frames: int) -> torch.Tensor:
    """The same scale for every frame, [F]."""
    return torch.full((frames,), float(scale))


def linear_guidance(low: float, high: float, frames: int) -> torch.Tensor:
    """Scales that rise along the frame axis (SVD D.4.1), [F]."""
    return torch.linspace(low, high, frames)


def triangular_guidance(low: float, high: float, frames: int) -> torch.Tensor:
    """Scales that rise to the middle frame and fall again, for closed orbits, [F].

    The released SV3D_p, which follows the paper's multi-view model, goes 1 -> 2.5 -> 1.
    """
    position_F = torch.linspace(-1, 1, frames) if frames > 1 else -torch.ones(frames)
    return low + (high - low) * (1 - position_F.abs())
