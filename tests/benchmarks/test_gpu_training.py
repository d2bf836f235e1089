"""A full-size image-to-video stage on one GPU: samples per second, FLOPs utilisation, peak memory, compiled and not.

pytest -s tests/benchmarks/test_gpu_training.py      SVDFLOW_BENCH_PEAK_TFLOPS names the card's dense bf16 peak

The U-Net has SVD's size and random weights, in bf16 with activation checkpointing; latents are random too: what is
measured is the engine, not data. Without a GPU the same code is run at a tiny size, which shows that it runs.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Iterator

import pytest
import torch

from svdflow.diffusion import edm
from svdflow.diffusion.network import unet_model_fn
from svdflow.diffusion.settings import VECTOR_CONDITIONS, UNetSettings
from svdflow.training.train.engine import Engine
from svdflow.training.train.forecast import build_unet, trace_step
from svdflow.training.train.settings import StageSettings, stage_settings
from tests.engine_runs import one_process

FULL, FULL_SIZE = UNetSettings(), (14, 320, 576)
TINY, TINY_SIZE = (
    UNetSettings(
        block_out_channels=(64, 64), layers_per_block=1, attention_heads=(4, 4), cross_attention_dim=32, num_frames=2
    ),
    (2, 64, 64),
)
# Dense bf16 peaks, 10^12 operations a second, as their maker's data sheets state them.
PEAKS = {"A100": 312.0, "H100": 989.0, "H200": 989.0}
WARM, ROUNDS = 3, 10


@pytest.fixture(scope="module", autouse=True)
def _group() -> Iterator[None]:
    with one_process():
        yield


def settings_for(size: tuple[int, int, int], **values) -> StageSettings:
    frames, height, width = size
    base = {
        "batch": 1,
        "processes": 1,
        "zero_stage": 0,
        "frames": frames,
        "height": height,
        "width": width,
        "ema": None,
    }
    return stage_settings("image_to_video", base | {"ema": None, "gradient_checkpointing": True} | values)


class Called:
    """The engine under its U-Net's configuration, as ``unet_model_fn`` wants it."""

    def __init__(self, engine: Engine) -> None:
        self.call, self.config = engine.net, engine.deepspeed.module.config

    def __call__(self, *args, **kwargs):
        return self.call(*args, **kwargs)


def measure(unet: UNetSettings, size: tuple[int, int, int], settings: StageSettings, rounds: int) -> dict[str, float]:
    """Median seconds of a step, peak bytes, and the operations of the model in it (recomputation left out)."""
    trace = trace_step(build_unet("image_to_video", unet, settings), "image_to_video", unet, settings.batch, size, 1)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    engine = Engine(build_unet("image_to_video", unet, settings, device.type), settings)
    frames, h, w = size[0], size[1] // 8, size[2] // 8
    x0, noise, concat = (torch.randn(settings.batch, frames, unet.latent_channels, h, w, device=device) for _ in "xnc")
    context = torch.randn(settings.batch, 1, unet.cross_attention_dim, device=device)
    vector = torch.zeros(settings.batch, len(VECTOR_CONDITIONS["image_to_video"]), device=device)
    sigma = torch.full((settings.batch,), 1.0, device=device)
    net = Called(engine)

    def loss() -> torch.Tensor:
        return edm.training_loss(unet_model_fn(net, context, vector, concat), x0, noise, sigma).mean()

    seconds = []
    try:
        for index in range(WARM + rounds):
            if index == WARM and device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            began = time.perf_counter()
            figures = engine.train_step([loss])
            if device.type == "cuda":
                torch.cuda.synchronize()
            if index >= WARM:
                seconds.append(time.perf_counter() - began)
        assert figures.loss == figures.loss, "the loss is no number"
        peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    finally:
        engine.deepspeed.destroy()
    return {"seconds": statistics.median(seconds), "peak": peak, "flops": trace.forward_flops + trace.backward_flops}


def test_the_measurement_itself_at_a_tiny_size() -> None:
    found = measure(TINY, TINY_SIZE, settings_for(TINY_SIZE, precision="fp32"), rounds=1)
    assert found["seconds"] > 0 and found["flops"] > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_full_size_step_on_this_gpu(compiled: bool) -> None:
    gc.collect()
    torch.cuda.empty_cache()
    settings = settings_for(FULL_SIZE, precision="bf16", compile=compiled)
    found = measure(FULL, FULL_SIZE, settings, ROUNDS)
    card = torch.cuda.get_device_name()
    peak = float(os.environ.get("SVDFLOW_BENCH_PEAK_TFLOPS") or next((v for k, v in PEAKS.items() if k in card), 0))
    reached = found["flops"] / found["seconds"] / 1e12
    utilisation = f"{100 * reached / peak:.1f} % of {peak:g}" if peak else "name the peak for a utilisation"
    print(
        f"\n{card}, {'x'.join(map(str, FULL_SIZE))}, bf16, activation checkpointing, "
        f"{'compiled' if compiled else 'eager'}: {settings.batch / found['seconds']:.3f} samples/s, {reached:.1f} "
        f"TFLOP/s of the model's own ({utilisation}), at most {found['peak'] / 2**30:.1f} GiB"
    )
