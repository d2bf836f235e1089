"""The training loss of each kind of model: which tensors of a sample go where, and the loss on them.

Legend: B batch, F frames, N tokens, D context width, K scalars, C channels, H W pixel sides, c h w latents'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ...diffusion import discrete, edm
from ...diffusion.conditioning import Conditions, frame_latents, vector_conditioning
from ...diffusion.model_directory import VideoModel
from ...diffusion.motion import MotionCalibration
from ...diffusion.network import ModelFn, unet_model_fn
from .data import SampleSource
from .draws import Draw, frame_noise, noise, noise_offset

UNKNOWN_MOTION = 127  # the released models' default, for samples without a motion score (orbits)


class _Network:
    """The wrapped network under the UNet's own configuration, by which ``unet_model_fn`` tells its kind."""

    def __init__(self, call: Callable[..., Any], config: Any) -> None:
        self.call, self.config = call, config

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(*args, **kwargs)


class Objective:
    """Losses of draws under one model.

    Args:
        model: its kind says what the samples are asked for, its parameterisation which loss is theirs; its autoencoder
            encodes conditioning frames.
        source: of the samples.
        net: what is called in place of the model's UNet: the DeepSpeed engine around it.
        device: where to compute.
        offset_noise: deviation of what each channel's noise is shifted by; for discrete schedules.
    """

    def __init__(
        self,
        model: VideoModel,
        source: SampleSource,
        net: Callable[..., Any],
        device: torch.device,
        offset_noise: float = 0.0,
    ) -> None:
        self.kind, self.vae, self.source, self.device = model.kind, model.vae.to(device), source, device
        self.net = _Network(net, model.unet.config)
        self.dtype = model.unet.dtype
        self.parameterisation, self.offset_noise = model.parameterisation, offset_noise
        given = model.card.get("motion_calibration")
        self.calibration = MotionCalibration.from_dict(given) if given else None

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return len(self.source.rows)

    def losses(self, draws: Sequence[Draw]) -> torch.Tensor:
        """The loss per draw, [B]: lambda(sigma) |D - x0|^2, or a discrete schedule's plain error of the network."""
        if self._one_by_one:
            return torch.cat([self._losses([draw]) for draw in draws])
        return self._losses(draws)

    @property
    def _one_by_one(self) -> bool:
        # Held-out draws of several buckets come as they fall. Each goes alone then, whatever its neighbours, so that
        # processes call the model equally often, as ZeRO 3 needs it. Micro-batches of training are of one bucket.
        return not torch.is_grad_enabled() and len(set(self.source.buckets)) > 1

    def _losses(self, draws: Sequence[Draw]) -> torch.Tensor:
        x0_BFchw, noise_BFchw, sigma_B = self._noised(draws)
        conditions = self._conditions(draws, x0_BFchw.shape[1])
        # Images in a video stage are batches of one frame: the temporal layers have no part in them.
        images = self.kind != "image" and x0_BFchw.shape[1] == 1
        model_fn = unet_model_fn(
            self.net,
            conditions.context_BND,
            conditions.vector_BK,
            conditions.concat_BFchw,
            torch.ones(len(draws), dtype=torch.bool, device=self.device) if images else None,
        )
        return self._loss_of(model_fn, x0_BFchw, noise_BFchw, sigma_B)

    def _loss_of(
        self, model_fn: ModelFn, x0_BFchw: torch.Tensor, noise_BFchw: torch.Tensor, sigma_B: torch.Tensor
    ) -> torch.Tensor:
        told = self.parameterisation
        if told.schedule is None:
            return edm.training_loss(model_fn, x0_BFchw, noise_BFchw, sigma_B)
        timestep_B = told.schedule.nearest_timestep(sigma_B)
        return discrete.training_loss(
            model_fn, x0_BFchw, noise_BFchw, timestep_B, schedule=told.schedule, prediction=told.prediction
        )

    def mean_loss(self, draws: Sequence[Draw]) -> torch.Tensor:
        """The mean of ``losses``."""
        return self.losses(draws).mean()

    def blind_losses(self, draws: Sequence[Draw]) -> tuple[torch.Tensor, torch.Tensor]:
        """The same loss of the two predictors that know nothing: F = 0, and D = 0."""
        if self._one_by_one and len(draws) > 1:
            alone = [self.blind_losses([draw]) for draw in draws]
            return torch.cat([network for network, _ in alone]), torch.cat([output for _, output in alone])
        x0_BFchw, noise_BFchw, sigma_B = self._noised(draws)
        network = self._loss_of(lambda x, _: torch.zeros_like(x), x0_BFchw, noise_BFchw, sigma_B)
        # of D = 0: v = x / (c_in sigma) has the error lambda |x0|^2, the noise x / sigma has |x0|^2 / sigma^2
        wide = self.parameterisation.prediction == "v_prediction"
        weight_B = edm.loss_weight(sigma_B) if wide else 1 / sigma_B.square()
        return network, weight_B * x0_BFchw.square().flatten(1).mean(1)

    def _noised(self, draws: Sequence[Draw]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x0 = [self.source.latents(draw, single_frame=self.kind == "image") for draw in draws]
        noises = [self._noise(draw, latent.shape) for draw, latent in zip(draws, x0, strict=True)]
        return (
            self._tensor(np.stack(x0)),
            self._tensor(np.stack(noises)),
            self._tensor(np.array([d.sigma for d in draws])),
        )

    def _noise(self, draw: Draw, shape: Sequence[int]) -> np.ndarray:
        if not self.offset_noise:
            return noise(draw, shape)
        return noise(draw, shape) + self.offset_noise * noise_offset(draw, shape[1])[:, None, None]

    def _conditions(self, draws: Sequence[Draw], frames: int) -> Conditions:
        rows = [self.source.rows[draw.row] for draw in draws]
        if self.kind in ("image", "text_to_video"):
            context_BND = np.stack([self.source.text(draw) * (not draw.drop_text) for draw in draws])
        else:
            context_BND = np.stack([self.source.image(draw)[None] * (not draw.drop_embedding) for draw in draws])
        if self.kind == "image":
            return Conditions(self._tensor(context_BND).to(self.dtype))
        vector_BK = vector_conditioning(
            self.kind,
            fps=[self.source.fps(draw) for draw in draws],
            motion_bucket=[self._bucket(row["motion_score"]) for row in rows],
            noise_aug=[draw.augment_sigma for draw in draws],
            elevation_deg=[row["elevation_deg"] for row in rows] if self.kind == "multi_view" else None,
        )
        concat = self._frame_latents(draws, frames) if self.kind in ("image_to_video", "multi_view") else None
        return Conditions(self._tensor(context_BND).to(self.dtype), self._tensor(vector_BK.numpy()), concat)

    def _frame_latents(self, draws: Sequence[Draw], frames: int) -> torch.Tensor:
        """The conditioning frame, noised in pixel space and encoded (not scaled), [B, F, c, h, w]."""
        frames_BHWC = np.stack([self.source.picture(draw) for draw in draws])
        noise_BCHW = np.stack([frame_noise(draw, (3, *frames_BHWC.shape[1:3])) for draw in draws])
        latent_Bchw = frame_latents(
            self.vae, frames_BHWC, torch.from_numpy(noise_BCHW), [draw.augment_sigma for draw in draws]
        )
        kept_B = torch.tensor([not draw.drop_frame for draw in draws], device=self.device)
        return (latent_Bchw * kept_B.view(-1, 1, 1, 1)).to(self.dtype)[:, None].expand(-1, frames, -1, -1, -1)

    def _bucket(self, score: float | None) -> int:
        return UNKNOWN_MOTION if score is None or self.calibration is None else self.calibration.apply(score)

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).to(self.device)
