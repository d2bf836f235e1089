"""The training loss of each kind of model: which tensors of a sample go where, and the loss on them.

Legend: B batch, F frames, N tokens, D context width, K scalars, C channels, H W pixel sides, c h w latents'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ...diffusion import discrete, edm
from ...diffusion.conditioning import Conditions, end_latents, frame_latents, vector_conditioning
from ...diffusion.model_directory import VideoModel
from ...diffusion.motion import MotionCalibration
from ...diffusion.network import ModelFn, unet_model_fn
from .data import Reading, SampleSource
from .draws import Draw, frame_noise, noise, noise_offset

UNKNOWN_MOTION = 127  # the released models' default, for samples without a motion score (orbits)


def bucket_of(calibration: MotionCalibration | None, score: float | None) -> int:
    """The motion bucket that a sample is told with, by its motion score as annotated."""
    if calibration is None or score is None or not math.isfinite(score):
        return UNKNOWN_MOTION
    return calibration.apply(score)


class _Network:
    """The wrapped network under the UNet's own configuration, by which ``unet_model_fn`` tells its kind."""

    def __init__(self, call: Callable[..., Any], config: Any) -> None:
        self.call, self.config = call, config

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(*args, **kwargs)


@dataclass(frozen=True)
class Batch:
    """What the losses of some draws are computed on, as it is read: in main memory, with what no model is needed for.

    Attributes:
        draws: the samples.
        readings: of each.
        noises: of each, [F, C, h, w]; None for samples that are yet to be encoded.
        frame_noises: of each conditioning frame, [3, H, W], in interpolation of the latents at both ends, [2, C, h, w];
            None for kinds that have none, and for samples that are yet to be encoded.
    """

    draws: Sequence[Draw]
    readings: list[Reading]
    noises: list[np.ndarray | None]
    frame_noises: list[np.ndarray | None]


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

    def read(self, draws: Sequence[Draw]) -> Batch:
        """Read what the losses of draws of one bucket are computed on. Several threads may do so at the same time."""
        readings = [self.source.read(draw, self.kind) for draw in draws]
        return self._with_noises(Batch(draws, readings, [None] * len(draws), [None] * len(draws)))

    def losses(self, draws: Sequence[Draw]) -> torch.Tensor:
        """The loss per draw, [B]: lambda(sigma) |D - x0|^2, or a discrete schedule's plain error of the network."""
        if self._one_by_one:
            return torch.cat([self.losses_of(self.read([draw])) for draw in draws])
        return self.losses_of(self.read(draws))

    @property
    def _one_by_one(self) -> bool:
        # Held-out draws of several buckets come as they fall. Each goes alone then, whatever its neighbours, so that
        # processes call the model equally often, as ZeRO 3 needs it. Micro-batches of training are of one bucket.
        return not torch.is_grad_enabled() and len(set(self.source.buckets)) > 1

    def losses_of(self, batch: Batch) -> torch.Tensor:
        """The losses of draws that have been read, [B]."""
        batch = self._encoded(batch)
        x0_BFchw, noise_BFchw, sigma_B = self._noised(batch)
        conditions = self._conditions(batch, x0_BFchw)
        # Images in a video stage are batches of one frame: the temporal layers have no part in them.
        images = self.kind != "image" and x0_BFchw.shape[1] == 1
        model_fn = unet_model_fn(
            self.net,
            conditions.context_BND,
            conditions.vector_BK,
            conditions.concat_BFchw,
            torch.ones(len(batch.draws), dtype=torch.bool, device=self.device) if images else None,
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
        x0_BFchw, noise_BFchw, sigma_B = self._noised(self._encoded(self.read(draws)))
        network = self._loss_of(lambda x, _: torch.zeros_like(x), x0_BFchw, noise_BFchw, sigma_B)
        # of D = 0: v = x / (c_in sigma) has the error lambda |x0|^2, the noise x / sigma has |x0|^2 / sigma^2
        wide = self.parameterisation.prediction == "v_prediction"
        weight_B = edm.loss_weight(sigma_B) if wide else 1 / sigma_B.square()
        return network, weight_B * x0_BFchw.square().flatten(1).mean(1)

    def _encoded(self, batch: Batch) -> Batch:
        """A batch with nothing left to be encoded by the model's own encoders."""
        if all(reading.frames is None for reading in batch.readings):
            return batch
        readings = [self.source.encode(d, r, self.kind) for d, r in zip(batch.draws, batch.readings, strict=True)]
        return self._with_noises(replace(batch, readings=readings))

    def _with_noises(self, batch: Batch) -> Batch:
        """A batch with the noise of all that there is by now."""
        draws, readings = batch.draws, batch.readings
        noises = [
            self._noise(draw, reading.latents.shape) if known is None and reading.latents is not None else known
            for draw, reading, known in zip(draws, readings, batch.noises, strict=True)
        ]
        frame_noises = [
            frame_noise(draw, shape) if known is None and (shape := self._frame_shape(reading)) else known
            for draw, reading, known in zip(draws, readings, batch.frame_noises, strict=True)
        ]
        return replace(batch, noises=noises, frame_noises=frame_noises)

    def _frame_shape(self, reading: Reading) -> tuple[int, ...] | None:
        """The shape of the noise on what is given of a sample's frames."""
        if self.kind == "interpolation" and reading.latents is not None:
            return (2, *reading.latents.shape[1:])
        return (3, *reading.picture.shape[:2]) if reading.picture is not None else None

    def _noised(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return (
            self._tensor(np.stack([reading.latents for reading in batch.readings])),  # type: ignore[misc]
            self._tensor(np.stack(batch.noises)),  # type: ignore[arg-type]
            self._tensor(np.array([draw.sigma for draw in batch.draws])),
        )

    def _noise(self, draw: Draw, shape: Sequence[int]) -> np.ndarray:
        if not self.offset_noise:
            return noise(draw, shape)
        return noise(draw, shape) + self.offset_noise * noise_offset(draw, shape[1])[:, None, None]

    def _conditions(self, batch: Batch, x0_BFchw: torch.Tensor) -> Conditions:
        draws, rows = batch.draws, [self.source.rows[draw.row] for draw in batch.draws]
        by_text = self.kind in ("image", "text_to_video")
        dropped = [draw.drop_text if by_text else draw.drop_embedding for draw in draws]
        contexts = [np.asarray(reading.context) for reading in batch.readings]
        context_BND = np.stack([context * (not gone) for context, gone in zip(contexts, dropped, strict=True)])
        if self.kind == "image":
            return Conditions(self._tensor(context_BND).to(self.dtype))
        vector_BK = vector_conditioning(
            self.kind,
            fps=[self.source.fps(draw) for draw in draws],
            motion_bucket=[bucket_of(self.calibration, row["motion_score"]) for row in rows],
            noise_aug=[draw.augment_sigma for draw in draws],
            elevation_deg=[row["elevation_deg"] for row in rows] if self.kind == "multi_view" else None,
        )
        vector_BK = self._tensor(vector_BK.numpy())
        return Conditions(self._tensor(context_BND).to(self.dtype), vector_BK, self._joined(batch, x0_BFchw))

    def _joined(self, batch: Batch, x0_BFchw: torch.Tensor) -> torch.Tensor | None:
        """What is joined to the network's input, [B, F, C, h, w]; zeros where it is dropped."""
        if self.kind in ("image", "text_to_video"):
            return None
        kept_B = torch.tensor([not draw.drop_frame for draw in batch.draws], device=self.device).view(-1, 1, 1, 1, 1)
        if self.kind != "interpolation":
            latent_B1chw = (self._frame_latents(batch)[:, None] * kept_B).to(self.dtype)
            return latent_B1chw.expand(-1, x0_BFchw.shape[1], -1, -1, -1)
        noise_B2chw = self._tensor(np.stack(batch.frame_noises))  # type: ignore[arg-type]
        strength_B = [draw.augment_sigma for draw in batch.draws]
        joined_BFChw = end_latents(x0_BFchw[:, [0, -1]], noise_B2chw, strength_B, x0_BFchw.shape[1])
        return (joined_BFChw * kept_B).to(self.dtype)

    def _frame_latents(self, batch: Batch) -> torch.Tensor:
        """The conditioning frame, noised in pixel space and encoded (not scaled), [B, c, h, w]."""
        return frame_latents(
            self.vae,
            np.stack([reading.picture for reading in batch.readings]),  # type: ignore[misc]
            torch.from_numpy(np.stack(batch.frame_noises)),  # type: ignore[arg-type]
            [draw.augment_sigma for draw in batch.draws],
        )

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).to(self.device)
