"""Samples while a model trains: what the sampler makes of held-out samples, shared out over processes."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from svdflow.common.manifests import read_rows
from svdflow.common.video import read_frames
from svdflow.diffusion.conditioning import build_feature_extractor, build_image_encoder
from svdflow.diffusion.model_directory import VideoModel
from svdflow.diffusion.sampling import generate
from svdflow.diffusion.settings import UNetSettings
from svdflow.diffusion.unet import build_video_unet
from svdflow.training.train.data import SampleSource
from svdflow.training.train.job import GRID
from svdflow.training.train.samples import write_grid, write_samples
from svdflow.training.train.settings import stage_settings
from tests.training_runs import UNET, make_autoencoder, make_samples


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from diffusers import AutoencoderKLTemporalDecoder

    torch.manual_seed(0)
    vae = AutoencoderKLTemporalDecoder.from_pretrained(make_autoencoder(tmp_path_factory.mktemp("vae"))).eval()
    unet = build_video_unet(UNetSettings(**UNET), "image_to_video").eval()
    encoder = build_image_encoder(UNET["cross_attention_dim"])
    return VideoModel("image_to_video", unet, vae, encoder, build_feature_extractor())


def test_every_process_makes_its_share_and_the_same_that_the_sampler_makes(model, tmp_path):
    root, manifest = make_samples(tmp_path)
    source = SampleSource(root, read_rows("samples", manifest))
    settings = stage_settings("image_to_video", {"batch": 2, "processes": 2, "sample_count": 3, "sample_steps": 2})
    calls = []
    for rank in range(2):

        def net(*args, rank=rank, **kwargs):
            calls.append(rank)
            return model.unet(*args, **kwargs)

        with torch.no_grad():
            write_samples(tmp_path, model, net, torch.device("cpu"), source, settings, rank, 2)
    assert calls.count(0) == calls.count(1)  # at ZeRO 3 a call takes all processes
    expected = generate(model, source.tensor(1, "frame"), frames=2, fps=7.0, motion_bucket=127, steps=2, seed=1)
    np.testing.assert_array_equal(np.load(tmp_path / "sample_1.npy"), expected)
    grid = write_grid(tmp_path)
    assert grid.shape == (3 * 64, 2 * 64, 3) and not list(tmp_path.glob("*.npy"))
    np.testing.assert_array_equal(grid[64:128], np.concatenate(list(expected), axis=1))
    assert Image.open(tmp_path / GRID).size == (128, 192)
    video = read_frames(tmp_path / "sample_1.mp4", [0, 1])
    assert video.shape == expected.shape and np.abs(video.astype(int) - expected.astype(int)).mean() < 25


def test_samples_cleared_away_while_others_are_made_stop_nothing(model, tmp_path, monkeypatch):
    root, manifest = make_samples(tmp_path)
    source = SampleSource(root, read_rows("samples", manifest))
    settings = stage_settings("image_to_video", {"batch": 2, "processes": 2, "sample_count": 2, "sample_steps": 1})
    folder = tmp_path / "samples" / "step_00000002"

    def net(*args, **kwargs):
        shutil.rmtree(folder.parent, ignore_errors=True)
        return model.unet(*args, **kwargs)

    with torch.no_grad():
        write_samples(folder, model, net, torch.device("cpu"), source, settings, 0, 1)
    assert write_grid(folder).shape == (64, 2 * 64, 3), "what was made afterwards is there"
    np.save(folder / "sample_0.npy", np.zeros((2, 8, 8, 3), np.uint8))
    load = np.load
    monkeypatch.setattr(np, "load", lambda path: shutil.rmtree(folder) or load(path))
    assert write_grid(folder) is None
