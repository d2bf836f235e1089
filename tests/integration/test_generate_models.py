"""`svdflow generate --model`: any image-to-video model there is, at a size asked for, by a bucket or a motion score."""

import shutil

import numpy as np
import pytest
import torch
from generated_files import frames_of_videos, write_picture
from typer.testing import CliRunner

from svdflow.common.errors import BadInputError
from svdflow.diffusion.autoencoder import load_autoencoder
from svdflow.diffusion.conditioning import build_feature_extractor, build_image_encoder
from svdflow.diffusion.convert import convert_model
from svdflow.diffusion.model_directory import VideoModel, save_model
from svdflow.diffusion.motion import MotionCalibration
from svdflow.diffusion.settings import TINY_UNET
from svdflow.diffusion.unet import build_video_unet
from svdflow.export.in_process import video_size_of
from svdflow.pipelines.cli import app

CALIBRATION = MotionCalibration((0.0, 10.0), (0.0, 200.0), "px")
SIZE = ("--frames", "2", "--height", "48", "--width", "64")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """One model as ours, as others publish it, and in the authors' single file."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    unet = build_video_unet(TINY_UNET, "image_to_video")
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    encoder = build_image_encoder(TINY_UNET.cross_attention_dim)
    card = {
        "configuration": {"frames": 2, "height": 48, "width": 64},
        "motion_calibration": CALIBRATION.to_dict(),
    }
    model = VideoModel(
        "image_to_video", unet.eval(), load_autoencoder(), encoder, build_feature_extractor(), None, card
    )
    save_model(model, folder / "ours")
    shutil.copytree(folder / "ours", folder / "released")
    (folder / "released" / "svdflow.json").unlink()
    convert_model(folder / "ours", folder / "single.safetensors")
    write_picture(folder / "in.png")
    return folder


@pytest.fixture
def video(place, tmp_path, monkeypatch):
    """Frames of the command, as they are before they become an MP4."""
    frames = frames_of_videos(monkeypatch)

    def make(model, *more):
        command = [
            "generate",
            place / "in.png",
            "-o",
            tmp_path / "o.mp4",
            "--model",
            place / model,
            "--steps",
            1,
            *more,
        ]
        done = CliRunner().invoke(app, [str(word) for word in command])
        if done.exception:
            raise done.exception
        return frames[-1]

    return make


def test_a_model_makes_the_same_video_in_every_form(video):
    ours = video("ours")
    assert ours.shape == (2, 48, 64, 3)
    assert np.array_equal(video("released", *SIZE), ours)
    assert np.abs(video("single.safetensors").astype(int) - ours).max() <= 1
    assert video("ours", "--frames", "3", "--width", "72").shape == (3, 48, 72, 3)


def test_a_motion_score_goes_through_the_models_map(video):
    asked = video("ours", "--motion-score", "6")
    assert np.array_equal(asked, video("ours", "--motion-bucket", "120"))
    with pytest.raises(BadInputError, match="released has no motion map; `svdflow train calibrate` estimates one"):
        video("released", *SIZE, "--motion-score", "6")
    with pytest.raises(BadInputError, match="--motion-score and --motion-bucket are two ways to say the same"):
        video("ours", "--motion-score", "6", "--motion-bucket", "120")


def test_what_a_released_model_does_not_tell_is_the_released_size():
    with torch.device("meta"):
        unet = build_video_unet(TINY_UNET, "image_to_video")
    model = VideoModel("image_to_video", unet, None)
    assert video_size_of(model, {}) == {"frames": 8, "height": 576, "width": 1024}
    assert video_size_of(model, {"height": 320, "width": 576})["height"] == 320


def test_a_served_models_size_and_map_are_its_own(place):
    for option, value in (("--height", "64"), ("--motion-score", "3")):
        done = CliRunner().invoke(app, ["generate", str(place / "in.png"), option, value])
        assert f"{option}: a served model has a size of its own" in str(done.exception)
