"""Train the small autoencoder that ships: ``python -m svdflow.diffusion.train_autoencoder FOOTAGE…``.

The learning starts from principal components: see ``autoencoder_start``.
Legend: B batch, C channels, H, W.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLTemporalDecoder
from PIL import Image

from ..common.errors import BadInputError
from ..common.video import decode
from .autoencoder import write_compact
from .autoencoder_start import (
    LATENT_NOISE,
    TRAINED_EPSILON,
    build_autoencoder,
    fold,
    skip_identities,
    skipped_in_training,
    trunk_norms,
    trunk_only,
)

LATENT_PENALTY = 1e-3
CHARBONNIER = 0.05
CROP_PX = 64
SHORT_SIDE_PX = (128, 192)
STORED_SHORT_SIDE_PX = 192
GRADIENT_WEIGHT = 0.1
SAVE_EVERY_S = 240
TRUNK_LR = 2e-3
RESIDUAL_LR = 4e-4  # a higher rate loses what the trunk has learned
BATCH = 8
FILE_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi")
HELD_OUT_RANGE = (0.4, 0.6)  # of every video
HELD_OUT_GAP = 0.02


@dataclass
class Footage:
    """Frames to learn from and frames to measure on, uint8 RGB [H, W, 3], short side at most STORED_SHORT_SIDE_PX."""

    train: list[np.ndarray] = field(default_factory=list)
    held_out: dict[str, list[np.ndarray]] = field(default_factory=dict)


def read_footage(directories: list[Path], held_out_videos: set[str], every: int = 2) -> Footage:
    """Decode folders of videos; those in ``held_out_videos`` (stems) and a fifth of every other are never trained on.

    Raises:
        BadInputError: there is no video, or one cannot be read.
    """
    footage = Footage()
    paths = sorted(p for d in directories for p in d.iterdir() if p.suffix.lower() in FILE_SUFFIXES)
    if not paths:
        raise BadInputError(f"{', '.join(map(str, directories))}: no video there to train the autoencoder on")
    for path in paths:
        frames = [_shrink(frame.rgb) for frame in decode(path) if frame.index % every == 0]
        start, stop = (int(round(x * len(frames))) for x in HELD_OUT_RANGE)
        gap = math.ceil(HELD_OUT_GAP * len(frames))
        if path.stem in held_out_videos:
            footage.held_out[path.stem] = frames
        else:
            footage.held_out[path.stem] = frames[start:stop]
            footage.train += frames[: max(start - gap, 0)] + frames[stop + gap :]
    return footage


def _shrink(rgb_HWC: np.ndarray) -> np.ndarray:
    height, width = rgb_HWC.shape[:2]
    scale = STORED_SHORT_SIDE_PX / min(height, width)
    if scale >= 1:
        return rgb_HWC
    return np.asarray(
        Image.fromarray(rgb_HWC).resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    )


def random_crops(frames: list[np.ndarray], count: int, rng: np.random.Generator) -> torch.Tensor:
    """Crops in [-1, 1], [B, C, H, W], at the scale of 128 to 192 px short sides; flipped and recoloured by chance."""
    crops = np.empty((count, CROP_PX, CROP_PX, 3), np.float32)
    for index in range(count):
        rgb = frames[rng.integers(len(frames))]
        height, width = rgb.shape[:2]
        side = min(round(CROP_PX * min(height, width) / rng.uniform(*SHORT_SIDE_PX)), height, width)
        top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
        crop = Image.fromarray(rgb[top : top + side, left : left + side])
        crops[index] = np.asarray(crop.resize((CROP_PX, CROP_PX), Image.Resampling.BICUBIC), np.float32) / 127.5 - 1
        if rng.random() < 0.5:
            crops[index] = crops[index, :, ::-1]
        if rng.random() < 0.5:
            contrast, shift = rng.uniform(0.7, 1.2), rng.uniform(-0.2, 0.2, 3)
            crops[index] = np.clip(crops[index][..., rng.permutation(3)] * contrast + shift, -1, 1)
    return torch.from_numpy(crops).permute(0, 3, 1, 2).contiguous()


def psnr_db(a_uint8: np.ndarray, b_uint8: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 arrays over all their values, in dB."""
    mse = np.mean((a_uint8.astype(np.float64) - b_uint8.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / max(float(mse), 1e-9)))


def down_and_up(frames_FHWC: np.ndarray, factor: int = 8) -> np.ndarray:
    """The baseline: antialiased bicubic reduction by ``factor`` and back."""
    height, width = frames_FHWC.shape[1:3]
    small = [
        Image.fromarray(f).resize((width // factor, height // factor), Image.Resampling.BICUBIC) for f in frames_FHWC
    ]
    return np.stack([np.asarray(s.resize((width, height), Image.Resampling.BICUBIC)) for s in small])


def held_out_crops(frames: list[np.ndarray], count: int) -> np.ndarray:
    """Centre squares of 128×128 px, uint8 [F, H, W, C], evenly spread over the frames."""
    picked = []
    for index in np.unique(np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int)):
        rgb = frames[index]
        side = min(rgb.shape[:2])
        top, left = (rgb.shape[0] - side) // 2, (rgb.shape[1] - side) // 2
        square = Image.fromarray(rgb[top : top + side, left : left + side])
        picked.append(np.asarray(square.resize((128, 128), Image.Resampling.BICUBIC)))
    return np.stack(picked)


@torch.no_grad()
def measure(
    vae: AutoencoderKLTemporalDecoder, held_out: dict[str, list[np.ndarray]], count: int = 4
) -> dict[str, dict[str, float]]:
    """PSNR in dB of the autoencoder and of the baseline for each held-out video, and their mean."""
    figures: dict[str, dict[str, float]] = {}
    for name, frames in held_out.items():
        if not frames:
            continue
        crops = held_out_crops(frames, count)
        x_BCHW = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 127.5 - 1
        y_BCHW = torch.cat([vae.decode(vae.encode(x[None]).latent_dist.mode(), num_frames=1).sample for x in x_BCHW])
        y_FHWC = ((y_BCHW.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        figures[name] = {
            "psnr_db": round(psnr_db(crops, y_FHWC), 2),
            "bicubic_db": round(psnr_db(crops, down_and_up(crops)), 2),
        }
    figures["mean"] = {
        key: round(float(np.mean([f[key] for f in figures.values()])), 2) for key in ("psnr_db", "bicubic_db")
    }
    return figures


@torch.no_grad()
def latent_std(vae: AutoencoderKLTemporalDecoder, frames: list[np.ndarray], rng: np.random.Generator) -> float:
    """Standard deviation of the posterior means over random crops."""
    return float(torch.cat([vae.encode(random_crops(frames, 64, rng)).latent_dist.mode() for _ in range(2)]).std())


def train(footage: Footage, out: Path, minutes: float, residual_minutes: float, seed: int) -> dict[str, Any]:
    """Train the trunk, then the residual blocks with it, each for a span of wall time; writes ``out`` now and then."""
    rng = np.random.default_rng(seed)
    patches = (
        random_crops(footage.train, 512, rng).unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    )
    vae = build_autoencoder(patches, seed)
    skip_identities(vae)
    for norm in trunk_norms(vae):
        norm.eps = TRAINED_EPSILON
    skipped = {id(p) for module in skipped_in_training(vae) for p in module.parameters()}
    fixed = (
        vae.decoder.time_conv_out.weight,
        vae.decoder.time_conv_out.bias,
        vae.quant_conv.weight,
        vae.quant_conv.bias,
    )
    mixing = [p for n, p in vae.named_parameters() if n.endswith("mix_factor")]
    skipped |= {id(p) for p in (*fixed, *mixing)}
    learned = [p for p in vae.parameters() if id(p) not in skipped]
    facts: dict[str, Any] = {"seed": seed, "batch": BATCH}
    with trunk_only(vae):
        facts["trunk_steps"] = _descend(vae, learned, footage, rng, 60 * minutes, TRUNK_LR, lambda step: None)
    card = save(vae, footage, out, facts)
    print(card, flush=True)
    if residual_minutes:

        def on_save(step: int) -> None:
            print(save(vae, footage, out, {**facts, "steps": step}), flush=True)

        facts["steps"] = _descend(vae, learned, footage, rng, 60 * residual_minutes, RESIDUAL_LR, on_save)
        card = save(vae, footage, out, facts)
    return card


def _descend(
    vae: AutoencoderKLTemporalDecoder,
    learned: list[torch.nn.Parameter],
    footage: Footage,
    rng: np.random.Generator,
    seconds: float,
    lr: float,
    on_save: Callable[[int], None],
) -> int:
    """Learn for a span of wall time; returns the steps taken."""
    optimizer = torch.optim.AdamW(learned, lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
    started, saved, step = time.monotonic(), 0.0, 0
    while (elapsed := time.monotonic() - started) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 100) * max(0.02, 0.5 * (1 + math.cos(math.pi * elapsed / seconds)))
        x_BCHW = random_crops(footage.train, BATCH, rng)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mean_BCHW = vae.encode(x_BCHW).latent_dist.mode().float()
            y_BCHW = vae.decode(mean_BCHW + LATENT_NOISE * torch.randn_like(mean_BCHW), num_frames=1).sample
        error_BCHW = y_BCHW.float() - x_BCHW
        loss = (error_BCHW.square() + CHARBONNIER**2).sqrt().mean()
        for dimension in (2, 3):
            loss = loss + GRADIENT_WEIGHT * torch.diff(error_BCHW, dim=dimension).abs().mean()
        (loss + LATENT_PENALTY * mean_BCHW.square().mean()).backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % 100 == 0:
            psnr = -10 * math.log10(error_BCHW.detach().square().mean().item() / 4)
            print(f"{elapsed:.0f} s step {step} loss {loss.item():.4f} batch PSNR {psnr:.2f}", flush=True)
        if elapsed - saved > SAVE_EVERY_S:
            saved = elapsed
            on_save(step)
    return step


def save(trained: AutoencoderKLTemporalDecoder, footage: Footage, out: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Write the autoencoder in half precision, and beside it the figures of the weights as stored."""
    vae = copy.deepcopy(trained)
    fold(vae)
    for module in vae.modules():
        module.__dict__.pop("forward", None)  # measure the architecture as diffusers runs it, nothing skipped
    vae.load_state_dict({name: tensor.half().float() for name, tensor in vae.state_dict().items()})
    std = latent_std(vae, footage.train, np.random.default_rng(0))
    vae.register_to_config(scaling_factor=round(1 / std, 5))
    parameters = write_compact(vae, out)
    card = {
        **facts,
        "stored_parameters": parameters,
        "latent_std": round(std, 4),
        "held_out": measure(vae, footage.held_out),
    }
    (out / "training.json").write_text(json.dumps(card, indent=1, sort_keys=True) + "\n")
    return card


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("footage", nargs="+", type=Path, help="folders of videos")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "weights" / "autoencoder")
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--hold-out", action="append", default=[], help="stem of a video to measure on only; repeat for more"
    )
    parser.add_argument("--residual-minutes", type=float, default=0.0, help="then train the residual blocks as well")
    arguments = parser.parse_args()
    footage = read_footage(arguments.footage, set(arguments.hold_out))
    print(f"{len(footage.train)} frames to learn from, {sum(map(len, footage.held_out.values()))} held out", flush=True)
    train(footage, arguments.out, arguments.minutes, arguments.residual_minutes, arguments.seed)


if __name__ == "__main__":
    main()
