"""The dry run's figures against what tensors, DeepSpeed and torch's counters really show."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from svdflow.diffusion.checkpointing import checkpoint_activations
from svdflow.diffusion.settings import UNetSettings
from svdflow.pipelines.cli import app
from svdflow.training.train.build_ops import worker_environment
from svdflow.training.train.forecast import (
    CARDS_GB,
    HEADROOM,
    build_unet,
    forecast_stage,
    state_bytes,
    trace_step,
    unet_settings_of,
)
from svdflow.training.train.settings import stage_settings
from tests import zero_sizes

KINDS = ("image", "video", "image_to_video", "multi_view", "interpolation")
UNET = UNetSettings(
    block_out_channels=(32, 64),
    layers_per_block=1,
    attention_heads=(2, 4),
    cross_attention_dim=32,
    addition_time_embed_dim=8,
    num_frames=3,
)
SIZE, BATCH, TOKENS = (3, 64, 128), 2, 7
FRAMES = {"image": 1, "interpolation": 5}  # else the size's


def settings_for(kind: str, **values):
    base = {"processes": 2, "batch": 2 * BATCH, "precision": "fp32", "frames": None, "height": None, "width": None}
    return stage_settings(kind, base | ({"frames": 5} if kind == "interpolation" else {}) | values)


def real_inputs(kind: str) -> dict:
    """Inputs as the objective makes them, written down by hand."""
    scalars = {"video": 2, "image_to_video": 3, "interpolation": 3}
    channels = {"image_to_video": 8, "interpolation": 9}.get(kind, 4)
    context = torch.randn(BATCH, {"image_to_video": 1, "interpolation": 2}.get(kind, TOKENS), 32)
    inputs = {"timestep": torch.rand(BATCH), "encoder_hidden_states": context}
    if kind == "image":
        return {"sample": torch.randn(BATCH, channels, 8, 16), **inputs}
    return {
        "sample": torch.randn(BATCH, FRAMES.get(kind, 3), channels, 8, 16), **inputs,
        "added_time_ids": torch.rand(BATCH, scalars[kind]),
    }  # fmt: skip


def bytes_kept(net: torch.nn.Module, inputs: dict) -> int:
    """What autograd keeps in memory for a real forward pass, weights left out."""
    weights = {p.data_ptr() for p in (*net.parameters(), *net.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def hook(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # holds it, so that its place is not used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(hook, lambda tensor: tensor):
        out = net(**inputs, return_dict=False)[0]
    assert out.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.fixture(scope="module", params=(*KINDS[:3], "interpolation"))
def both(request):
    """A tiny U-Net on the CPU, real inputs, and the forecast's trace of its twin without bytes."""
    kind = request.param
    settings = settings_for(kind)
    torch.manual_seed(0)
    net = build_unet(kind, UNET, settings, device="cpu")
    size = (FRAMES.get(kind, SIZE[0]), *SIZE[1:])
    trace = trace_step(build_unet(kind, UNET, settings), kind, UNET, BATCH, size, TOKENS)
    return net, real_inputs(kind), trace


def test_predicted_activations_are_those_of_a_real_pass_within_a_tenth(both):
    net, inputs, trace = both
    assert trace.kept == pytest.approx(bytes_kept(net, inputs), rel=0.1)


def test_predicted_activations_with_checkpointing_are_what_a_real_checkpointed_pass_keeps(both):
    net, inputs, trace = both
    checkpoint_activations(net)
    try:
        real = bytes_kept(net, inputs)
    finally:
        net.disable_gradient_checkpointing()
    assert trace.kept_checkpointed - trace.recomputed == pytest.approx(real, rel=0.1)
    assert 0 < trace.recomputed < trace.kept_checkpointed < trace.kept


def test_predicted_operations_are_those_that_run(both):
    """Attention as plain products: its backward pass recomputes no scores, flash attention's does."""
    net, inputs, trace = both
    forward, backward = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH):
        with forward:
            out = net(**inputs, return_dict=False)[0]
        with backward:
            out.square().mean().backward()
    assert trace.forward_flops == forward.get_total_flops()
    assert backward.get_total_flops() <= trace.backward_flops < 1.1 * backward.get_total_flops()


def test_bytes_by_zero_stage_are_what_deepspeed_holds_within_a_tenth():
    done = subprocess.run(
        [sys.executable, "-m", "tests.zero_sizes"],
        env=worker_environment(), capture_output=True, text=True, cwd=Path(__file__).resolve().parents[2], timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    net = zero_sizes.network()
    total = sum(p.numel() for p in net.parameters())
    trainable = sum(p.numel() for p in net.parameters() if p.requires_grad)
    assert trainable < total
    for stage, precision, accumulation in zero_sizes.CASES:
        predicted = state_bytes(total, trainable, stage, zero_sizes.PROCESSES, precision, accumulation, ema=True)
        for part, size in found[f"{stage} {precision} {accumulation}"].items():
            if (stage, accumulation, part) == (2, 1, "gradients"):
                continue  # not accumulated: they are handed to the optimiser as they come
            assert getattr(predicted, part) == pytest.approx(size, rel=0.1), (stage, precision, accumulation, part)


def test_a_running_average_takes_what_the_fp32_weights_take():
    for stage in range(4):
        state = state_bytes(1000, 900, stage, 4, "bf16", ema=True)
        assert state.average == state.optimizer // 3
    assert state_bytes(1000, 900, 2, 4, "bf16", ema=True, offload=True).average == 0


def test_full_size_stages_have_the_released_parameter_counts():
    expected = {"image": 865_910_724, "video": 1_524_283_882, "image_to_video": 1_524_623_082}
    for kind, count in expected.items():
        net = build_unet(kind, UNetSettings(), settings_for(kind))
        assert sum(p.numel() for p in net.parameters()) == count


def test_a_full_size_dry_run_says_what_fits_and_needs_little_memory():
    code = (
        "import re, sys; from svdflow.pipelines.cli import app\n"
        "sys.argv = ['svdflow', 'train', 'image_to_video_base', '--profile', 'paper', '--dry-run', '--json',"
        " '--set', 'train_image_to_video.accumulation=48']\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    *text, peak_kb = done.stdout.splitlines()
    found = json.loads("\n".join(text))
    assert int(peak_kb) < 1_000_000
    assert (found["frames"], found["height"], found["width"], found["micro_batch"]) == (14, 320, 576, 2)
    assert found["parameters"]["total"] == found["trainable"] == 1_524_623_082
    assert found["samples"] == 50_000 * 768
    state = found["states"]["2"]
    assert state["parameters"] == 2 * 1_524_623_082
    assert state["optimizer"] == 12 * -(-1_524_623_082 // 8)
    kept = found["trace"]["kept"]
    assert found["gpu_bytes"] == sum(state.values()) + kept
    for card in CARDS_GB:
        room = card * 2**30 * (1 - HEADROOM)
        assert found["fits"][str(card)] == (found["gpu_bytes"] <= room)
        most = found["largest_micro_batch"][str(card)]
        assert most * kept / 2 <= room - sum(state.values()) < (most + 1) * kept / 2
    flops = (found["trace"]["forward_flops"] + found["trace"]["backward_flops"]) * 384
    assert found["flops_per_step"] == flops
    assert found["gpu_hours"] == pytest.approx(50_000 * flops / (0.35 * 312e12) / 3600)
    assert found["hours"] == pytest.approx(found["gpu_hours"] / 8)
    # a video of 14 frames costs more than its frames cost the image model, and backward about twice forward
    assert 1.9 < found["trace"]["backward_flops"] / found["trace"]["forward_flops"] < 2.2


def test_half_the_precision_halves_what_is_kept_and_twice_the_batch_doubles_it():
    def kept(precision: str, batch: int) -> int:
        settings = settings_for("video", precision=precision, batch=batch)
        return forecast_stage("video", settings, UNET, SIZE, TOKENS, 0.5, 100).trace.kept

    assert kept("bf16", 4) == pytest.approx(kept("fp32", 4) / 2, rel=0.05)
    assert kept("fp32", 8) == pytest.approx(2 * kept("fp32", 4), rel=0.05)


def test_the_sizes_come_from_the_model_that_is_started_from(tmp_path):
    net = build_unet("image_to_video", UNET, settings_for("image_to_video"), device="cpu")
    net.save_pretrained(tmp_path / "unet")
    found = unet_settings_of(tmp_path, {}, "image_to_video")
    twin = build_unet("image_to_video", found, settings_for("image_to_video"))
    assert {n: p.shape for n, p in twin.named_parameters()} == {n: p.shape for n, p in net.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_forecast_under_the_small_profile(kind):
    done = CliRunner().invoke(app, ["train", kind, "--profile", "test", "--dry-run"], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert "not measured" in done.output
    frames = FRAMES.get(kind, 4)
    assert f"{kind}: {frames} x 64 x 64, {12 if kind == 'video' else 4} steps" in done.output


def test_a_size_that_the_autoencoder_cannot_take_is_refused_and_one_that_training_takes_is_not():
    command = ["train", "video", "--profile", "test", "--dry-run", "--set", "encode.width=72", "--set"]
    done = CliRunner().invoke(app, [*command, "encode.height=60"])
    assert "64x60" in str(done.exception) or "60 px" in str(done.exception) or "72x60" in str(done.exception)
    done = CliRunner().invoke(app, [*command, "encode.height=104"])  # halved twice, 13 latents leave a remainder
    assert done.exit_code == 0 and "video: 4 x 104 x 72" in done.output
