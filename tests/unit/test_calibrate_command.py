"""`svdflow train calibrate`: a model that came without a motion map gets one that is measured on itself."""

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from svdflow.common.errors import BadInputError
from svdflow.common.identity import file_sha256
from svdflow.diffusion import sampling
from svdflow.diffusion.autoencoder import load_autoencoder
from svdflow.diffusion.conditioning import build_feature_extractor, build_image_encoder
from svdflow.diffusion.model_directory import VideoModel, read_card, save_model
from svdflow.diffusion.motion import MotionCalibration
from svdflow.diffusion.settings import TINY_UNET
from svdflow.diffusion.unet import build_video_unet
from svdflow.pipelines.cli import app


def sliding(step_px: float, frames: int, height: int, width: int) -> np.ndarray:
    """A texture that moves by so many pixels a frame."""
    texture = np.random.default_rng(0).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    large = texture.repeat(8, 0).repeat(8, 1)
    return np.stack([np.roll(large, round(n * step_px), 1) for n in range(frames)])


@pytest.fixture
def released(tmp_path, monkeypatch):
    """A model directory as others publish them, whose videos move faster the higher the bucket."""
    torch.manual_seed(0)
    unet, encoder = build_video_unet(TINY_UNET, "image_to_video"), build_image_encoder(TINY_UNET.cross_attention_dim)
    save_model(
        VideoModel("image_to_video", unet, load_autoencoder(), encoder, build_feature_extractor()), tmp_path / "model"
    )
    (tmp_path / "model" / "svdflow.json").unlink()

    def generate(model, image, *, frames, fps, motion_bucket, seed, steps):
        assert image.shape == (64, 128, 3) and steps == 3
        return sliding(motion_bucket / 200, frames, 64, 128)

    monkeypatch.setattr(sampling, "generate", generate)
    (tmp_path / "pictures").mkdir()
    for number in range(2):
        Image.fromarray(np.full((90, 200, 3), 60 * number, np.uint8)).save(tmp_path / "pictures" / f"{number}.png")
    return tmp_path / "model"


def run(model, *more: object):
    command = ["train", "calibrate", model, "--images", model.parent / "pictures", "--height", 64, "--width", 128,
               "--steps", 3, "--seeds", 1, *more]  # fmt: skip
    return CliRunner().invoke(app, [str(part) for part in command], env={"COLUMNS": "200"})


def test_a_released_model_becomes_one_with_a_map_of_its_own(released, tmp_path):
    done = run(released, "-o", tmp_path / "with a map")
    assert done.exit_code == 0, done.exception or done.output
    assert f"model: {tmp_path / 'with a map'}" in done.output and "rank correlation" in done.output
    card = read_card(tmp_path / "with a map")
    assert card["motion_calibration"]["estimated"]["rank_correlation"] > 0.9
    calibration = MotionCalibration.from_dict(card["motion_calibration"])
    assert calibration.apply(0) < 40 and calibration.apply(1000) > 200
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert file_sha256(tmp_path / "with a map" / weights) == file_sha256(released / weights)
    # a map is never replaced silently
    refused = run(tmp_path / "with a map")
    assert isinstance(refused.exception, BadInputError) and "has a motion map" in str(refused.exception)
    assert run(tmp_path / "with a map", "--replace").exit_code == 0


def test_what_cannot_be_done_is_refused_with_the_remedy(released, tmp_path):
    refused = run(released)
    assert "say with --out where to write one" in str(refused.exception)
    refused = run(released, "-o", tmp_path / "pictures")
    assert "is there already" in str(refused.exception)
    (tmp_path / "pictures" / "0.png").write_text("no picture")
    assert "is no picture that can be read" in str(run(released, "-o", tmp_path / "out").exception)
    for path in (tmp_path / "pictures").iterdir():
        path.unlink()
    assert "holds no picture" in str(run(released, "-o", tmp_path / "out").exception)


def test_training_starts_from_a_released_directory(released):
    from svdflow.training.train.model import start_model
    from svdflow.training.train.settings import stage_settings

    own = {"processes": 1, "batch": 1}
    with pytest.raises(BadInputError, match="what its motion buckets stand for is not known"):
        start_model("image_to_video", released, stage_settings("image_to_video", own))
    model = start_model("image_to_video", released, stage_settings("image_to_video", own | {"refit_motion": True}))
    assert model.kind == "image_to_video" and all(p.requires_grad for p in model.unet.parameters())
    with pytest.raises(BadInputError, match="a model of kind image_to_video cannot start stage video"):
        start_model("video", released, stage_settings("video", {"processes": 1, "batch": 1}))
