"""Released directories become our models: the same frames as their own pipelines give."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from svdflow.common.errors import BadInputError
from svdflow.diffusion.discrete import DiscreteSchedule
from svdflow.diffusion.edm import EDM, Parameterisation
from svdflow.diffusion.import_model import import_directory, open_model
from svdflow.diffusion.model_directory import VideoModel, load_model, save_model
from svdflow.diffusion.sampling import generate, generate_from_text
from svdflow.diffusion.unet import inflate, to_image_to_video
from svdflow.diffusion.weights_files import find_weights
from tests.released_models import sd21_pipeline, shake, svd_pipeline

STORED = {
    "whole": {},
    "sharded": {"max_shard_size": "600KB"},
    "fp16": {"variant": "fp16"},
    "fp16-sharded": {"variant": "fp16", "max_shard_size": "600KB"},
}


@pytest.fixture(scope="module")
def svd(tmp_path_factory):
    """One release in four forms; the half-precision ones of the rounded weights."""
    root = tmp_path_factory.mktemp("svd")
    pipeline = svd_pipeline()
    for name, how in STORED.items():
        half = "variant" in how
        (pipeline.to(torch.float16) if half else pipeline).save_pretrained(root / name, **how)
    return root


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    y, x = np.mgrid[0:16, 0:24]
    return np.stack([8 * x, 9 * y, (x * y) % 256], axis=2).astype(np.uint8)


@pytest.mark.parametrize("stored", STORED)
def test_a_released_svd_directory_gives_its_pipelines_frames_however_it_is_stored(svd, image, stored):
    from diffusers import StableVideoDiffusionPipeline
    from PIL import Image

    directory, variant = svd / stored, STORED[stored].get("variant")
    shards = [p.name for p in (directory / "unet").glob("*.safetensors")]
    assert (len(shards) > 1) == ("sharded" in stored) and all(("fp16" in n) == bool(variant) for n in shards)
    model = open_model(directory)
    assert (model.kind, model.parameterisation, model.unet.dtype) == ("image_to_video", EDM, torch.float32)
    assert model.card["imported"] == {
        "name": stored,
        "prediction_type": "v_prediction",
        "weights": variant or "full precision",
    }
    assert "motion_calibration" not in model.card
    ours = generate(model, image, frames=3, steps=2, noise_aug=0.05, seed=11, guidance=(1.0, 3.0))
    pipeline = StableVideoDiffusionPipeline.from_pretrained(directory, variant=variant, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        Image.fromarray(image), height=16, width=24, num_frames=3, num_inference_steps=2, noise_aug_strength=0.05,
        min_guidance_scale=1.0, max_guidance_scale=3.0, generator=torch.Generator().manual_seed(11), output_type="np",
    ).frames[0]  # fmt: skip
    assert ours.std() > 5
    assert np.abs(ours.astype(int) - (theirs * 255).round().astype(int)).max() <= 2


def test_full_precision_is_taken_where_both_are_there(svd, tmp_path):
    shutil.copytree(svd / "whole", tmp_path / "both")
    shutil.copytree(svd / "fp16", tmp_path / "both", dirs_exist_ok=True)
    assert find_weights(tmp_path / "both" / "unet", "diffusion_pytorch_model")[1] is None
    assert open_model(tmp_path / "both").card["imported"]["weights"] == "full precision"


def test_an_imported_model_is_saved_and_opened_as_one_of_ours(svd, image, tmp_path):
    model = import_directory(svd / "whole")
    save_model(model, tmp_path / "ours")
    again = open_model(tmp_path / "ours")
    assert again.card == model.card and again.parameterisation == EDM
    size = {"frames": 2, "steps": 1, "seed": 0}
    assert np.array_equal(generate(model, image, **size), generate(again, image, **size))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_stable_diffusion_2_1_directory_draws_its_pipelines_images(prediction, tmp_path):
    """Its own text encoder, schedule, prediction type and empty prompt; the base predicts the noise, 2.1 predicts v."""
    pipeline = sd21_pipeline(tmp_path / "letters", prediction)
    pipeline.save_pretrained(tmp_path / "sd", variant="fp16" if prediction == "epsilon" else None)
    model = open_model(tmp_path / "sd")
    assert model.kind == "image" and model.parameterisation == Parameterisation(prediction, DiscreteSchedule())
    assert model.card["imported"]["prediction_type"] == prediction
    pipeline.set_progress_bar_config(disable=True)
    for guidance in (1.0, 4.0):
        theirs = pipeline(
            "a red ball", height=16, width=24, num_inference_steps=5, guidance_scale=guidance, output_type="np",
            generator=torch.Generator().manual_seed(3),
        ).images[0]  # fmt: skip
        ours = generate_from_text(
            model, "a red ball", frames=1, height=16, width=24, steps=5, seed=3, guidance=(guidance, guidance),
            guidance_shape="constant",
        )[0]  # fmt: skip
        assert np.abs(ours.astype(int) - (theirs * 255).round().astype(int)).max() <= 2, guidance
        assert ours.std() > 5


def test_the_whole_of_a_stable_diffusion_model_goes_with_it_and_grows_into_a_video_model(tmp_path):
    sd21_pipeline(tmp_path / "letters", "v_prediction").save_pretrained(tmp_path / "sd")
    (tmp_path / "sd" / "text_encoder" / "pytorch_model.bin").write_bytes(b"pickled")
    model = import_directory(tmp_path / "sd")
    save_model(model, tmp_path / "ours")
    shutil.rmtree(tmp_path / "sd")
    (tmp_path / "ours").rename(tmp_path / "moved")
    again = load_model(tmp_path / "moved")
    assert again.parameterisation == model.parameterisation
    assert str(tmp_path) not in (tmp_path / "moved" / "svdflow.json").read_text()
    assert not list((tmp_path / "moved").rglob("*.bin"))
    size = {"height": 16, "width": 16, "steps": 3, "seed": 5, "guidance": (4.0, 4.0)}
    image = generate_from_text(again, "a red ball", frames=2, **size)
    told = again.parameterisation
    video = VideoModel(
        "text_to_video", inflate(again.unet).eval(), again.vae, None, None, again.text_encoder, again.card, told
    )
    assert np.abs(image.astype(int) - generate_from_text(video, "a red ball", frames=2, **size).astype(int)).max() <= 3
    save_model(video, tmp_path / "video")
    assert load_model(tmp_path / "video").parameterisation == told  # an ablation model stays one


def test_what_grew_out_of_stable_diffusion_loads_with_diffusers_pipeline(image, tmp_path):
    """With Stable Diffusion's own autoencoder, whose decoder knows no time."""
    from diffusers import StableVideoDiffusionPipeline
    from PIL import Image

    sd21_pipeline(tmp_path / "letters", "epsilon").save_pretrained(tmp_path / "sd")
    start, clip = import_directory(tmp_path / "sd"), svd_pipeline()
    unet = shake(to_image_to_video(inflate(start.unet)))
    model = VideoModel("image_to_video", unet, start.vae, clip.image_encoder, clip.feature_extractor)
    save_model(model, tmp_path / "ours")
    ours = generate(load_model(tmp_path / "ours"), image, frames=2, steps=2, seed=4)
    pipeline = StableVideoDiffusionPipeline.from_pretrained(tmp_path / "ours")
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        Image.fromarray(image), height=16, width=24, num_frames=2, num_inference_steps=2,
        generator=torch.Generator().manual_seed(4), output_type="np",
    ).frames[0]  # fmt: skip
    assert ours.std() > 5
    assert np.abs(ours.astype(int) - (theirs * 255).round().astype(int)).max() <= 2


def test_an_old_autoencoders_attention_is_read_under_its_old_names(tmp_path):
    """Stable Diffusion 2.1's was written before diffusers renamed these layers."""
    sd21_pipeline(tmp_path / "letters", "epsilon").save_pretrained(tmp_path / "sd")
    now = import_directory(tmp_path / "sd").vae.state_dict()
    weights = tmp_path / "sd" / "vae" / "diffusion_pytorch_model.safetensors"
    old = {}
    for name, tensor in load_file(weights).items():
        for new, former in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            name = name.replace(f".{new}.", f".{former}.")
        old[name] = tensor
    assert "encoder.mid_block.attentions.0.proj_attn.weight" in old
    save_file(old, weights)
    again = import_directory(tmp_path / "sd").vae.state_dict()
    assert all(torch.equal(now[name], again[name]) for name in now) and now.keys() == again.keys()


def test_what_is_missing_unknown_or_pickled_is_named(svd, tmp_path):
    def broken(change) -> str:
        copy = tmp_path / f"copy {len(list(tmp_path.iterdir()))}"
        shutil.copytree(svd / "whole", copy)
        change(copy)
        with pytest.raises(BadInputError) as caught:
            open_model(copy)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def tensors(change):
        def rewrite(copy):
            weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
            values = load_file(weights)
            change(values)
            save_file(values, weights)

        return rewrite

    def set_json(name, **values):
        def rewrite(copy):
            (copy / name).write_text(json.dumps({**json.loads((copy / name).read_text()), **values}))

        return rewrite

    def pickled(copy):
        (copy / "unet" / "diffusion_pytorch_model.safetensors").rename(copy / "unet" / "diffusion_pytorch_model.bin")

    def lost_shard(copy):
        shutil.rmtree(copy)
        shutil.copytree(svd / "sharded", copy)
        next((copy / "unet").glob("*-00002-of-*")).unlink()

    assert "unet: damaged or of another architecture (1 tensors are missing: conv_out.bias)" in broken(
        tensors(lambda t: t.pop("conv_out.bias"))
    )
    assert "1 tensors are unknown: lora.up" in broken(tensors(lambda t: t.update({"lora.up": torch.zeros(1)})))
    assert "conv_out.bias is (3,), not (4,)" in broken(tensors(lambda t: t.update({"conv_out.bias": torch.zeros(3)})))
    assert "diffusion_pytorch_model.bin is pickled" in broken(pickled)
    assert "index.json names it" in broken(lost_shard)
    assert "scheduler_config.json: missing" in broken(lambda c: shutil.rmtree(c / "scheduler"))
    assert "scheduler_config.json: prediction_type 'flow' is none of" in broken(
        set_json("scheduler/scheduler_config.json", prediction_type="flow")
    )
    assert "holds a VQModel" in broken(set_json("vae/config.json", _class_name="VQModel"))
    assert "is of no known kind" in broken(set_json("unet/config.json", addition_time_embed_dim=48))
    with pytest.raises(BadInputError, match=r"neither svdflow.json nor a folder unet/"):
        open_model(tmp_path)
