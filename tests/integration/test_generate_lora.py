"""`svdflow generate --lora`: the video that diffusers' pipeline makes with the same adapters held by peft."""

import shutil

import numpy as np
import pytest
import torch
from generated_files import frames_of_videos, write_picture
from PIL import Image
from safetensors import safe_open
from typer.testing import CliRunner

from svdflow.common.errors import BadInputError
from svdflow.common.video import read_frames
from svdflow.diffusion.autoencoder import load_autoencoder
from svdflow.diffusion.conditioning import build_feature_extractor, build_image_encoder
from svdflow.diffusion.lora import ADAPTER, adapted_layers, apply_lora, inject_lora, save_lora
from svdflow.diffusion.model_directory import VideoModel, load_model, save_model
from svdflow.diffusion.settings import TINY_UNET, LoraSettings
from svdflow.diffusion.unet import build_video_unet
from svdflow.export.generate import generate_file
from svdflow.pipelines.cli import app

ADAPTERS = {"pan": LoraSettings(rank=4, alpha=8), "zoom": LoraSettings(rank=2, modules=["to_q", "to_v"])}
ASKED = {"steps": 2, "seed": 3, "motion_bucket": 90, "guidance": (1.0, 1.0)}


def unet_of(widths):
    torch.manual_seed(0)
    unet = build_video_unet(
        TINY_UNET.model_copy(update={"num_frames": 3, "block_out_channels": widths}), "image_to_video"
    )
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    return unet.eval()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, one of other widths, a picture, and two adapters that have learned something."""
    folder = tmp_path_factory.mktemp("lora")
    for name, widths in (("model", (32, 64)), ("other", (32, 32))):
        encoder = build_image_encoder(TINY_UNET.cross_attention_dim)
        card = {"configuration": {"frames": 3, "height": 48, "width": 64}}
        parts = (load_autoencoder(), encoder, build_feature_extractor(), None, card)
        save_model(VideoModel("image_to_video", unet_of(widths), *parts), folder / name)
    for number, (name, lora) in enumerate(ADAPTERS.items()):
        unet = unet_of((32, 64))
        inject_lora(unet, lora)
        torch.manual_seed(number)
        for key, parameter in unet.named_parameters():
            if ".lora_B." in key:
                torch.nn.init.normal_(parameter, 0, 0.5)
        save_lora(unet.state_dict(), lora, folder / name / ADAPTER)
    write_picture(folder / "in.png")
    return folder


@pytest.fixture
def video(place, tmp_path, monkeypatch):
    """Frames of ``generate_file``, as they are before they become an MP4; and the MP4's bytes."""
    frames = frames_of_videos(monkeypatch)

    def make(*lora, model="model"):
        generate_file(place / "in.png", tmp_path / "o.mp4", model=place / model, lora=lora, **ASKED)
        return frames[-1], (tmp_path / "o.mp4").read_bytes()

    return make


def held_by_peft(unet, path, lora, weight, name):
    """The adapter's file in peft's own layers, nothing merged."""
    from peft import LoraConfig, inject_adapter_in_model

    alpha = weight * lora.scale * lora.rank
    config = LoraConfig(r=lora.rank, lora_alpha=alpha, target_modules=adapted_layers(unet_of((32, 64)), lora))
    inject_adapter_in_model(config, unet, adapter_name=name)
    with safe_open(path, framework="pt") as file:
        given = {key.removeprefix("unet.").replace(".weight", f".{name}.weight"): file.get_tensor(key)
                 for key in file.keys()}  # fmt: skip  # noqa: SIM118
    unknown = unet.load_state_dict(given, strict=False).unexpected_keys
    assert not unknown


def test_the_video_is_that_of_diffusers_pipeline_with_the_adapters(place, video):
    from diffusers import StableVideoDiffusionPipeline

    ours, _ = video(f"{place / 'pan'}=0.8", str(place / "zoom" / ADAPTER))
    plain, _ = video()
    pipeline = StableVideoDiffusionPipeline.from_pretrained(place / "model")
    pipeline.set_progress_bar_config(disable=True)
    for name, weight in (("pan", 0.8), ("zoom", 1.0)):
        held_by_peft(pipeline.unet, place / name / ADAPTER, ADAPTERS[name], weight, name)
    for module in pipeline.unet.modules():
        if hasattr(module, "set_adapter"):
            module.set_adapter(list(ADAPTERS))
    theirs = pipeline(
        Image.open(place / "in.png"), height=48, width=64, num_frames=3, num_inference_steps=2, fps=7,
        motion_bucket_id=90, noise_aug_strength=0.02, min_guidance_scale=1.0, max_guidance_scale=1.0,
        generator=torch.Generator().manual_seed(3), output_type="np",
    ).frames[0]  # fmt: skip
    apart = np.abs(ours.astype(int) - (theirs * 255).round().astype(int))
    assert apart.max() <= 2 and np.abs(ours.astype(int) - plain.astype(int)).max() > 20


def test_a_weight_of_none_is_the_model_and_weights_add_up(place, video):
    plain, plain_mp4 = video()
    frames, mp4 = video(f"{place / 'pan'}=0")
    assert np.array_equal(frames, plain) and mp4 == plain_mp4
    half, _ = video(f"{place / 'pan'}=0.5")
    whole, _ = video(str(place / "pan"))
    assert not np.array_equal(half, plain) and not np.array_equal(whole, half)
    twice, _ = video(f"{place / 'pan'}=0.5", f"{place / 'pan'}=0.5")
    assert np.abs(twice.astype(int) - whole.astype(int)).max() <= 1
    gone, _ = video(str(place / "pan"), f"{place / 'pan'}=-1")
    assert np.abs(gone.astype(int) - plain.astype(int)).max() <= 1


def test_an_adapter_of_another_model_is_refused_by_the_names_of_its_layers(place, video):
    named = r"It adapts mid_block\S+temporal_transformer_blocks\S+to_k of \(64, 64\), and the model has .* more"
    with pytest.raises(BadInputError, match=rf"is of another model: \d+ of its \d+ layers do not fit. {named}"):
        video(str(place / "pan"), model="other")


@pytest.mark.parametrize(
    ("lora", "says"),
    [
        ("nowhere", r"--lora nowhere: there is no adapter nowhere"),
        ("{model}", r"there is no adapter .*lora.safetensors; the stage camera_motion leaves a lora.safetensors"),
        ("{pan}=much", r"'much' is no weight; write DIR=0.8"),
        ("{pan}=nan", r"'nan' is no weight"),
        ("{model}/unet/diffusion_pytorch_model.safetensors", r"is no adapter of svdflow's"),
    ],
)
def test_what_is_no_adapter_is_refused_in_one_line(place, video, lora, says):
    with pytest.raises(BadInputError, match=says):
        video(lora.format(model=place / "model", pan=place / "pan"))


def test_an_adapter_that_the_model_has_merged_in_is_not_put_on_it_again(place, video, tmp_path):
    merged = load_model(place / "model")
    apply_lora(merged.unet, place / "pan" / ADAPTER)
    save_model(merged, tmp_path / "merged")
    shutil.copy(place / "pan" / ADAPTER, tmp_path / "merged")
    with pytest.raises(BadInputError, match=r"has this adapter merged in already; name the model that it was trained"):
        video(str(place / "pan"), model=tmp_path / "merged")
    without, _ = video(f"{place / 'pan'}=-1", model=tmp_path / "merged")
    assert np.abs(without.astype(int) - video()[0].astype(int)).max() <= 1


def test_the_command_takes_several_adapters_and_refuses_them_for_a_server(place, tmp_path):
    command = CliRunner()
    asked = ["generate", str(place / "in.png"), "-o", str(tmp_path / "o.mp4"), "--steps", "1"]
    both = ["--lora", f"{place / 'pan'}=0.5", "--lora", str(place / "zoom")]
    done = command.invoke(app, [*asked, "--model", str(place / "model"), *both], catch_exceptions=False)
    assert done.exit_code == 0 and len(read_frames(tmp_path / "o.mp4", [0, 1, 2])) == 3
    for more in (["--url", "127.0.0.1:1"], []):
        with pytest.raises(BadInputError, match=r"--lora .*pan=0.5: a server puts no adapter .*--model in place of"):
            command.invoke(app, [*asked, *more, *both], catch_exceptions=False)
    with pytest.raises(BadInputError, match="either --url of a server or --model"):
        command.invoke(app, [*asked, "--url", "127.0.0.1:1", "--model", str(place / "model")], catch_exceptions=False)
