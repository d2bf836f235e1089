"""Real DeepSpeed in two processes: an interrupted run ends where an uninterrupted one does, and work done is found."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from svdflow.common.errors import SvdflowError
from svdflow.common.manifests import read_rows, write_manifest
from svdflow.common.shards import write_shard
from svdflow.common.storage import DataRoot
from svdflow.training.train.launcher import TrainingInterrupted
from svdflow.training.train.settings import stage_settings
from svdflow.training.train.train import train_stage

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


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory) -> Path:
    """A tiny autoencoder with random weights, 8 px to a latent."""
    from diffusers import AutoencoderKLTemporalDecoder

    directory = tmp_path_factory.mktemp("autoencoder")
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32, 32, 32), down_block_types=("DownEncoderBlock2D",) * 4, latent_channels=4
    )
    vae.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data root with eight random samples, and their manifest."""
    folder = tmp_path_factory.mktemp("training data")
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


def settings_for(autoencoder: Path, **values):
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


def training_processes() -> list[str]:
    lines = []
    for process in psutil.process_iter():
        try:
            lines.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return [line for line in lines if "svdflow.training.train.worker" in line and str(os.getpid()) not in line]


def weights(model: Path) -> bytes:
    return (model / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()


def interrupt_at(step: int, events: Path) -> threading.Thread:
    """Send this process SIGTERM as soon as the progress file tells of that step."""

    def watch():
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline:
            lines = events.read_text().splitlines() if events.is_file() else []
            if any(e.get("what") == "steps" and e["done"] >= step for e in map(json.loads, lines)):
                os.kill(os.getpid(), signal.SIGTERM)
                return
            time.sleep(0.02)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
def test_an_interrupted_run_goes_on_and_ends_bit_identical_and_is_then_found(data, autoencoder, tmp_path, monkeypatch):
    root, samples = data
    settings = settings_for(autoencoder)
    whole = train_stage("image", samples, None, tmp_path / "whole", root, settings, {"name": "random", "tag": "v1"})
    told = whole.summary["training"]["image"]
    assert (told["steps"], told["world_size"], told["zero_stage"], told["resumed_from"]) == (STEPS, 2, 2, None)
    assert told["held_out_loss_after"] != told["held_out_loss_before"]

    events = tmp_path / "events.jsonl"
    monkeypatch.setenv("SVDFLOW_EVENTS", str(events))
    other = DataRoot.open(tmp_path / "another root")
    for row in read_rows("samples", samples):
        other.put_file(root.fetch(row["shard_uri"]))
    handler = signal.getsignal(signal.SIGTERM)
    watcher = interrupt_at(3, events)
    with pytest.raises(TrainingInterrupted, match="SIGTERM"):
        train_stage("image", samples, None, tmp_path / "broken", other, settings, {"name": "random", "tag": "v1"})
    watcher.join()
    assert signal.getsignal(signal.SIGTERM) is handler
    assert not (tmp_path / "broken").exists() and training_processes() == []

    resumed = train_stage(
        "image", samples, None, tmp_path / "resumed", other, settings, {"name": "random", "tag": "v1"}
    )
    start = resumed.summary["training"]["image"]["resumed_from"]
    assert 3 <= start <= STEPS
    assert weights(tmp_path / "resumed") == weights(tmp_path / "whole")
    assert resumed.sections[0]["series"] == whole.sections[0]["series"]
    assert list((tmp_path / "another root").glob("scratch/training/*/checkpoints")) == []

    writes = root.writes
    again = train_stage("image", samples, None, tmp_path / "again", root, settings, {"name": "random", "tag": "v1"})
    assert (again.done, again.reused, root.writes) == (0, 1, writes)
    assert weights(tmp_path / "again") == weights(tmp_path / "whole")
    assert again.summary == whole.summary


@pytest.mark.slow
def test_a_failure_inside_a_worker_comes_back_as_one_line(data, autoencoder, tmp_path):
    root, samples = data
    settings = settings_for(autoencoder, processes=1, unet=UNET | {"latent_channels": 8}, seed=5)
    with pytest.raises(SvdflowError, match="latents have 4 channels, the model takes 8") as caught:
        train_stage("image", samples, None, tmp_path / "out", root, settings, {})
    assert "\n" not in str(caught.value) and "train.log" in str(caught.value)
    assert training_processes() == []
