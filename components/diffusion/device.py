"""Where models compute: on this process's GPU, if it has one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from ..common.errors import BadInputError

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


@contextmanager
def within_memory(what: str) -> Iterator[None]:
    """Meanwhile a GPU whose memory is full is an error that says what to do.

    Raises:
        BadInputError: it was full.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise BadInputError(
            f"the GPU's memory does not hold {what}: take fewer frames or a smaller size, or set CUDA_VISIBLE_DEVICES "
            f"to nothing and have the processor compute it ({str(error).splitlines()[0][:150]})"
        ) from error
