"""Model directories, and sampling from them: the same videos as diffusers' own pipeline gives."""

import json
import shutil

import numpy as np
import pytest
import torch

from svdflow.common.errors import BadInputError
from svdflow.common.identity import tree_sha256
from svdflow.diffusion.autoencoder import load_autoencoder
from svdflow.diffusion.conditioning import LOCAL_TEXT_ENCODER, build_feature_extractor, build_image_encoder
from svdflow.diffusion.model_directory import VideoModel, load_model, read_card, save_model
from svdflow.diffusion.motion import MotionCalibration
from svdflow.diffusion.sampling import generate, generate_from_text
from svdflow.diffusion.settings import TINY_UNET
from svdflow.diffusion.unet import build_image_unet, build_video_unet, inflate

CALIBRATION = MotionCalibration.fit([0.5, 1.0, 4.0])


def _unet(kind: str):
    torch.manual_seed(0)
    unet = build_image_unet(TINY_UNET) if kind == "image" else build_video_unet(TINY_UNET, kind)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    return unet.eval()


def _model(kind: str) -> VideoModel:
    card = {
        "stage": kind,
        "dataset": {"name": "demo", "tag": "demo@v1.0.0"},
        "motion_calibration": CALIBRATION.to_dict(),
    }
    if kind in ("image", "text_to_video"):
        return VideoModel(kind, _unet(kind), load_autoencoder(), text_encoder=LOCAL_TEXT_ENCODER, card=card)
    encoder = build_image_encoder(TINY_UNET.cross_attention_dim)
    return VideoModel(kind, _unet(kind), load_autoencoder(), encoder, build_feature_extractor(), card=card)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "image to video"
    save_model(_model("image_to_video"), path)
    return path


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    y, x = np.mgrid[0:64, 0:96]
    return np.stack([2 * x, 3 * y, (x * y) % 256], axis=2).astype(np.uint8)


@pytest.mark.parametrize("guidance", [(1.0, 3.0), (1.0, 1.0)])
def test_diffusers_pipeline_makes_the_same_video_from_the_directory(directory, image, guidance):
    from diffusers import StableVideoDiffusionPipeline
    from PIL import Image

    ours = generate(
        load_model(directory),
        image,
        frames=4,
        fps=7,
        motion_bucket=90,
        noise_aug=0.05,
        steps=4,
        guidance=guidance,
        seed=11,
        decode_chunk=2,
    )
    pipeline = StableVideoDiffusionPipeline.from_pretrained(directory)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        Image.fromarray(image), height=64, width=96, num_frames=4, num_inference_steps=4, fps=7, motion_bucket_id=90,
        noise_aug_strength=0.05,
        min_guidance_scale=guidance[0], max_guidance_scale=guidance[1], decode_chunk_size=2,
        generator=torch.Generator().manual_seed(11), output_type="np",
    ).frames[0]  # fmt: skip
    assert ours.shape == (4, 64, 96, 3) and ours.dtype == np.uint8
    assert ours.std() > 5
    assert np.abs(ours.astype(int) - (theirs * 255).round().astype(int)).max() <= 2


def test_equal_seeds_give_equal_videos_and_conditions_matter(directory, image):
    model = load_model(directory)
    settings = {"frames": 3, "steps": 2, "guidance": (1.0, 2.0)}
    first = generate(model, image, seed=1, **settings)
    assert np.array_equal(first, generate(model, image, seed=1, **settings))
    for change in (
        {"seed": 2},
        {"seed": 1, "motion_bucket": 250},
        {"seed": 1, "fps": 25},
        {"seed": 1, "noise_aug": 0.5},
    ):
        assert not np.array_equal(first, generate(model, image, **settings, **change)), change
    assert not np.array_equal(first, generate(model, image[::-1], seed=1, **settings))


def test_a_motion_score_is_asked_for_through_the_models_own_map(directory, image):
    model = load_model(directory)
    settings = {"frames": 2, "steps": 1, "seed": 1, "guidance": (1.0, 1.0)}
    for score in (0.5, 2.5):
        by_score = generate(model, image, motion_score=score, **settings)
        bucket = CALIBRATION.apply(score)
        assert np.array_equal(by_score, generate(model, image, motion_bucket=bucket, **settings))
        assert not np.array_equal(by_score, generate(model, image, motion_bucket=127, **settings))
    model.card = {}
    with pytest.raises(BadInputError, match="no motion calibration, so it takes a motion bucket"):
        generate(model, image, motion_score=1.0, **settings)


def test_an_orbit_depends_on_the_elevation_and_needs_it(image, tmp_path):
    save_model(_model("multi_view"), tmp_path)
    model = load_model(tmp_path)
    low, high = (generate(model, image, frames=3, steps=2, seed=0, elevation_deg=e) for e in (-5.0, 30.0))
    assert not np.array_equal(low, high)
    with pytest.raises(BadInputError, match="needs elevation_deg"):
        generate(model, image, frames=3, steps=2, seed=0)


@pytest.mark.parametrize("kind", ["image", "text_to_video"])
def test_text_models_survive_the_disk_and_listen_to_the_text(kind, tmp_path):
    model = _model(kind)
    save_model(model, tmp_path)
    size = {"frames": 2, "height": 64, "width": 64, "steps": 2, "seed": 3}
    before, after = (
        generate_from_text(model, "a red disc", **size),
        generate_from_text(load_model(tmp_path), "a red disc", **size),
    )
    assert np.array_equal(before, after)
    assert not np.array_equal(after, generate_from_text(load_model(tmp_path), "a snowy mountain at night", **size))


def test_an_image_model_and_its_inflation_draw_the_same_frames():
    model = _model("image")
    video = VideoModel(
        "text_to_video", inflate(model.unet, TINY_UNET).eval(), model.vae, text_encoder=LOCAL_TEXT_ENCODER
    )
    size = {"frames": 2, "height": 64, "width": 64, "steps": 3, "seed": 5}
    images, frames = (generate_from_text(m, "a red disc", **size) for m in (model, video))
    assert np.abs(images.astype(int) - frames.astype(int)).max() <= 3


def test_the_card_comes_back_and_two_writings_are_equal(directory, tmp_path):
    model = load_model(directory)
    assert model.card["dataset"]["tag"] == "demo@v1.0.0"
    assert MotionCalibration.from_dict(model.card["motion_calibration"]) == CALIBRATION
    save_model(model, tmp_path / "again")
    assert tree_sha256(tmp_path / "again") == tree_sha256(directory)
    text = "".join(p.read_text() for p in directory.rglob("*.json"))
    assert str(directory.parent) not in text and "_name_or_path" not in text


def test_only_safetensors_lie_in_a_model_directory(directory):
    assert {p.suffix for p in directory.rglob("*") if p.is_file()} == {".json", ".safetensors"}


def test_whatever_is_missing_or_damaged_is_named(directory, tmp_path):
    def broken(change) -> str:
        copy = tmp_path / f"copy {len(list(tmp_path.iterdir()))}"
        shutil.copytree(directory, copy)
        change(copy)
        with pytest.raises(BadInputError) as caught:
            load_model(copy)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def cut(path):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def pickled(copy):
        weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
        torch.save({}, weights.with_suffix(".bin"))
        weights.unlink()

    def set_card(copy, **values):
        card = copy / "svdflow.json"
        card.write_text(json.dumps({**json.loads(card.read_text()), **values}))

    assert "svdflow.json: missing" in broken(lambda c: (c / "svdflow.json").unlink())
    assert "svdflow.json: unreadable" in broken(lambda c: cut(c / "svdflow.json"))
    assert "kind 'film' is none of image, text_to_video" in broken(lambda c: set_card(c, kind="film"))
    assert "format 99" in broken(lambda c: set_card(c, format=99))
    assert "says multi_view, but the UNet is of kind image_to_video" in broken(lambda c: set_card(c, kind="multi_view"))
    assert "only safetensors weights are read" in broken(pickled)
    assert "unet: damaged" in broken(lambda c: cut(c / "unet" / "diffusion_pytorch_model.safetensors"))
    assert "vae: damaged" in broken(lambda c: cut(c / "vae" / "diffusion_pytorch_model.safetensors"))
    assert "image_encoder: damaged" in broken(lambda c: cut(c / "image_encoder" / "model.safetensors"))
    assert "unet/config.json: missing" in broken(lambda c: shutil.rmtree(c / "unet"))
    assert "preprocessor_config.json: missing" in broken(lambda c: shutil.rmtree(c / "feature_extractor"))
    with pytest.raises(BadInputError, match="svdflow.json: missing"):
        read_card(tmp_path / "nowhere")


def test_parts_that_do_not_fit_are_refused(tmp_path, image):
    model = _model("image_to_video")
    with pytest.raises(BadInputError, match="cannot hold a UNet of kind image_to_video"):
        save_model(
            VideoModel("multi_view", model.unet, model.vae, model.image_encoder, model.feature_extractor),
            tmp_path / "a",
        )
    with pytest.raises(BadInputError, match="needs image_encoder"):
        save_model(VideoModel("image_to_video", model.unet, model.vae), tmp_path / "b")
    with pytest.raises(BadInputError, match="32 wide, the UNet's context 384"):
        save_model(
            VideoModel("image_to_video", model.unet, model.vae, build_image_encoder(32), model.feature_extractor),
            tmp_path / "c",
        )
    with pytest.raises(BadInputError, match="takes no text"):
        generate_from_text(model, "x", frames=1, height=64, width=64)
    with pytest.raises(BadInputError, match="takes no image"):
        generate(_model("text_to_video"), image, frames=1)
    with pytest.raises(BadInputError, match="uint8"):
        generate(model, image.astype(np.float32), frames=1)
    with pytest.raises(BadInputError, match="multiples of 8"):
        generate(model, image[:60, :90], frames=1)
