"""Models compute where they lie: all their parts on another device, frames are the same but for rounding."""

import numpy as np
import pytest
import torch

from svdflow.common.errors import BadInputError
from svdflow.diffusion import device as device_module
from svdflow.diffusion.autoencoder import load_autoencoder
from svdflow.diffusion.conditioning import LOCAL_TEXT_ENCODER, build_feature_extractor, build_image_encoder
from svdflow.diffusion.device import default_device, place, within_memory
from svdflow.diffusion.interpolating import interpolate
from svdflow.diffusion.model_directory import VideoModel
from svdflow.diffusion.sampling import generate, generate_from_text
from svdflow.diffusion.settings import TINY_UNET
from svdflow.diffusion.unet import build_video_unet
from svdflow.training.encode import encoders as encoders_module
from svdflow.training.encode.encoders import Encoders
from svdflow.training.encode.settings import EncodeSettings
from svdflow.training.train.endings import line_of
from tests.other_device import DEVICE, SecondDevice


def model(kind: str) -> VideoModel:
    torch.manual_seed(0)
    unet = build_video_unet(TINY_UNET, kind).eval().requires_grad_(False)
    if kind == "text_to_video":
        return VideoModel(kind, unet, load_autoencoder(), text_encoder=LOCAL_TEXT_ENCODER)
    encoder = build_image_encoder(TINY_UNET.cross_attention_dim)
    return VideoModel(kind, unet, load_autoencoder(), encoder, build_feature_extractor())


def same_but_for_rounding(there: np.ndarray, here: np.ndarray) -> bool:
    """On another device torch may take another kernel, whose sums run in another order."""
    return there.shape == here.shape and np.abs(there.astype(int) - here).max() <= 1


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)


def test_a_video_from_a_picture_is_that_of_main_memory(picture):
    here = generate(model("image_to_video"), picture, frames=3, steps=2)
    moved = model("image_to_video")
    with SecondDevice():
        place(moved, DEVICE)
        assert {next(part.parameters()).device for part in (moved.unet, moved.vae, moved.image_encoder)} == {DEVICE}
        there = generate(moved, picture, frames=3, steps=2)
    assert isinstance(there, np.ndarray) and same_but_for_rounding(there, here)


def test_a_video_from_a_text_is_that_of_main_memory():
    told = {"frames": 2, "height": 32, "width": 32, "steps": 2, "negative_prompt": "blurred"}
    here = generate_from_text(model("text_to_video"), "a dog runs", **told)
    moved = model("text_to_video")
    with SecondDevice():
        there = generate_from_text(place(moved, DEVICE), "a dog runs", **told)
    assert same_but_for_rounding(there, here)


def test_frames_between_others_are_those_of_main_memory(picture):
    frames = np.stack([np.roll(picture, 4 * place, axis=1) for place in range(3)])
    told = {"fps": 7, "steps": 2, "guidance": (2.0, 2.0), "batch": 2}
    here = interpolate(model("interpolation"), frames, **told)
    moved = model("interpolation")
    with SecondDevice():
        there = interpolate(place(moved, DEVICE), frames, **told)
    assert same_but_for_rounding(there, here) and not np.array_equal(here[1:4], here[5:8])


def test_frames_are_encoded_on_the_gpu_and_come_back(picture, monkeypatch):
    frames = picture[None].repeat(2, axis=0)
    here = Encoders(EncodeSettings(frames=1))
    mean, logvar = here.moments(frames)
    embeddings = here.images(frames)
    monkeypatch.setattr(encoders_module, "default_device", lambda: DEVICE)
    with SecondDevice():
        there = Encoders(EncodeSettings(frames=1))
        moved, embedded = there.moments(frames), there.images(frames)
        assert next(there._loaded["vae"].parameters()).device == DEVICE
    for found, expected in ((moved[0], mean), (moved[1], logvar), (embedded, embeddings)):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_gpu_is_taken_where_there_is_one(monkeypatch):
    for there, expected in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(device_module.torch.cuda, "is_available", lambda there=there: there)
        assert default_device() == torch.device(expected)


def test_a_full_gpu_is_told_with_what_to_do():
    with pytest.raises(BadInputError, match=r"does not hold 14 frames: take fewer frames.*tried 3 GiB"):
        with within_memory("14 frames"):
            raise torch.OutOfMemoryError("CUDA out of memory: tried 3 GiB\nmore of it")
    try:
        raise torch.OutOfMemoryError("CUDA out of memory")
    except torch.OutOfMemoryError as error:
        line = line_of(error, "video")
    assert "set train_video.gradient_checkpointing=true" in line and "CUDA out of memory (test_device.py:" in line
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        assert line_of(error).startswith("ValueError: two lines (test_device.py:")


def test_the_second_device_refuses_what_a_gpu_refuses():
    with SecondDevice():
        there = torch.ones(2).to(DEVICE)
        assert (there + 1).device == DEVICE and there.cpu().tolist() == [1.0, 1.0]
        with pytest.raises(RuntimeError, match="same device"):
            there + torch.ones(2)
        with pytest.raises((RuntimeError, TypeError)):
            there.numpy()
