"""Train the small autoencoder that ships with svdflow: ``python -m svdflow.diffusion.train_autoencoder FOOTAGE… --minutes 60``.

The decoder's temporal layers are left as identities (their last convolutions are zero), so that it decodes frame by frame at
first and can be tuned on video later, as Align your Latents does. Legend: B batch, C channels, H, W.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLTemporalDecoder
from diffusers.models.resnet import SpatioTemporalResBlock
from PIL import Image
from torch.nn import functional as F

from ..common.errors import BadInputError
from ..common.video import decode

WIDTHS = (32, 32, 64, 32)  # multiples of 32: the decoder's norms have 32 groups
LATENT_CHANNELS = 8  # 4, as SVD has, keep too little at this size: see README
LATENT_NOISE = 0.1  # std of the posterior, held fixed: latents a diffusion model gets slightly wrong must still decode
LATENT_PENALTY = 1e-3
CHARBONNIER = 0.05
CROP_PX = 64
SHORT_SIDE_PX = (128, 192)
STORED_SHORT_SIDE_PX = 192
FILE_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi")
HELD_OUT_RANGE = (0.4, 0.6)  # of every video
HELD_OUT_GAP = 0.02


@dataclass
class Footage:
    """Frames to learn from and frames to measure on, uint8 RGB [H, W, 3]; the short side is at most STORED_SHORT_SIDE_PX."""

    train: list[np.ndarray] = field(default_factory=list)
    held_out: dict[str, list[np.ndarray]] = field(default_factory=dict)


def read_footage(directories: list[Path], held_out_videos: set[str], every: int = 2) -> Footage:
    """Decode folders of videos; a video named in ``held_out_videos`` (its stem) and a fifth of every other are never trained on.

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
    return np.asarray(Image.fromarray(rgb_HWC).resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC))


def random_crops(frames: list[np.ndarray], count: int, rng: np.random.Generator) -> torch.Tensor:
    """Crops in [-1, 1], [B, C, H, W], at the scale of frames whose short side is 128 to 192 px; flipped and recoloured by chance."""
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


def build_autoencoder(seed: int) -> AutoencoderKLTemporalDecoder:
    """The untrained autoencoder: residual branches start at zero, temporal layers are identities."""
    torch.manual_seed(seed)
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=WIDTHS,
        down_block_types=("DownEncoderBlock2D",) * len(WIDTHS),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        sample_size=128,
        force_upcast=False,
    )
    with torch.no_grad():
        for name, module in vae.named_modules():
            if name.endswith("conv2"):
                module.weight.zero_()
                module.bias.zero_()
        vae.quant_conv.weight[LATENT_CHANNELS:] = 0
        vae.quant_conv.bias[LATENT_CHANNELS:] = 2 * math.log(LATENT_NOISE)
        vae.decoder.time_conv_out.weight.zero_()
        vae.decoder.time_conv_out.weight[:, :, 1, 0, 0] = torch.eye(3)
        vae.decoder.time_conv_out.bias.zero_()
    return vae


def bypass_temporal_layers(vae: AutoencoderKLTemporalDecoder) -> None:
    """Skip the decoder's temporal layers: exact while they are identities, and a quarter faster."""
    for module in vae.decoder.modules():
        if isinstance(module, SpatioTemporalResBlock):
            spatial = module.spatial_res_block
            module.forward = lambda h, temb=None, image_only_indicator=None, spatial=spatial: spatial(h, temb)  # type: ignore[method-assign]


def psnr_db(a_uint8: np.ndarray, b_uint8: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 arrays over all their values, in dB."""
    mse = np.mean((a_uint8.astype(np.float64) - b_uint8.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / max(mse, 1e-9)))


def down_and_up(frames_FHWC: np.ndarray, factor: int = 8) -> np.ndarray:
    """The baseline: antialiased bicubic reduction by ``factor`` and back."""
    height, width = frames_FHWC.shape[1:3]
    small = [Image.fromarray(f).resize((width // factor, height // factor), Image.Resampling.BICUBIC) for f in frames_FHWC]
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
def measure(vae: AutoencoderKLTemporalDecoder, held_out: dict[str, list[np.ndarray]], count: int = 12) -> dict[str, dict[str, float]]:
    """PSNR in dB of the autoencoder and of the baseline for each held-out video, and their mean."""
    figures: dict[str, dict[str, float]] = {}
    for name, frames in held_out.items():
        if not frames:
            continue
        crops = held_out_crops(frames, count)
        x_BCHW = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 127.5 - 1
        y_BCHW = torch.cat([vae.decode(vae.encode(x[None]).latent_dist.mode(), num_frames=1).sample for x in x_BCHW])
        y_FHWC = ((y_BCHW.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        figures[name] = {"psnr_db": psnr_db(crops, y_FHWC), "bicubic_db": psnr_db(crops, down_and_up(crops))}
    figures["mean"] = {key: float(np.mean([f[key] for f in figures.values()])) for key in ("psnr_db", "bicubic_db")}
    return figures


@torch.no_grad()
def latent_std(vae: AutoencoderKLTemporalDecoder, frames: list[np.ndarray], rng: np.random.Generator) -> float:
    """Standard deviation of the posterior means over random crops."""
    return float(torch.cat([vae.encode(random_crops(frames, 32, rng)).latent_dist.mode() for _ in range(8)]).std())


def train(footage: Footage, out: Path, minutes: float, seed: int, batch: int = 8, lr: float = 2e-3) -> dict[str, Any]:
    """Train for a span of wall time; the learning rate falls along a half cosine. Writes ``out`` every few minutes and at the end."""
    rng = np.random.default_rng(seed)
    vae = build_autoencoder(seed)
    bypass_temporal_layers(vae)
    learned = [p for n, p in vae.named_parameters() if "temporal_res_block" not in n and "time_" not in n]
    optimizer = torch.optim.AdamW(learned, lr=lr, betas=(0.9, 0.99), weight_decay=1e-3)
    started, saved, step, running = time.monotonic(), 0.0, 0, 0.0
    while (share := (time.monotonic() - started) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 200) * max(0.01, 0.5 * (1 + math.cos(math.pi * share)))
        x_BCHW = random_crops(footage.train, batch, rng)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mean_BCHW = vae.encode(x_BCHW).latent_dist.mode().float()
            y_BCHW = vae.decode(mean_BCHW + LATENT_NOISE * torch.randn_like(mean_BCHW), num_frames=1).sample
        error_BCHW = y_BCHW.float() - x_BCHW
        loss = (error_BCHW.square() + CHARBONNIER**2).sqrt().mean()
        loss = loss + 0.5 * sum(torch.diff(error_BCHW, dim=d).abs().mean() for d in (2, 3)) * 0.2
        (loss + LATENT_PENALTY * mean_BCHW.square().mean()).backward()
        vae.quant_conv.weight.grad[LATENT_CHANNELS:] = 0  # type: ignore[index]
        vae.quant_conv.bias.grad[LATENT_CHANNELS:] = 0  # type: ignore[index]
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step, running = step + 1, 0.98 * running + 0.02 * float(loss.detach())
        if time.monotonic() - started - saved > 120:
            saved = time.monotonic() - started
            figures = save(vae, footage, out, seed, {"steps": step, "minutes": round(saved / 60, 1)})
            print(f"step {step} {saved:.0f}s loss {running:.4f} " + json.dumps(figures), flush=True)
    return save(vae, footage, out, seed, {"steps": step, "minutes": minutes})


def save(vae: AutoencoderKLTemporalDecoder, footage: Footage, out: Path, seed: int, facts: dict[str, Any]) -> dict[str, Any]:
    """Write the autoencoder as half-precision safetensors, with the figures of the stored (rounded) weights beside it."""
    std = latent_std(vae, footage.train, np.random.default_rng(seed))
    rounded = build_autoencoder(seed)
    rounded.load_state_dict({k: v.half().float() for k, v in vae.state_dict().items()})
    rounded.register_to_config(scaling_factor=round(1 / std, 5))
    bypass_temporal_layers(rounded)
    figures = measure(rounded, footage.held_out)
    rounded.half().save_pretrained(out, safe_serialization=True)
    parameters = sum(p.numel() for p in rounded.parameters())
    card = {**facts, "seed": seed, "parameters": parameters, "latent_std": round(std, 4), "held_out": figures}
    (out / "training.json").write_text(json.dumps(card, indent=1, sort_keys=True) + "\n")
    return figures


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("footage", nargs="+", type=Path, help="folders of videos")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "weights" / "autoencoder")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hold-out", action="append", default=[], help="stem of a video to measure on only; repeat for more")
    parser.add_argument("--lr", type=float, default=2e-3)
    arguments = parser.parse_args()
    footage = read_footage(arguments.footage, set(arguments.hold_out))
    print(f"{len(footage.train)} frames to learn from, {sum(map(len, footage.held_out.values()))} held out", flush=True)
    print(json.dumps(train(footage, arguments.out, arguments.minutes, arguments.seed, lr=arguments.lr), indent=1))


if __name__ == "__main__":
    main()
