"""Does the decoder's finetuning learn? On real footage, before and after, on clips held out.

Twice: the shipped autoencoder as the profile `local` trains it, without the discriminator and at a rate that its small
activations bear; and an autoencoder of random weights, whose decoder learns from the error and the discriminator
together. Takes about ten minutes on two idle cores. Run with `make bench`, or
`pytest -s tests/benchmarks/test_decoder_learning.py`.
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from svdflow.common.storage import DataRoot
from svdflow.diffusion.autoencoder import load_autoencoder
from svdflow.diffusion.model_directory import VideoModel, save_model
from svdflow.diffusion.settings import UNetSettings
from svdflow.diffusion.temporal_decoder import with_temporal_decoder
from svdflow.diffusion.unet import build_video_unet
from svdflow.ingest.samples import fetch_samples
from svdflow.training.encode.encode import encode_clips
from svdflow.training.encode.settings import EncodeSettings
from svdflow.training.train.settings import stage_settings
from svdflow.training.train.train import train_stage
from tests.integration.clip_sets import all_kept, clip_set
from tests.training_runs import UNET

STEPS, BATCH = 100, 4
FRAMES, SIDE, CLIP = 4, 48, 12


def shots_of(folder: Path) -> list[np.ndarray]:
    """Every video in shots of CLIP frames, 96 px high: one after another, so that neighbours are alike."""
    shots = []
    for path in sorted(folder.glob("*.mp4")):
        video, frames = cv2.VideoCapture(str(path)), []
        while (read := video.read())[0]:
            frame = read[1][..., ::-1]
            wide = round(frame.shape[1] * 96 / frame.shape[0] / 2) * 2
            frames.append(cv2.resize(frame, (wide, 96), interpolation=cv2.INTER_AREA))
        shots += [np.stack(frames[at : at + CLIP]) for at in range(0, len(frames) - CLIP + 1, CLIP)]
    return shots


def shipped() -> Any:
    return load_autoencoder()


def untrained() -> Any:
    """Of 64 channels throughout: norms have 32 groups, and one of one channel would lose a picture's brightness."""
    torch.manual_seed(5)
    vae = AutoencoderKL(
        block_out_channels=(64, 64, 64, 64), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, latent_channels=8,
    )  # fmt: skip
    return with_temporal_decoder(vae)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("autoencoder", "lr", "adversarial_weight"), [(shipped, 1e-7, 0.0), (untrained, 5e-4, 0.5)],
    ids=["shipped, without the discriminator", "untrained, with the discriminator"],
)  # fmt: skip
def test_decoded_clips_come_nearer_to_the_truth(tmp_path, autoencoder, lr, adversarial_weight):
    fetch_samples(tmp_path / "media")
    root = DataRoot.open(tmp_path / "root")
    shots = shots_of(tmp_path / "media")
    made = clip_set(root, tmp_path, shots, fps=24.0)
    held_out = set(range(0, len(shots), 8))
    encode = EncodeSettings(frames=FRAMES, fps=24, height=SIDE, width=SIDE, cache=False)
    manifests = (made.clips, *all_kept(made, tmp_path, held_out))
    samples = tmp_path / "samples.parquet"
    encode_clips(*manifests, samples, root, encode)
    torch.manual_seed(0)
    unet = build_video_unet(UNetSettings(**UNET | {"latent_channels": 8}), "text_to_video")
    save_model(VideoModel("text_to_video", unet, autoencoder()), tmp_path / "start")
    losses = {"perceptual_weight": 0, "adversarial_weight": adversarial_weight, "discriminator_width": 16}
    settings = stage_settings(
        "decoder",
        {"frames": FRAMES, "height": None, "width": None, "steps": STEPS, "batch": BATCH, "lr": lr, "warmup": 20,
         "ema": 0.99, "precision": "fp32", "processes": 2, "latent": "mean", "checkpoint_every": 1000,
         "losses": losses},
    )  # fmt: skip
    report = train_stage("decoder", samples, tmp_path / "start", tmp_path / "model", root, settings, {})
    told = report.summary["training"]["decoder"]["held_out"]
    print(f"\n{len(shots) - len(held_out)} clips to learn from, {len(held_out)} held out, {STEPS} steps of {BATCH}")
    for figure in ("absolute", "psnr_db", "frame_difference"):
        print(f"{figure} {told['before'][figure]:.4f} -> {told['after'][figure]:.4f}")
    assert told["after"]["psnr_db"] > told["before"]["psnr_db"] + 0.5
    assert told["after"]["absolute"] < told["before"]["absolute"]
