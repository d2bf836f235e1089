"""Videos for a study from a real, tiny text-to-video model."""

import numpy as np
import pytest
import torch

from svdflow.common.errors import BadInputError
from svdflow.common.video import read_frames
from svdflow.diffusion import sampling
from svdflow.diffusion.autoencoder import load_autoencoder
from svdflow.diffusion.conditioning import LOCAL_TEXT_ENCODER
from svdflow.diffusion.model_directory import VideoModel, save_model
from svdflow.diffusion.settings import TINY_UNET
from svdflow.diffusion.unet import build_video_unet
from svdflow.evaluation.study.texts import sample_texts

SIZE = {"frames": 2, "height": 64, "width": 64, "steps": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    unet = build_video_unet(TINY_UNET, "text_to_video").eval()
    folder = tmp_path_factory.mktemp("models") / "text to video"
    card = {"stage": "video_ablation", "dataset": {"name": "demo", "tag": "demo@v1.0.0"}}
    save_model(
        VideoModel("text_to_video", unet, load_autoencoder(), text_encoder=LOCAL_TEXT_ENCODER, card=card), folder
    )
    return folder


def test_each_text_has_its_video_from_noise_of_its_own_and_none_is_made_twice(model, tmp_path):
    texts = tmp_path / "texts.csv"
    texts.write_text("video,text\nred,a red disc\n")
    assert sample_texts(model, texts, tmp_path / "a", **SIZE) == 1
    made = (tmp_path / "a" / "red.mp4").read_bytes()
    texts.write_text("video,text\nsnow,a snowy mountain\nred,a red disc\n")
    assert sample_texts(model, texts, tmp_path / "a", **SIZE) == 1, "the other is there"
    assert sample_texts(model, texts, tmp_path / "b", **SIZE) == 2
    assert (tmp_path / "b" / "red.mp4").read_bytes() == made, "whatever else is asked for"
    assert read_frames(tmp_path / "b" / "snow.mp4", range(2)).shape == (2, 64, 64, 3)
    assert not np.array_equal(*(read_frames(tmp_path / "b" / f"{name}.mp4", [0]) for name in ("red", "snow")))


def test_a_full_gpu_is_told_in_one_line(model, tmp_path, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    (tmp_path / "texts.csv").write_text("video,text\nred,a red disc\n")
    monkeypatch.setattr(sampling, "generate_from_text", full)
    with pytest.raises(BadInputError, match="GPU's memory does not hold 2 frames of 64x64 px"):
        sample_texts(model, tmp_path / "texts.csv", tmp_path / "a", **SIZE)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("video,text\n", "holds no text"),
        ("video,text\n../up,a\n", "line 2: columns video"),
        ("video,text\n.hidden,a\n", "line 2: columns video"),
        ("video,text\na,\n", "line 2: columns video"),
        ("video,text\na,b\na,c\n", "line 3: a comes twice"),
    ],
)
def test_a_list_that_names_no_files_is_refused_before_the_model_is_read(tmp_path, content, says):
    (tmp_path / "texts.csv").write_text(content)
    with pytest.raises(BadInputError, match=says):
        sample_texts(tmp_path / "no model", tmp_path / "texts.csv", tmp_path / "out")
    assert not (tmp_path / "out").exists()
