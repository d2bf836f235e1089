"""What a run trains, behind one interface: the trainer around it knows steps, checkpoints and logs, and no model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from .data import SampleSource
from .draws import Draw, Plan
from .held_out import held_out_loss
from .model import prepare_model, save_trained
from .objective import Objective
from .samples import write_samples

if TYPE_CHECKING:
    from .engine import Engine
    from .job import Job


class Losses(Protocol):
    """The losses of draws, read by one thread and computed by another."""

    def read(self, draws: Sequence[Draw]) -> Any:
        """What the losses of draws of one bucket are computed on, in main memory."""

    def losses_of(self, batch: Any) -> torch.Tensor:
        """The losses of draws that have been read, [B]."""


class Work(Protocol):
    """A network with its samples."""

    @property
    def net(self) -> torch.nn.Module:
        """What the engine trains."""

    @property
    def train(self) -> SampleSource:
        """Samples to learn from."""

    @property
    def held_out(self) -> SampleSource:
        """Samples to judge by."""

    @property
    def plan(self) -> Plan:
        """Which draws each step takes."""

    @property
    def objective(self) -> Losses:
        """The losses of draws; there once the engine is."""

    def attach(self, engine: Engine, device: torch.device) -> None:
        """Take the engine around ``net``, through which all computing goes from here on."""

    def held_out_loss(self, rank: int, processes: int, interrupted: Callable[[], bool]) -> dict[str, Any] | None:
        """A loss that nothing but the weights makes a difference to: "mean", "sigmas" and "loss" at each of them.

        None without held-out samples. All processes call it together.

        Raises:
            Interrupted: ``interrupted`` said so.
        """

    def write_samples(self, folder: Path, rank: int, processes: int) -> None:
        """What the network makes of a few samples. All processes call it together."""

    def save(self, weights: dict[str, torch.Tensor], result: dict[str, Any], held_out: float | None) -> None:
        """Write the model directory with these weights of ``net``, whole or not at all."""


def open_work(job: Job) -> Work:
    """The work of a job, before its first step.

    Raises:
        BadInputError: samples or start cannot be used.
    """
    if job.stage == "decoder":
        from .decoder_work import DecoderWork

        return DecoderWork(job)
    return DiffusionWork(job)


class DiffusionWork:
    """A U-Net that learns to denoise latents."""

    objective: Objective

    def __init__(self, job: Job) -> None:
        self.job, self.settings = job, job.settings
        self.model, self.train, self.held_out, self.plan = prepare_model(job)
        self.net = self.model.unet

    def attach(self, engine: Engine, device: torch.device) -> None:
        self.engine, self.device = engine, device
        self.objective = Objective(self.model, self.train, engine.net, device, self.settings.offset_noise)
        self.judge = Objective(self.model, self.held_out, engine.net, device)

    def held_out_loss(self, rank: int, processes: int, interrupted: Callable[[], bool]) -> dict[str, Any] | None:
        return held_out_loss(self.judge, self.settings, rank, processes, interrupted)

    def write_samples(self, folder: Path, rank: int, processes: int) -> None:
        source = self.held_out if self.held_out.rows else self.train
        write_samples(folder, self.model, self.engine.net, self.device, source, self.settings, rank, processes)

    def save(self, weights: dict[str, torch.Tensor], result: dict[str, Any], held_out: float | None) -> None:
        save_trained(self.job, self.model, self.train, weights, result, held_out)
