"""Training out of the cache against the plain loop, which decodes and encodes at every step (five minutes).

OMP_NUM_THREADS=1 pytest -s tests/benchmarks/test_cache_throughput.py

Both train the same tiny image-to-video U-Net on the same clips, in one process, and take turns. The plain loop is torch
alone: a clip is decoded, its frames and its noised first frame go through the autoencoder, the first frame through the
image encoder. Medians; ratios are of CPU seconds. What the ratio is at full size is told by counted operations.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from svdflow.common.manifests import read_rows
from svdflow.common.storage import DataRoot
from svdflow.common.video import encode_mp4
from svdflow.diffusion import edm
from svdflow.diffusion.autoencoder import encode_moments, load_autoencoder, to_unit_range
from svdflow.diffusion.conditioning import vector_conditioning
from svdflow.diffusion.model_directory import VideoModel
from svdflow.diffusion.network import unet_model_fn
from svdflow.diffusion.settings import UNetSettings
from svdflow.diffusion.unet import build_video_unet
from svdflow.training.encode.encoders import Encoders
from svdflow.training.encode.settings import EncodeSettings
from svdflow.training.train.data import SampleSource
from svdflow.training.train.draws import Plan
from svdflow.training.train.engine import Engine
from svdflow.training.train.forecast import build_unet, trace_step
from svdflow.training.train.objective import Objective
from svdflow.training.train.settings import stage_settings
from tests.benchmarks import sliding_pictures as footage
from tests.engine_runs import one_process

ROUNDS, CLIPS, BATCH = 12, 16, 4
UNET = {
    "latent_channels": 8,
    "block_out_channels": [64, 64],
    "layers_per_block": 1,
    "attention_heads": [4, 4],
    "cross_attention_dim": 384,
    "addition_time_embed_dim": 32,
    "num_frames": footage.FRAMES,
    "sample_size": 8,
}
FULL_SIZE = (14, 320, 576)


class Stopwatch:
    """CPU seconds by what they went into."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)

    @contextmanager
    def on(self, what: str) -> Iterator[None]:
        began = time.process_time()
        yield
        self.spent[what] += time.process_time() - began


class PlainLoop:
    """A training loop as scripts have it: everything at every step, torch's own optimiser."""

    def __init__(self, clips: list[bytes], watch: Stopwatch) -> None:
        torch.manual_seed(3)
        self.unet = build_video_unet(UNetSettings(**UNET), "image_to_video").train()
        self.optimizer = torch.optim.AdamW(self.unet.parameters(), lr=1e-4)
        self.vae, self.encoders, self.clips, self.watch = load_autoencoder(), Encoders(EncodeSettings()), clips, watch
        self.rng = np.random.default_rng(0)

    def step(self) -> None:
        watch, rows = self.watch, self.rng.integers(len(self.clips), size=BATCH)
        with watch.on("decoding"):
            videos = [decoded(self.clips[row]) for row in rows]
        sigma_B = torch.from_numpy(np.exp(1.0 + 1.6 * self.rng.standard_normal(BATCH))).float()
        strength_B = torch.from_numpy(np.exp(-3 + 0.5 * self.rng.standard_normal(BATCH))).float()
        with torch.no_grad():
            with watch.on("autoencoder"):
                x0_BFchw = torch.stack([encode_moments(self.vae, to_unit_range(video))[0] for video in videos])
                x0_BFchw *= self.vae.config.scaling_factor
                pixels_BCHW = torch.cat([to_unit_range(video[:1]) for video in videos])
                noised = pixels_BCHW + strength_B.view(-1, 1, 1, 1) * torch.randn_like(pixels_BCHW)
                frame_Bchw = encode_moments(self.vae, noised)[0]
            with watch.on("image encoder"):
                embedding_BD = np.stack([self.encoders.images(video[:1])[0] for video in videos])
        context_B1D = torch.from_numpy(embedding_BD).float()[:, None]
        vector_BK = vector_conditioning(
            "image_to_video", fps=[footage.FPS] * BATCH, motion_bucket=[127] * BATCH, noise_aug=strength_B.tolist()
        )
        concat_BFchw = frame_Bchw[:, None].expand(-1, footage.FRAMES, -1, -1, -1)
        with watch.on("U-Net, forward and backward"):
            model_fn = unet_model_fn(self.unet, context_B1D, vector_BK, concat_BFchw)
            edm.training_loss(model_fn, x0_BFchw, torch.randn_like(x0_BFchw), sigma_B).mean().backward()
        with watch.on("optimiser"):
            torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()


class Cached:
    """The trainer's own parts on encoded samples."""

    def __init__(self, folder: Path, watch: Stopwatch) -> None:
        root, rows = footage.write_samples(folder, CLIPS, 1)
        manifest = footage.manifest([row for row in rows if row["split"] == "train"], folder / "samples.parquet")
        settings = stage_settings("image_to_video", {
            "frames": None, "height": None, "width": None, "batch": BATCH, "processes": 1, "precision": "fp32",
            "zero_stage": 0, "latent": "mean", "ema": None, "lr": 1e-4,
        })  # fmt: skip
        torch.manual_seed(3)
        unet = build_video_unet(UNetSettings(**UNET), "image_to_video")
        self.engine, self.watch = Engine(unet, settings), watch
        self.source = SampleSource(DataRoot.open(root.location), read_rows("samples", manifest))
        self.plan = Plan(settings, len(self.source.rows))
        model = VideoModel("image_to_video", unet, load_autoencoder())
        self.objective = Objective(model, self.source, self.engine.net, torch.device("cpu"))
        read, frame = self.objective.read, self.objective._frame_latents

        def timed_read(*args, **kwargs):
            with watch.on("reading the cache, drawing noise"):
                return read(*args, **kwargs)

        def timed_frame(*args, **kwargs):
            with watch.on("autoencoder, on one frame"):
                return frame(*args, **kwargs)

        self.objective.read, self.objective._frame_latents = timed_read, timed_frame  # type: ignore[method-assign]

    def step(self) -> None:
        draws = self.plan.micro_batch(self.engine.step, 0, 0, 1)
        self.engine.train_step([lambda: self.objective.mean_loss(draws)])


def decoded(clip: bytes) -> np.ndarray:
    import io

    with av.open(io.BytesIO(clip)) as container:
        return np.stack([frame.to_ndarray(format="rgb24", threads=1) for frame in container.decode(video=0)])


def test_the_cache_against_the_plain_loop(tmp_path: Path) -> None:
    clips = [encode_mp4(footage.sliding_clip(number, 1.5)[0], footage.FPS) for number in range(CLIPS)]
    plain_watch, our_watch = Stopwatch(), Stopwatch()
    with one_process():
        plain, ours = PlainLoop(clips, plain_watch), Cached(tmp_path, our_watch)
        plain_s, ours_s = [], []
        for index in range(ROUNDS + 2):
            if index == 2:
                plain_watch.spent.clear()
                our_watch.spent.clear()
            began = time.process_time()
            plain.step()
            between = time.process_time()
            ours.step()
            ended = time.process_time()
            if index >= 2:
                plain_s.append(between - began)
                ours_s.append(ended - between)
        ours.engine.deepspeed.destroy()
    ratio = statistics.median(a / b for a, b in zip(plain_s, ours_s, strict=True))
    rates = [BATCH / statistics.median(seconds) for seconds in (plain_s, ours_s)]
    print(
        f"\n{footage.FRAMES} frames of {footage.SIZE_PX} px, a batch of {BATCH}: plain loop {rates[0]:.2f} samples/s, "
        f"with the cache {rates[1]:.2f}, {ratio:.2f} times"
    )
    for name, watch, seconds in (("plain loop", plain_watch, plain_s), ("with the cache", our_watch, ours_s)):
        shares = {what: spent / sum(seconds) for what, spent in watch.spent.items()}
        print(f"  {name}: " + ", ".join(f"{what} {100 * share:.1f} %" for what, share in shares.items())
              + f", the rest {100 * (1 - sum(shares.values())):.1f} %")  # fmt: skip
    assert ratio > 1.0


def test_the_same_ratio_at_full_size_by_counted_operations() -> None:
    frames, height, width = FULL_SIZE
    settings = stage_settings("image_to_video", {"batch": 8, "frames": frames, "height": height, "width": width})
    unet = UNetSettings()
    trace = trace_step(build_unet("image_to_video", unet, settings), "image_to_video", unet, 1, FULL_SIZE, tokens=1)
    step = trace.forward_flops + trace.backward_flops
    vae, clip = autoencoder_flops(height, width), image_encoder_flops()
    plain, cached = step + (frames + 1) * vae + clip, step + vae
    print(f"\n{frames}x{height}x{width}, one sample, 10^12 operations: U-Net forward and backward {step / 1e12:.1f}, "
          f"autoencoder {vae / 1e12:.2f} a frame, image encoder {clip / 1e12:.2f}; plain loop {plain / 1e12:.1f}, with "
          f"the cache {cached / 1e12:.1f}: {plain / cached:.2f} times, decoding not counted")  # fmt: skip
    assert plain > cached


def autoencoder_flops(height: int, width: int) -> int:
    """Operations to encode one frame with SVD's autoencoder."""
    from diffusers import AutoencoderKLTemporalDecoder
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        vae = AutoencoderKLTemporalDecoder(
            block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4, layers_per_block=2
        )
        with FlopCounterMode(display=False) as counted, torch.no_grad():
            vae.encode(torch.zeros(1, 3, height, width))
    return counted.get_total_flops()


def image_encoder_flops() -> int:
    """Operations to embed one picture with OpenCLIP's ViT-H/14, in transformers' form."""
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16, patch_size=14,
        projection_dim=1024,
    )  # fmt: skip
    with torch.device("meta"):
        encoder = CLIPVisionModelWithProjection(config)
        with FlopCounterMode(display=False) as counted, torch.no_grad():
            encoder(torch.zeros(1, 3, 224, 224))
    return counted.get_total_flops()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
