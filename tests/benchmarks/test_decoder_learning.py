"""Does the decoder's finetuning learn? The shipped autoencoder on real footage, before and after, on clips held out.

The shipped decoder decodes frame by frame; finetuning gives it its temporal layers to use. Beside the figures that
training tells stands the same training without the discriminator. Takes about a quarter of an hour on two idle cores.
Run with `make bench`, or `pytest -s tests/benchmarks/test_decoder_learning.py`; DECODER_STEPS sets fewer steps for a
quick look, and asserts nothing then.
"""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from svdflow.common.manifests import AXES, write_manifest
from svdflow.common.storage import DataRoot
from svdflow.diffusion.autoencoder import load_autoencoder
from svdflow.diffusion.model_directory import VideoModel, save_model
from svdflow.diffusion.settings import UNetSettings
from svdflow.diffusion.unet import build_video_unet
from svdflow.ingest.samples import fetch_samples
from svdflow.training.encode.encode import encode_clips
from svdflow.training.encode.settings import EncodeSettings
from svdflow.training.train.settings import stage_settings
from svdflow.training.train.train import train_stage
from tests.integration.clip_sets import clip_set
from tests.training_runs import UNET

STEPS = int(os.environ.get("DECODER_STEPS", 400))
FRAMES, SIDE, CLIP = 6, 64, 12


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


@pytest.mark.slow
def test_decoded_clips_come_nearer_to_the_truth_and_flicker_less(tmp_path):
    fetch_samples(tmp_path / "media")
    root = DataRoot.open(tmp_path / "root")
    shots = shots_of(tmp_path / "media")
    made = clip_set(root, tmp_path, shots, fps=24.0)
    held_out = set(range(0, len(shots), 8))
    selection = [
        {"clip_id": clip, "video_id": clip, "keep": True, "reasons": [], "thresholds": "{}"}
        | {"split": "held_out" if n in held_out else "train"}
        | {f"{axis}_failed": False for axis in AXES}
        for n, clip in enumerate(made.ids)
    ]
    notes = [{"clip_id": clip, "caption_image": "a clip", "annotators": "{}"} for clip in made.ids]
    write_manifest("selection", selection, tmp_path / "selection.parquet")
    write_manifest("annotations", notes, tmp_path / "annotations.parquet")
    encode = EncodeSettings(frames=FRAMES, fps=24, height=SIDE, width=SIDE, cache=False)
    manifests = (made.clips, tmp_path / "annotations.parquet", tmp_path / "selection.parquet")
    encode_clips(*manifests, tmp_path / "samples.parquet", root, encode)
    torch.manual_seed(0)
    unet = build_video_unet(UNetSettings(**UNET | {"latent_channels": 8}), "text_to_video")
    save_model(VideoModel("text_to_video", unet, load_autoencoder()), tmp_path / "start")
    print(f"\n{len(shots) - len(held_out)} clips to learn from, {len(held_out)} held out, {STEPS} steps of 8")
    for name, weight in (("with the discriminator", 0.5), ("without it", 0.0)):
        losses = {"perceptual_weight": 0, "adversarial_weight": weight, "discriminator_width": 16}
        settings = stage_settings(
            "decoder",
            {"frames": FRAMES, "height": None, "width": None, "steps": STEPS, "batch": 8, "lr": 3e-4, "warmup": 20,
             "ema": 0.99, "precision": "fp32", "processes": 2, "latent": "mean", "checkpoint_every": 1000,
             "losses": losses},
        )  # fmt: skip
        report = train_stage(
            "decoder", tmp_path / "samples.parquet", tmp_path / "start", tmp_path / name, root, settings, {}
        )
        told = report.summary["training"]["decoder"]["held_out"]
        for figure in ("absolute", "psnr_db", "frame_difference"):
            print(f"{name}: {figure} {told['before'][figure]:.4f} -> {told['after'][figure]:.4f}")
        if "DECODER_STEPS" not in os.environ:
            assert told["after"]["psnr_db"] > told["before"]["psnr_db"]
            assert told["after"]["frame_difference"] < told["before"]["frame_difference"]
