"""Does the interpolation stage learn? Clouds that slide, against the linear blend of the two frames given.

The blend is of the true pixels, which the model never sees: it is given latents and makes latents, so that the
autoencoder's own loss (shown as "true frames, decoded") counts against it and not against the blend. Where hardly
anything moves the blend is the truth, so that it is the faster half of the clips that tells. Takes 17 minutes on two
busy cores. Run with `make bench`, or `pytest -s tests/benchmarks/test_interpolation_learning.py`.
"""

import numpy as np
import pytest
import torch

from svdflow.diffusion.autoencoder import decode_latents, encode_frames, load_autoencoder
from svdflow.diffusion.interpolating import interpolate
from svdflow.diffusion.model_directory import VideoModel, load_model, save_model
from svdflow.diffusion.motion import MotionCalibration
from svdflow.diffusion.settings import UNetSettings
from svdflow.diffusion.unet import build_video_unet
from svdflow.training.train.objective import bucket_of
from svdflow.training.train.settings import stage_settings
from svdflow.training.train.train import train_stage
from tests.benchmarks.sliding_pictures import FPS, held_out_or_train, manifest, write_sequences

TRAIN, HELD_OUT = 96, 12
UNET = {
    "latent_channels": 8, "block_out_channels": [64, 64], "layers_per_block": 1, "attention_heads": [4, 4],
    "cross_attention_dim": 384, "addition_time_embed_dim": 32, "num_frames": 5, "sample_size": 8,
}  # fmt: skip


def psnr(made: np.ndarray, true: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((made.astype(float) - true) ** 2)))


@pytest.mark.slow
def test_after_some_hundred_steps_the_frames_between_are_nearer_to_the_truth_than_the_blend(tmp_path):
    root, rows = write_sequences(tmp_path, TRAIN, HELD_OUT)
    torch.manual_seed(0)
    start = VideoModel("text_to_video", build_video_unet(UNetSettings(**UNET), "text_to_video"), load_autoencoder())
    save_model(start, tmp_path / "start")
    settings = stage_settings(
        "interpolation",
        {"height": None, "width": None, "fps": None, "steps": 800, "batch": 16, "lr": 2e-3, "warmup": 20, "ema": 0.99,
         "precision": "fp32", "processes": 2, "latent": "mean", "checkpoint_every": 1000, "held_out_samples": HELD_OUT,
         "held_out_seeds": 1, "image_dropout": 0.05},
    )  # fmt: skip
    samples = manifest(rows, tmp_path / "samples.parquet")
    report = train_stage("interpolation", samples, tmp_path / "start", tmp_path / "model", root, settings, {})
    told = report.summary["training"]["interpolation"]
    print(f"held-out loss {told['held_out_loss_before']:.3f} -> {told['held_out_loss_after']:.3f}")

    model = load_model(tmp_path / "model")
    calibration = MotionCalibration.from_dict(model.card["motion_calibration"])
    found: dict[str, list[float]] = {}
    for number in range(TRAIN, TRAIN + HELD_OUT):
        clip = held_out_or_train(number, TRAIN, HELD_OUT)[0][:5]
        true, ends = clip[1:4], clip[[0, 4]].astype(float)
        bucket = bucket_of(calibration, rows[number]["motion_score"])
        latents = encode_frames(model.vae, clip)
        line = torch.stack([torch.lerp(latents[0], latents[4], share / 4) for share in (1, 2, 3)])
        made = {
            "interpolated": interpolate(model, clip[[0, 4]], fps=FPS / 4, motion_bucket=bucket, steps=15)[1:4],
            "blend of the pixels": np.stack([ends[0] + (ends[1] - ends[0]) * share / 4 for share in (1, 2, 3)]),
            "blend of the latents": decode_latents(model.vae, line),
            "true frames, decoded": decode_latents(model.vae, latents[1:4]),
        }
        for name, frames in made.items():
            found.setdefault(name, []).append(psnr(frames, true))
    for name, values in found.items():
        print(f"{name}: {np.mean(values):.2f} dB, slowest to fastest {' '.join(f'{v:.1f}' for v in values)}")
    assert told["held_out_loss_after"] < told["held_out_loss_before"]
    assert np.mean(found["interpolated"]) > np.mean(found["blend of the latents"])
    fast = slice(HELD_OUT // 2, None)
    assert np.mean(found["interpolated"][fast]) > np.mean(found["blend of the pixels"][fast])
