"""Train the small autoencoder that ships with svdflow: ``python -m svdflow.diffusion.train_autoencoder FOOTAGE… --minutes 60``.

diffusers fixes 32 groups for every norm of this architecture, which at small widths normalises each channel by itself and so loses
an image's brightness and contrast. Two things put that right without leaving the architecture: the first and last widths are 64, so
that a group can hold a channel and its negative (whose common mean is 0), and the norms are trained with an epsilon of 1, which is
the same as activations a thousand times smaller with the epsilon of 1e-6 that diffusers uses: ``fold`` makes the one into the other.

Training starts from the principal components of 8×8 patches. Residual blocks that training leaves out, the decoder's temporal ones
among them, are identities, so that it decodes frame by frame and can be tuned on video later, as Align your Latents does.
Legend: B batch, C channels, H, W.
"""

from __future__ import annotations

import argparse
import copy
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
from .autoencoder import fill_identities, write_compact

WIDTHS = (64, 32, 32, 64)
TRAINED_EPSILON = 1.0
LATENT_CHANNELS = 8  # 4, as SVD has, keep too little at this size: see README
LATENT_NOISE = 0.05  # std of the posterior, held fixed: latents a diffusion model gets slightly wrong must still decode
LATENT_PENALTY = 1e-3
CHARBONNIER = 0.05
CROP_PX = 64
SHORT_SIDE_PX = (128, 192)
STORED_SHORT_SIDE_PX = 192
GRADIENT_WEIGHT = 0.1
SAVE_EVERY_S = 300
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


def build_autoencoder(patches_N388: torch.Tensor, seed: int) -> AutoencoderKLTemporalDecoder:
    """The autoencoder before training: its linear trunk encodes the principal components of ``patches`` ([N, 3, 8, 8]).

    All residual branches are zero. The decoder starts by painting each latent's mean colour.
    """
    torch.manual_seed(seed)
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=WIDTHS,
        down_block_types=("DownEncoderBlock2D",) * len(WIDTHS),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        sample_size=128,
        force_upcast=False,
    )
    fill_identities(vae, [name for name in vae.state_dict() if ".resnets." in name and "conv_shortcut" not in name])
    with torch.no_grad():
        for attention in (vae.encoder.mid_block.attentions[0], vae.decoder.mid_block.attentions[0]):
            attention.to_out[0].weight.zero_()
            attention.to_out[0].bias.zero_()
        vae.decoder.time_conv_out.weight.zero_()
        vae.decoder.time_conv_out.weight[:, :, 1, 0, 0] = torch.eye(3)
        vae.decoder.time_conv_out.bias.zero_()
        _start_from_principal_components(vae, patches_N388)
    return vae


def _start_from_principal_components(vae: AutoencoderKLTemporalDecoder, patches_N388: torch.Tensor) -> None:
    encoder, decoder, latents = vae.encoder, vae.decoder, LATENT_CHANNELS
    for module in [*encoder.modules(), *decoder.modules()]:
        if isinstance(module, torch.nn.Conv2d) and module.weight.abs().max() > 0:
            module.weight.mul_(0.3)  # spare channels of the trunk start small
            module.bias.zero_()
    # encoder: 2×2 pixels side by side, then 4×4, then 8×8 patches, each by its leading components
    x = patches_N388
    _set_centre(encoder.conv_in.weight, torch.eye(3))
    side_by_side = torch.zeros(12, 3, 2, 2)
    for index in range(12):
        side_by_side[index, index % 3, index // 6, index // 3 % 2] = 1
    x = _set_downsampler(encoder.down_blocks[0], side_by_side, x)
    _set_centre(encoder.down_blocks[1].resnets[0].conv_shortcut.weight, torch.eye(12))
    x = _set_downsampler(encoder.down_blocks[1], _components(x, WIDTHS[1], whiten=False), x)
    x = _set_downsampler(encoder.down_blocks[2], _components(x, WIDTHS[2], whiten=True), x)
    _set_pairs(encoder.down_blocks[3].resnets[0].conv_shortcut, WIDTHS[2])
    gain = (1 + TRAINED_EPSILON) ** 0.5  # what the norm divides features of unit variance by
    encoder.conv_out.weight.zero_()
    encoder.conv_out.weight[:latents, : 2 * latents, 1, 1] = gain * _pairs(torch.eye(latents))
    encoder.conv_out.bias.zero_()
    vae.quant_conv.weight.zero_()
    _set_centre(vae.quant_conv.weight, torch.eye(latents))
    vae.quant_conv.bias.zero_()
    vae.quant_conv.bias[latents:] = 2 * math.log(LATENT_NOISE)
    # decoder: latents run through to the end, where each becomes its mean colour
    colours_N3, z_Nc = patches_N388.mean((2, 3)), x[:, :latents, 0, 0]
    centre_c, centre_3 = z_Nc.mean(0), colours_N3.mean(0)
    encoder.conv_out.bias[:latents] = -centre_c
    mean_colour_c3 = torch.linalg.lstsq(z_Nc - centre_c, colours_N3 - centre_3).solution
    _set_centre(decoder.conv_in.weight, torch.eye(latents))
    for block in decoder.up_blocks[:3]:
        _set_centre(block.upsamplers[0].conv.weight, torch.eye(latents))
    _set_centre(decoder.up_blocks[1].resnets[0].spatial_res_block.conv_shortcut.weight, torch.eye(latents))
    _set_pairs(decoder.up_blocks[3].resnets[0].spatial_res_block.conv_shortcut, WIDTHS[2])
    decoder.conv_out.weight.mul_(0.1)
    decoder.conv_out.weight[:, : 2 * latents] = 0
    decoder.conv_out.weight[:, : 2 * latents, 1, 1] = gain * _pairs(mean_colour_c3.T)
    decoder.conv_out.bias.copy_(centre_3)


def _components(features_NCHW: torch.Tensor, count: int, whiten: bool) -> torch.Tensor:
    """Leading principal components over 2×2 neighbours, [count, C, 2, 2]; with equal mean variance, or each with unit variance."""
    blocks = features_NCHW.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)  # [M, C, 2, 2]
    values, vectors = torch.linalg.eigh(torch.cov(blocks.flatten(1).T))
    values, vectors = values.flip(0)[:count].clamp(min=1e-8), vectors.flip(1)[:, :count]
    scale = values.sqrt() if whiten else values.mean().sqrt().expand(count)
    return (vectors / scale).T.unflatten(1, blocks.shape[1:])


def _set_downsampler(block: torch.nn.Module, kernel_KC22: torch.Tensor, features_NCHW: torch.Tensor) -> torch.Tensor:
    """Put a 2×2 kernel where diffusers' 3×3 convolution of stride 2 sees a block (it pads right and below); returns its output."""
    weight = block.downsamplers[0].conv.weight
    weight[: len(kernel_KC22)] = 0
    weight[: len(kernel_KC22), : kernel_KC22.shape[1], :2, :2] = kernel_KC22
    return F.conv2d(features_NCHW, kernel_KC22, stride=2)


def _set_centre(weight: torch.Tensor, matrix_KC: torch.Tensor) -> None:
    rows, columns = matrix_KC.shape
    weight[:rows] = 0
    weight[:rows, :columns, weight.shape[2] // 2, weight.shape[3] // 2] = matrix_KC


def _set_pairs(shortcut: torch.nn.Conv2d, channels: int) -> None:
    """Each channel and its negative, so that the norm's groups of two have mean 0."""
    shortcut.weight.zero_()
    shortcut.weight[:, :channels, 0, 0] = _pairs(torch.eye(channels)).T


def _pairs(matrix_KC: torch.Tensor) -> torch.Tensor:
    """Columns and their negatives alternately: silu(u) - silu(-u) = u, so a pair passes the activation unchanged."""
    return torch.stack([matrix_KC, -matrix_KC], dim=2).flatten(1)


def skipped_in_training(vae: AutoencoderKLTemporalDecoder) -> list[torch.nn.Module]:
    """Residual blocks that stay identities: the temporal ones, and the two that cost most at full resolution."""
    temporal = [m.temporal_res_block for m in vae.decoder.modules() if isinstance(m, SpatioTemporalResBlock)]
    return [*temporal, vae.encoder.down_blocks[0].resnets[0], vae.decoder.up_blocks[3].resnets[1].spatial_res_block]


def skip_identities(vae: AutoencoderKLTemporalDecoder) -> None:
    """Do not compute what is an identity."""
    vae.encoder.down_blocks[0].resnets[0].forward = lambda h, temb=None: h  # type: ignore[method-assign]
    for module in vae.decoder.modules():
        if isinstance(module, SpatioTemporalResBlock):
            spatial = module.spatial_res_block
            module.forward = lambda h, temb=None, image_only_indicator=None, spatial=spatial: spatial(h, temb)  # type: ignore[method-assign]
    vae.decoder.up_blocks[3].resnets[1].forward = lambda h, temb=None, image_only_indicator=None: h  # type: ignore[method-assign]


def _trunk_norms(vae: AutoencoderKLTemporalDecoder) -> list[torch.nn.GroupNorm]:
    return [
        module
        for name, module in vae.named_modules()
        if isinstance(module, torch.nn.GroupNorm) and name.endswith(("norm1", "group_norm", "conv_norm_out")) and "temporal" not in name
    ]


def fold(vae: AutoencoderKLTemporalDecoder) -> None:
    """Turn a model trained with an epsilon of 1 into an equal one with diffusers' 1e-6, by scaling all that enters the trunk."""
    norms = _trunk_norms(vae)
    scale = (1e-6 / TRAINED_EPSILON) ** 0.5
    with torch.no_grad():
        for name, module in vae.named_modules():
            if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)) and "temporal" not in name:
                writes = name in ("encoder.conv_in", "decoder.conv_in") or name.endswith((".conv2", ".to_out.0"))
                if writes:
                    module.weight.mul_(scale)
                if writes or name.endswith(("conv_shortcut", "samplers.0.conv")):
                    module.bias.mul_(scale)
    for norm in norms:
        norm.eps = 1e-6


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
def measure(vae: AutoencoderKLTemporalDecoder, held_out: dict[str, list[np.ndarray]], count: int = 4) -> dict[str, dict[str, float]]:
    """PSNR in dB of the autoencoder and of the baseline for each held-out video, and their mean."""
    figures: dict[str, dict[str, float]] = {}
    for name, frames in held_out.items():
        if not frames:
            continue
        crops = held_out_crops(frames, count)
        x_BCHW = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 127.5 - 1
        y_BCHW = torch.cat([vae.decode(vae.encode(x[None]).latent_dist.mode(), num_frames=1).sample for x in x_BCHW])
        y_FHWC = ((y_BCHW.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        figures[name] = {"psnr_db": round(psnr_db(crops, y_FHWC), 2), "bicubic_db": round(psnr_db(crops, down_and_up(crops)), 2)}
    figures["mean"] = {key: round(float(np.mean([f[key] for f in figures.values()])), 2) for key in ("psnr_db", "bicubic_db")}
    return figures


@torch.no_grad()
def latent_std(vae: AutoencoderKLTemporalDecoder, frames: list[np.ndarray], rng: np.random.Generator) -> float:
    """Standard deviation of the posterior means over random crops."""
    return float(torch.cat([vae.encode(random_crops(frames, 64, rng)).latent_dist.mode() for _ in range(2)]).std())


def train(footage: Footage, out: Path, minutes: float, seed: int, batch: int = 8, lr: float = 2e-3) -> dict[str, Any]:
    """Train for a span of wall time; the learning rate falls along a half cosine. Writes ``out`` every few minutes and at the end."""
    rng = np.random.default_rng(seed)
    patches = random_crops(footage.train, 512, rng).unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    vae = build_autoencoder(patches, seed)
    skip_identities(vae)
    for norm in _trunk_norms(vae):
        norm.eps = TRAINED_EPSILON
    skipped = {id(p) for module in skipped_in_training(vae) for p in module.parameters()}
    fixed = (vae.decoder.time_conv_out.weight, vae.decoder.time_conv_out.bias, vae.quant_conv.weight, vae.quant_conv.bias)
    mixing = [p for n, p in vae.named_parameters() if n.endswith("mix_factor")]
    skipped |= {id(p) for p in (*fixed, *mixing)}
    learned = [p for p in vae.parameters() if id(p) not in skipped]
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
        for dimension in (2, 3):
            loss = loss + GRADIENT_WEIGHT * torch.diff(error_BCHW, dim=dimension).abs().mean()
        (loss + LATENT_PENALTY * mean_BCHW.square().mean()).backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step, running = step + 1, loss.item() if step == 0 else 0.98 * running + 0.02 * loss.item()
        elapsed = time.monotonic() - started
        if step in (1, 100) or elapsed - saved > SAVE_EVERY_S:
            saved = elapsed
            card = save(vae, footage, out, seed, {"steps": step, "minutes": round(elapsed / 60, 1)})
            print(f"step {step} {elapsed:.0f} s loss {running:.4f} std {card['latent_std']} {card['held_out']}", flush=True)
    return save(vae, footage, out, seed, {"steps": step, "minutes": minutes})


def save(trained: AutoencoderKLTemporalDecoder, footage: Footage, out: Path, seed: int, facts: dict[str, Any]) -> dict[str, Any]:
    """Write the autoencoder in half precision, and beside it the figures of the weights as stored."""
    vae = copy.deepcopy(trained)
    fold(vae)
    for module in vae.modules():
        module.__dict__.pop("forward", None)  # measure the architecture as diffusers runs it, nothing skipped
    vae.load_state_dict({name: tensor.half().float() for name, tensor in vae.state_dict().items()})
    std = latent_std(vae, footage.train, np.random.default_rng(seed))
    vae.register_to_config(scaling_factor=round(1 / std, 5))
    parameters = write_compact(vae, out)
    card = {**facts, "seed": seed, "stored_parameters": parameters, "latent_std": round(std, 4), "held_out": measure(vae, footage.held_out)}
    (out / "training.json").write_text(json.dumps(card, indent=1, sort_keys=True) + "\n")
    return card


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
    train(footage, arguments.out, arguments.minutes, arguments.seed, lr=arguments.lr)


if __name__ == "__main__":
    main()
