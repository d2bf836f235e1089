"""Tiny training runs on random samples, and how to disturb one."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from svdflow.common.manifests import write_manifest
from svdflow.common.sample_tensors import pack_picture
from svdflow.common.shards import write_shard
from svdflow.common.storage import DataRoot
from svdflow.training.train.settings import stage_settings

UNET = {
    "latent_channels": 4,
    "block_out_channels": [32, 32],
    "layers_per_block": 1,
    "attention_heads": [2, 2],
    "cross_attention_dim": 16,
    "addition_time_embed_dim": 8,
    "num_frames": 2,
    "sample_size": 8,
}
STEPS = 8


def make_autoencoder(directory: Path) -> Path:
    """A tiny autoencoder with random weights, 8 px to a latent."""
    from diffusers import AutoencoderKLTemporalDecoder

    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32, 32, 32), down_block_types=("DownEncoderBlock2D",) * 4, latent_channels=4
    )
    vae.save_pretrained(directory)
    return directory


def make_samples(folder: Path) -> tuple[DataRoot, Path]:
    """A data root with eight random samples, and their manifest."""
    root, rng, rows = DataRoot.open(folder / "root"), np.random.default_rng(0), []
    samples = {
        f"s{i}": {
            "latents": rng.standard_normal((2, 4, 8, 8)).astype(np.float16),
            "text": rng.standard_normal((3, 5, 16)).astype(np.float16),
            "image": rng.standard_normal(16).astype(np.float32),
            "frame": rng.integers(0, 255, (64, 64, 3), dtype=np.uint8),
        }
        for i in range(8)
    }
    write_shard(folder / "shard", samples)
    uri = root.put_file(folder / "shard")
    for index, prefix in enumerate(samples):
        rows.append(
            {
                "sample_id": prefix,
                "clip_id": prefix,
                "split": "train" if index < 6 else "held_out",
                "shard_uri": uri,
                "tensor_prefix": prefix,
                "frames": 2,
                "height": 64,
                "width": 64,
                "fps": 6.0 + index,
                "motion_score": float(index),
                "elevation_deg": 5.0,
                "captions": ["a", "b", "c"],
            }
        )
    write_manifest("samples", rows, folder / "samples.parquet")
    return root, folder / "samples.parquet"


def make_sequences(folder: Path, frames: int = 12) -> tuple[DataRoot, Path]:
    """A data root with eight encoded clips of random frames, at 24 or 48 a second, and their samples manifest."""
    root, rng, rows = DataRoot.open(folder / "root"), np.random.default_rng(2), []
    clips = {
        f"c{i}": {
            "mean": rng.standard_normal((frames, 4, 8, 8)).astype(np.float16),
            "logvar": np.full((frames, 4, 8, 8), -4, np.float16),
            "images": rng.standard_normal((frames, 16)).astype(np.float32),
            "text": rng.standard_normal((3, 5, 16)).astype(np.float16),
        }
        for i in range(8)
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_shard(folder / "clips", clips)
    uri = root.put_file(folder / "clips")
    for index, prefix in enumerate(clips):
        rate = (24.0, 48.0)[index % 2]
        rows.append({
            "sample_id": f"{prefix}-00", "clip_id": prefix, "split": "train" if index < 6 else "held_out",
            "layout": "frames", "shard_uri": uri, "tensor_prefix": prefix, "text_uri": uri, "text_prefix": prefix,
            "frames": 5, "height": 64, "width": 64, "fps": rate, "first_frame": 0, "stride": 1,
            "sequence_frames": frames, "sequence_fps": rate, "start_s": 0.0, "starts": [0],
            "motion_score": float(index), "captions": ["a", "b", "c"],
        })  # fmt: skip
    write_manifest("samples", rows, folder / "sequences.parquet")
    return root, folder / "sequences.parquet"


def make_images(folder: Path, root: DataRoot, count: int = 3) -> Path:
    """Random pictures as samples of one frame, in a data root; returns their manifest."""
    rng = np.random.default_rng(1)
    samples = {
        f"i{i}": {
            "mean": rng.standard_normal((1, 4, 8, 8)).astype(np.float16),
            "logvar": np.full((1, 4, 8, 8), -4, np.float16),
            "images": rng.standard_normal((1, 16)).astype(np.float32),
            "text": rng.standard_normal((3, 5, 16)).astype(np.float16),
            "picture-000000": pack_picture(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)),
        }
        for i in range(count)
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_shard(folder / "images", samples)
    uri = root.put_file(folder / "images")
    rows = [
        {
            "sample_id": f"{prefix}-00", "clip_id": prefix, "split": "train", "layout": "frames", "shard_uri": uri,
            "tensor_prefix": prefix, "text_uri": uri, "text_prefix": prefix, "frames": 1, "height": 64, "width": 64,
            "fps": 7.0, "first_frame": 0, "stride": 1, "sequence_frames": 1, "sequence_fps": 7.0, "start_s": 0.0,
            "starts": [0], "captions": ["d", "e", "f"],
        }
        for prefix in samples
    ]  # fmt: skip
    write_manifest("samples", rows, folder / "images.parquet")
    return folder / "images.parquet"


def settings_for(autoencoder: Path | str, **values):
    base = {
        "height": None,
        "width": None,
        "frames": None,
        "steps": STEPS,
        "batch": 4,
        "processes": 2,
        "zero_stage": 2,
        "precision": "fp32",
        "lr": 1e-3,
        "ema": 0.9,
        "checkpoint_every": 2,
        "held_out_levels": 2,
        "held_out_seeds": 1,
        "unet": UNET,
        "autoencoder": str(autoencoder),
    }
    return stage_settings("image", base | values)


def steps_done(events: Path) -> int:
    """What the progress file tells."""
    lines = events.read_text().splitlines() if events.is_file() else []
    return max((e["done"] for e in map(json.loads, lines) if e.get("what") == "steps"), default=0)


def send(root: DataRoot, number: int, ranks: Iterable[int]) -> None:
    """Send a signal to training processes of the run that this data root has scratch space for."""
    for rank in ranks:
        for path in root.scratch("training").glob(f"*/beat-{rank}.txt"):
            try:
                os.kill(int(path.read_text().split()[0]), number)
            except ProcessLookupError:
                pass


def when(condition: Callable[[], bool], act: Callable[[], None], within_s: float = 1800) -> threading.Thread:
    """Do something as soon as a condition holds, in a thread."""

    def watch():
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            if condition():
                act()
                return
            time.sleep(0.005)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread
