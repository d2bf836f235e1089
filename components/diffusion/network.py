"""The network as samplers and losses see it: a function of a noisy latent and a noise label, its conditions bound.

Legend: B batch, F frames, C channels, H and W latent sides, N tokens, D context width, K scalars.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

ModelFn = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(scaled noisy latent [B, F, C, H, W], noise label [B]) -> prediction [B, F, C, H, W]"""


def unet_model_fn(
    unet: Any,
    context_BND: torch.Tensor,
    vector_BK: torch.Tensor | None = None,
    concat_BFCHW: torch.Tensor | None = None,
    image_only_B: torch.Tensor | None = None,
) -> ModelFn:
    """Bind a diffusers UNet and its conditions; an image UNet sees every frame by itself.

    Args:
        unet: UNet2DConditionModel or UNetSpatioTemporalConditionModel, also inside a training engine.
        context_BND: text token states or one image embedding.
        vector_BK: fps_id, motion bucket and so on (settings.VECTOR_CONDITIONS); None means an image UNet.
        concat_BFCHW: latents joined to the input's channels, for image-to-video.
        image_only_B: true for the samples whose frames are unrelated images, in joint training of images and videos;
            the UNet must have been given ``image_only.allow_image_only``, as all that ``unet`` builds are.
    """

    def model_fn(x_BFCHW: torch.Tensor, label_B: torch.Tensor) -> torch.Tensor:
        frames = x_BFCHW.shape[1]
        if concat_BFCHW is not None:
            x_BFCHW = torch.cat([x_BFCHW, concat_BFCHW], dim=2)
        if vector_BK is not None:
            joint = {} if image_only_B is None else {"image_only_indicator": image_only_B[:, None].expand(-1, frames)}
            return unet(
                x_BFCHW,
                label_B,
                encoder_hidden_states=context_BND,
                added_time_ids=vector_BK,
                return_dict=False,
                **joint,
            )[0]
        flat = unet(
            x_BFCHW.flatten(0, 1),
            label_B.repeat_interleave(frames),
            encoder_hidden_states=context_BND.repeat_interleave(frames, dim=0),
            return_dict=False,
        )[0]
        return flat.unflatten(0, (-1, frames))

    return model_fn
