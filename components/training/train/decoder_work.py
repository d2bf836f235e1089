"""The decoder's finetuning as a run's work: frames and their latents in, a model with another decoder out."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...common.block_cache import BlockCache
from ...common.lpips import load_lpips
from ...common.storage import DataRoot
from ...common.storage_directory import DirectoryRoot
from ...common.video import encode_mp4
from ...diffusion.autoencoder import load_autoencoder, to_unit_range
from ...diffusion.import_model import open_model
from ...diffusion.model_directory import VideoModel, save_model
from ...diffusion.temporal_decoder import DecoderFinetuning, with_temporal_decoder
from .data import Gathering
from .datasets import read_datasets
from .draws import Draw, Plan, middle_draw
from .live import LiveSource
from .signals import Interrupted

if TYPE_CHECKING:
    from .engine import Engine
    from .job import Job

SECTION = "train_decoder.losses"
FIGURES = ("mean", "absolute", "psnr_db", "frame_difference")


@dataclass(frozen=True)
class FrameBatch:
    """Draws of one bucket with their frames, uint8 [F, H, W, 3] each."""

    draws: Sequence[Draw]
    frames: list[np.ndarray]


class DecoderObjective:
    """The losses of draws: what ``DecoderFinetuning`` tells of their latents and frames.

    Args:
        source: gives frames, and encodes them.
        engine: around the network.
        device: where to compute.
        adversarial_from: the step from which decoder and discriminator learn from each other.
    """

    def __init__(self, source: LiveSource, engine: Engine, device: torch.device, adversarial_from: int) -> None:
        self.source, self.engine, self.device = source, engine, device
        self.adversarial_from = adversarial_from

    def read(self, draws: Sequence[Draw]) -> FrameBatch:
        """Decode the draws' windows."""
        return FrameBatch(draws, [self.source.frames(draw) for draw in draws])

    def losses_of(self, batch: FrameBatch) -> torch.Tensor:
        """The losses of draws that have been read, [B]."""
        adversarial = self.engine.step >= self.adversarial_from
        return self.engine.deepspeed(*self.tensors(batch), adversarial=adversarial)[1]

    def tensors(self, batch: FrameBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents as the decoder takes them [B, F, c, h, w], and frames from -1 to 1 [B, F, 3, H, W]."""
        scale = self.source.model.vae.config.scaling_factor
        pairs = zip(batch.draws, batch.frames, strict=True)
        latents_BFchw = torch.from_numpy(np.stack([self.source.encoded(draw, frames) for draw, frames in pairs]))
        frames_BFCHW = torch.stack([to_unit_range(frames_FHWC) for frames_FHWC in batch.frames])
        return latents_BFchw.to(self.device) / scale, frames_BFCHW.to(self.device)


class DecoderWork:
    """A decoder that learns from videos; the rest of its model is neither read nor changed until it is written.

    Raises:
        BadInputError: no samples to train on, or an autoencoder that cannot be finetuned.
    """

    objective: DecoderObjective

    def __init__(self, job: Job) -> None:
        assert job.init is not None
        self.job, self.settings = job, job.settings
        losses = self.settings.losses
        datasets = read_datasets(job.samples, job.stage, self.settings)
        torch.manual_seed(self.settings.seed)  # the discriminator is the same in every process
        self.vae = with_temporal_decoder(load_autoencoder(job.init / "vae"))
        root = DataRoot.open(job.root)
        remote = not isinstance(root, DirectoryRoot)
        cache = BlockCache(root.scratch("blocks"), int(self.settings.cache_gib * 2**30)) if remote else None
        model = VideoModel("text_to_video", None, self.vae)
        self.train, self.held_out = (
            LiveSource(root, rows, Gathering.of(job.stage, self.settings, training), cache, model)
            for rows, training in ((datasets.train, True), (datasets.held_out, False))
        )
        self.plan = Plan(self.settings, list(zip(datasets.dataset, self.train.buckets, strict=True)), datasets.weights)
        perceptual = None
        if losses.perceptual_weight:
            device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else "cpu"
            perceptual = load_lpips(losses.lpips_backbone, losses.lpips_heads, device, SECTION)
        self.net = DecoderFinetuning(deepcopy(self.vae.decoder), losses, perceptual)  # the other one stays as it was

    def attach(self, engine: Engine, device: torch.device) -> None:
        self.engine, self.device = engine, device
        self.vae.to(device)
        self.objective = DecoderObjective(self.train, engine, device, self.settings.losses.adversarial_from)
        self.judge = DecoderObjective(self.held_out, engine, device, 0)

    def held_out_loss(self, rank: int, processes: int, interrupted: Callable[[], bool]) -> dict[str, Any] | None:
        """Means over held-out clips: "mean" of the loss, "absolute" error, PSNR, and the error of frame differences.

        The last is |(x'(t+1) - x'(t)) - (x(t+1) - x(t))|, in levels of 255: what flickers has much of it.
        """
        count = min(len(self.held_out.rows), self.settings.held_out_samples)
        if not count:
            return None
        chosen = sorted({round(place) for place in np.linspace(0, len(self.held_out.rows) - 1, count)})
        share = -(-len(chosen) // processes)
        sums = torch.zeros(len(FIGURES) + 1, dtype=torch.float64, device=self.device)
        for place in range(rank * share, (rank + 1) * share):
            if interrupted():
                raise Interrupted
            if place < len(chosen):
                figures = self._figures(chosen[place])
                sums += torch.tensor([*figures, 1.0], dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(sums)
        found = dict(zip(FIGURES, (sums[:-1] / sums[-1]).tolist(), strict=True))
        return {**found, "sigmas": [], "loss": [], "samples": len(chosen), "draws": len(chosen)}

    def _figures(self, row: int) -> tuple[float, ...]:
        true_FCHW, made_FCHW, loss, absolute = self._decoded(self.held_out, row)
        apart_FCHW = made_FCHW.clamp(-1, 1) - true_FCHW
        psnr_db = -10 * math.log10(max(float((apart_FCHW / 2).square().mean()), 1e-10))
        return loss, absolute, psnr_db, float(apart_FCHW.diff(dim=0).abs().mean()) * 127.5

    def _decoded(self, source: LiveSource, row: int) -> tuple[torch.Tensor, torch.Tensor, float, float]:
        """The true frames of a clip's middle window and the decoded ones, [F, 3, H, W], with loss and error."""
        objective = self.judge if source is self.held_out else self.objective
        latents, true = objective.tensors(objective.read([middle_draw(row)]))
        with torch.no_grad():
            made, loss_B, absolute_B = self.engine.deepspeed(latents, true)
        return true[0], made[0], float(loss_B[0]), float(absolute_B[0])

    def write_samples(self, folder: Path, rank: int, processes: int) -> None:
        """``sample_<i>.mp4``: the true clip beside the decoded one; and frames for the grid, the true ones above."""
        source = self.held_out if self.held_out.rows else self.train
        for index in range(rank, min(self.settings.sample_count, len(source.rows)), processes):
            true_FCHW, made_FCHW, *_ = self._decoded(source, index)
            pair = [_to_uint8(frames) for frames in (true_FCHW, made_FCHW)]
            folder.mkdir(parents=True, exist_ok=True)
            np.save(folder / f"sample_{index}.npy", np.concatenate(pair, axis=1))
            video = encode_mp4(np.concatenate(pair, axis=2), source.fps(middle_draw(index)))
            (folder / f"sample_{index}.mp4").write_bytes(video)

    def save(self, weights: dict[str, torch.Tensor], result: dict[str, Any], held_out: float | None) -> None:
        job = self.job
        assert job.init is not None
        model = open_model(job.init)
        vae = type(self.vae).from_config(self.vae.config)
        kept = {name: t for name, t in self.vae.cpu().state_dict().items() if not name.startswith("decoder.")}
        vae.load_state_dict(kept | {name: t for name, t in weights.items() if name.startswith("decoder.")})
        before, after = result["before"], result["after"]
        told = {
            **job.card,
            "steps": result["handed_on"],
            "metrics": {when: {name: found[name] for name in FIGURES} if found else None
                        for when, found in (("held_out_before", before), ("held_out_after", after))},
        }  # fmt: skip
        parent = {"stage": model.card.get("stage"), "tree": job.card["init"]}
        parents = [*model.card.get("parents", []), parent]
        model.vae, model.card = vae, {**model.card, "decoder": told, "parents": parents}
        partial = job.out.with_name(job.out.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        save_model(model, partial)
        shutil.rmtree(job.out, ignore_errors=True)
        partial.rename(job.out)


def _to_uint8(frames_FCHW: torch.Tensor) -> np.ndarray:
    """Frames from -1 to 1 as uint8 [F, H, W, 3]."""
    levels = ((frames_FCHW / 2 + 0.5).clamp(0, 1) * 255).round().to("cpu", torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().numpy()
