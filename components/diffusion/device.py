"""Where models compute: on this process's GPU, if it has one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .model_directory import VideoModel


def default_device() -> torch.device:
    """The current GPU, or the processor. ``CUDA_VISIBLE_DEVICES`` chooses among GPUs; empty, it takes the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def place(model: VideoModel, device: torch.device | str | None = None) -> VideoModel:
    """Move a model's parts, in place; sampling and encoding follow them.

    Args:
        model: that is to compute there.
        device: ``default_device()`` where not given.

    Returns:
        The same model.
    """
    for part in (model.unet, model.vae, model.image_encoder):
        if part is not None:
            part.to(device or default_device())
    return model
