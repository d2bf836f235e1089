"""The held-out loss: fixed samples, noise levels and noise, so that nothing but the models makes a difference.

Beside the model's loss stands that of two predictors that know nothing: F = 0 (the network returns zero, so that D is
c_skip times the noisy latent) and D = 0 (the denoised latent is zero).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from .draws import Draw, held_out_draws, held_out_sigmas
from .settings import StageSettings
from .signals import Interrupted


class Judged(Protocol):
    """What is needed of an objective."""

    @property
    def samples(self) -> int:
        """How many samples there are."""

    def losses(self, draws: Sequence[Draw]) -> Any:
        """Weighted loss per draw, a tensor [B]."""

    def blind_losses(self, draws: Sequence[Draw]) -> tuple[Any, Any]:
        """The same of F = 0 and of D = 0."""


def held_out_loss(
    objective: Judged,
    settings: StageSettings,
    rank: int,
    processes: int,
    interrupted: Callable[[], bool] = lambda: False,
) -> dict[str, Any] | None:
    """The loss by noise level and overall, averaged over samples and noise draws; None without held-out samples.

    Every process takes its share; all of them get the whole result, and must call this together.

    Args:
        objective: gives the losses.
        settings: of the stage.
        rank: of this process.
        processes: how many there are.
        interrupted: asked before each chunk; all processes must get the same answer.

    Raises:
        Interrupted: the answer was yes.
    """
    import torch

    draws = held_out_draws(settings, objective.samples)
    if not draws:
        return None
    sums = np.zeros((4, settings.held_out_levels))  # model, F = 0, D = 0, count
    share = -(-len(draws) // processes)  # equal shares: at ZeRO 3 each process must call the model equally often
    mine = [(index, draws[min(index, len(draws) - 1)]) for index in range(rank * share, (rank + 1) * share)]
    with torch.no_grad():
        for start in range(0, share, settings.micro_batch):
            if interrupted():
                raise Interrupted
            chunk = mine[start : start + settings.micro_batch]
            batch = [draw for _, (_, draw) in chunk]
            columns = torch.stack([objective.losses(batch), *objective.blind_losses(batch)]).double().cpu().numpy()
            for place, (index, (level, _)) in enumerate(chunk):
                if index < len(draws):
                    sums[:3, level] += columns[:, place]
                    sums[3, level] += 1
    total = torch.from_numpy(sums)
    if torch.distributed.is_initialized() and torch.distributed.get_backend() == "nccl":
        total = total.cuda()
    torch.distributed.all_reduce(total)
    sums = total.cpu().numpy()
    by_level = sums[:3] / sums[3]
    return {
        "sigmas": held_out_sigmas(settings),
        "loss": by_level[0].tolist(),
        "zero_network": by_level[1].tolist(),
        "zero_output": by_level[2].tolist(),
        "mean": float(by_level[0].mean()),
        "zero_network_mean": float(by_level[1].mean()),
        "zero_output_mean": float(by_level[2].mean()),
        "samples": objective.samples,
        "draws": len(draws),
    }
