"""The network of frame interpolation: a video UNet that is given the first and the last frame of a clip (SVD D.5).

Legend: B batch, F frames, C channels, c h w of latents, N tokens, D context width, K scalars.

Its input has three parts: the noisy latents [c], the latents z that are given [c] and a mask [1], which is 1 where a
frame is given. Where it is not, z is a learned latent z_m, a parameter of the network's own: so it is split over
processes, averaged, saved and compiled as every other one, and nobody who calls the network has to know of it.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

import torch
from diffusers import UNetSpatioTemporalConditionModel


class InterpolationUNet(UNetSpatioTemporalConditionModel):
    """A UNetSpatioTemporalConditionModel with a latent for the frames that are not given.

    ``sample_size`` of its configuration is the height and width, or the one side, of that latent; at other sizes it is
    resampled (ours: the paper trains at one size). It starts at zero: so do the weights that see it, and they learn in
    the first step from the frames that are given, the latent through them from the second on. Zero is also what the
    released models are given in place of a frame that guidance takes away. A random start would be a pattern that has
    to be unlearned, and the mask already tells the two sorts of frames apart.
    """

    middle_latent: torch.nn.Parameter  # z_m [c, h, w]

    # diffusers reads off the signature what a configuration may hold
    @wraps(UNetSpatioTemporalConditionModel.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        side = self.config.sample_size
        height, width = (side, side) if isinstance(side, int) else side
        self.middle_latent = torch.nn.Parameter(torch.zeros(self.config.out_channels, height, width))

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        added_time_ids: torch.Tensor,
        return_dict: bool = True,
    ) -> Any:
        """As the class it extends.

        Args:
            sample: noisy latents, given latents (zeros where the mask is) and mask, [B, F, 2c + 1, h, w].
            timestep: noise label, [B] or a number.
            encoder_hidden_states: embeddings of the first and the last frame, [B, 2, D].
            added_time_ids: fps_id, motion bucket and noise augmentation, [B, K].
            return_dict: whether the result is diffusers' record, else a tuple.

        Returns:
            The prediction, [B, F, c, h, w].
        """
        channels = self.config.out_channels
        noisy_BFchw, given_BFchw, mask_BF1hw = sample.split((channels, channels, 1), dim=2)
        middle_chw = self._middle_at(sample.shape[-2], sample.shape[-1]).to(sample.dtype)
        z_BFchw = torch.where(mask_BF1hw > 0, given_BFchw, middle_chw)
        joined_BFChw = torch.cat([noisy_BFchw, z_BFchw, mask_BF1hw], dim=2)
        return super().forward(joined_BFChw, timestep, encoder_hidden_states, added_time_ids, return_dict)

    def _middle_at(self, height: int, width: int) -> torch.Tensor:
        if self.middle_latent.shape[1:] == (height, width):
            return self.middle_latent
        own_1chw = self.middle_latent[None].float()  # resampling with antialiasing is not there for 16 bits everywhere
        return torch.nn.functional.interpolate(own_1chw, (height, width), mode="bilinear", antialias=True)[0]
