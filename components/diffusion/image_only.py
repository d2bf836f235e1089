"""Images and videos in one batch: a switch per sample that takes the temporal layers out.

The released model's mixing layers know the switch (image_only_indicator, strategy learned_with_images), but diffusers'
UNet always passes zeros. Here the UNet takes the indicator as a keyword and hands it to its blocks: with 1 a frame gets
exactly what the spatial layers make of it, whatever the temporal ones have learned, and these get no gradient from it.
The hooks travel with a copy of the module, and a UNet called without the keyword computes what it did before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import torch

UNetT = TypeVar("UNetT", bound=torch.nn.Module)
Call = tuple[tuple[Any, ...], dict[str, Any]]
_NAME = "image_only_indicator"


def allow_image_only(unet: UNetT) -> UNetT:
    """Let a UNetSpatioTemporalConditionModel take ``image_only_indicator``; calling it again changes nothing.

    The indicator has the shape [B, F] and is true (or 1) where a frame is an image of its own. Gradient checkpointing
    by ``unet.enable_gradient_checkpointing()`` keeps it; a wrapper that runs whole blocks again does not.

    Returns:
        The same module.
    """
    if not getattr(unet, "takes_image_only", False):
        unet.register_forward_pre_hook(_take, with_kwargs=True)
        unet.register_forward_hook(_forget, always_call=True)
        for block in _blocks(unet):
            block.register_forward_pre_hook(_hand_over, with_kwargs=True)
        unet.takes_image_only = True  # type: ignore[assignment]
    return unet


def _take(unet: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    if _NAME not in kwargs:
        return None
    indicator = kwargs.pop(_NAME)
    for block in _blocks(unet):
        block.image_only = indicator
    return args, kwargs


def _forget(unet: torch.nn.Module, *_: Any) -> None:
    for block in _blocks(unet):
        if getattr(block, "image_only", None) is not None:
            block.image_only = None  # type: ignore[assignment]


def _hand_over(block: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    if (indicator := getattr(block, "image_only", None)) is not None:
        kwargs = {**kwargs, _NAME: indicator.to(kwargs[_NAME])}
    return args, kwargs


def _blocks(unet: Any) -> Iterator[torch.nn.Module]:
    yield from unet.down_blocks
    yield unet.mid_block
    yield from unet.up_blocks
