"""The decoder's finetuning on real clips: two processes, a run that is stopped, and what is left of the model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from svdflow.common.errors import BadInputError, ConfigError
from svdflow.common.identity import tree_sha256
from svdflow.common.manifests import read_rows, write_manifest
from svdflow.common.sample_tensors import read_clip_frames
from svdflow.diffusion.autoencoder import decode_latents, encode_frames, load_autoencoder
from svdflow.diffusion.conditioning import LOCAL_TEXT_ENCODER
from svdflow.diffusion.model_directory import VideoModel, load_model, save_model
from svdflow.diffusion.settings import UNetSettings
from svdflow.diffusion.unet import build_video_unet
from svdflow.training.encode.encode import encode_clips
from svdflow.training.encode.settings import EncodeSettings
from svdflow.training.train.heartbeat import Heartbeat
from svdflow.training.train.job import Job
from svdflow.training.train.settings import stage_settings
from svdflow.training.train.signals import Asked
from svdflow.training.train.train import train_stage
from svdflow.training.train.trainer import Trainer
from tests.engine_runs import one_process
from tests.integration.clip_sets import all_kept, clip_set
from tests.training_runs import UNET

FRAMES, SIDE = 4, 32


def settings_for(**values):
    base = {"frames": FRAMES, "height": None, "width": None, "batch": 2, "processes": 1, "zero_stage": 2, "steps": 3,
            "precision": "fp32", "lr": 1e-3, "ema": 0.9, "checkpoint_every": 1, "held_out_samples": 2, "clip": 0.0,
            "losses": {"perceptual_weight": 0, "discriminator_width": 8, "discriminator_layers": 2}}  # fmt: skip
    return stage_settings("decoder", base | values)


@pytest.fixture
def site(root, tmp_path) -> tuple[Path, Path]:
    """A samples manifest of clips that are not encoded, and the model to start from."""
    rng = np.random.default_rng(0)
    shots = [
        np.kron(rng.integers(0, 255, (8, 4, 4, 3), dtype=np.uint8), np.ones((1, 8, 8, 1), np.uint8)) for _ in range(5)
    ]
    made = clip_set(root, tmp_path, shots)
    encode = EncodeSettings(frames=FRAMES, fps=12, height=SIDE, width=SIDE, cache=False)
    manifests = (made.clips, *all_kept(made, tmp_path, (0, 1)))
    encode_clips(*manifests, tmp_path / "samples.parquet", root, encode)
    torch.manual_seed(0)
    unet = build_video_unet(UNetSettings(**UNET | {"latent_channels": 8, "cross_attention_dim": 384}), "text_to_video")
    model = VideoModel("text_to_video", unet, load_autoencoder(), text_encoder=LOCAL_TEXT_ENCODER, card={"stage": "x"})
    save_model(model, tmp_path / "start")
    return tmp_path / "samples.parquet", tmp_path / "start"


def tensors(model: Path, part: str) -> dict[str, torch.Tensor]:
    return load_file(model / part / "diffusion_pytorch_model.safetensors")


def test_two_processes_leave_a_model_whose_decoder_alone_is_another_and_tell_how_good_it_is(site, root, tmp_path):
    samples, start = site
    out = tmp_path / "model"
    settings = settings_for(processes=2, sample_every=2, sample_count=2, validate_every=2)
    report = train_stage("decoder", samples, start, out, root, settings, {"name": "demo"})
    before, after = tensors(start, "vae"), tensors(out, "vae")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("decoder.") for name in changed)
    assert any("temporal_res_block" in name for name in changed)
    assert (start / "unet/diffusion_pytorch_model.safetensors").read_bytes() == (
        out / "unet/diffusion_pytorch_model.safetensors"
    ).read_bytes()
    card = json.loads((out / "svdflow.json").read_text())
    assert (card["kind"], card["stage"], card["decoder"]["steps"]) == ("text_to_video", "x", 3)
    assert card["parents"][-1]["tree"] == tree_sha256(start)

    # what is told of the held-out clips, measured again on the model that was written
    told = report.summary["training"]["decoder"]["held_out"]
    for directory, figures in ((start, told["before"]), (out, told["after"])):
        model, psnr, moved = load_model(directory), [], []
        for row in (row for row in read_rows("samples", samples) if row["split"] == "held_out"):
            assert row["starts"] and row["stride"] == 1
            windows = range(row["sequence_frames"] - FRAMES + 1)
            first = windows[int(0.5 * len(windows))]
            frames = read_clip_frames(row, range(first, first + FRAMES), lambda uri, *at: root.read_range(uri, *at))
            decoded = decode_latents(model.vae, encode_frames(model.vae, frames))
            apart = decoded.astype(float) - frames
            psnr.append(-10 * np.log10(((apart / 255) ** 2).mean()))
            moved.append(np.abs(np.diff(apart, axis=0)).mean())
        assert figures["psnr_db"] == pytest.approx(np.mean(psnr), abs=0.05)  # rounding to 8 bits
        assert figures["frame_difference"] == pytest.approx(np.mean(moved), rel=0.05)
    titles = [section["title"] for section in report.sections]
    assert {"Held-out clips", "Samples while it trained", "Samples at the end"} <= set(titles)
    again = train_stage("decoder", samples, start, tmp_path / "again", root, settings, {"name": "demo"})
    assert again.reused == 1 and tree_sha256(tmp_path / "again") == tree_sha256(out)


def test_a_run_that_was_stopped_ends_as_one_that_was_not(site, root, tmp_path):
    samples, start = site

    def train(name: str, stop_at: int = 0) -> dict | None:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        asked = Asked()
        settings = settings_for(losses={**settings_for().losses.model_dump(), "adversarial_from": 1})
        job = Job("decoder", settings, samples, root.location, start, folder / "checkpoints", None, folder / "logs",
                  folder / "samples", folder / "model", {"init": None, "configuration": {}})  # fmt: skip
        run = Trainer(job, asked, Heartbeat(folder, 0))
        losses_of = run.objective.losses_of

        def stopping(batch):
            asked.to_stop = run.engine.step + 1 == stop_at
            return losses_of(batch)

        run.objective.losses_of = stopping
        return run.run()

    with one_process():
        whole = train("whole")
        assert train("stopped", stop_at=2) is None
        resumed = train("stopped")
    assert resumed["resumed_from"] == 2 and resumed["loss"] == whole["loss"]
    assert tree_sha256(tmp_path / "whole/model") == tree_sha256(tmp_path / "stopped/model")
    parts = load_file(tmp_path / "stopped/checkpoints/step_00000003/model.safetensors")
    assert any(name.startswith("discriminator.") for name in parts), "the adversary goes on too"


def test_what_a_decoder_cannot_learn_from_is_refused_with_the_remedy(site, root, tmp_path):
    samples, start = site
    rows = [row | {"layout": "frames", "shard_uri": row["clip_shard"]} for row in read_rows("samples", samples)]
    write_manifest("samples", rows, tmp_path / "encoded.parquet")
    with pytest.raises(BadInputError, match=r"learns from frames; set encode\.cache=false"):
        train_stage("decoder", tmp_path / "encoded.parquet", start, tmp_path / "out", root, settings_for(), {})
    absent = settings_for(losses={"lpips_backbone": "absent", "lpips_heads": "absent"})
    with pytest.raises(ConfigError, match=r"train_decoder\.losses\.lpips_backbone: absent: there is no such file"):
        train_stage("decoder", samples, start, tmp_path / "out", root, absent, {})
    with pytest.raises(ConfigError, match=r"train_decoder\.losses\.lpips_backbone.*perceptual_weight=0"):
        train_stage("decoder", samples, start, tmp_path / "out", root, settings_for(losses={}), {})
    config = json.loads((start / "unet/config.json").read_text())
    (start / "unet/config.json").write_text(json.dumps(config | {"num_frames": None}))
    with pytest.raises(BadInputError, match="kind image cannot start stage decoder, which takes text_to_video"):
        train_stage("decoder", samples, start, tmp_path / "out", root, settings_for(), {})
    for name, value in (("lora", {"rank": 2}), ("zero_stage", 3), ("compile", True), ("short_frames", [1])):
        with pytest.raises(ConfigError, match=f"train_decoder.{name}: "):
            settings_for(**{"zero_stage": 2, name: value})
