"""Activation checkpointing of a UNet, its temporal layers included.

diffusers' own switch runs a spatio-temporal transformer's spatial block again in the backward pass and keeps all that
its temporal block, the context of each place and the layers around them leave. Here such a transformer runs again as a
whole, so that its input is all that stays of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel

Run = Callable[..., Any]
"""(module or function, tensors …) -> its result; keeps less than calling it would"""


class _RunAgain(TransformerSpatioTemporalModel):
    """The same layers; while checkpointing is on, a call goes through ``_gradient_checkpointing_func`` as a whole."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        image_only_indicator: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        if not (torch.is_grad_enabled() and self.gradient_checkpointing):
            return super().forward(hidden_states, encoder_hidden_states, image_only_indicator, return_dict)
        return self._gradient_checkpointing_func(
            self._inside, hidden_states, encoder_hidden_states, image_only_indicator, return_dict
        )

    def _inside(self, *arguments: Any) -> Any:
        self.gradient_checkpointing = False  # or its spatial block would run a third time
        try:
            return super().forward(*arguments)
        finally:
            self.gradient_checkpointing = True


def checkpoint_activations(unet: Any, run: Run | None = None) -> None:
    """Have a UNet of any kind keep its blocks' inputs alone, and run the blocks again in the backward pass.

    Results and gradients are the same. Names, weights and what ``save_pretrained`` writes do not change;
    ``unet.disable_gradient_checkpointing()`` switches it off.

    Args:
        unet: a diffusers UNet.
        run: in place of torch's checkpointing.
    """
    for module in unet.modules():
        if type(module) is TransformerSpatioTemporalModel:
            module.__class__ = _RunAgain  # an attribute less, a hook less: copies and pickles know nothing of it
    unet.enable_gradient_checkpointing(run)
