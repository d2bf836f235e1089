"""The authors' single-file layout: import, export, and what is refused."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from svdflow.common.errors import BadInputError
from svdflow.diffusion.import_model import import_directory, open_model
from svdflow.diffusion.model_directory import VideoModel
from svdflow.diffusion.original_names import FIRST_STAGE, FRAME_ENCODER, IMAGE_ENCODER, UNET
from svdflow.diffusion.sampling import generate
from svdflow.diffusion.single_file import export_single_file, import_single_file
from tests.released_models import svd_pipeline

HEADS = {"head_channels": 16, "image_head_channels": 16}  # of the tiny model: widths of 32 with 2 heads


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> VideoModel:
    directory = tmp_path_factory.mktemp("svd") / "model"
    svd_pipeline().save_pretrained(directory)
    model = import_directory(directory)
    model.card["motion_calibration"] = {"scores": [0.0, 1.0], "buckets": [0.0, 255.0], "unit": "px"}
    return model


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("single") / "svd.safetensors"
    export_single_file(model, path)
    return path


def _same(a: VideoModel, b: VideoModel) -> None:
    for part in ("unet", "vae", "image_encoder"):
        ours, theirs = getattr(a, part).state_dict(), getattr(b, part).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), part


def _frames(model: VideoModel) -> np.ndarray:
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    return generate(model, image, frames=3, steps=2, seed=1)


def _rewritten(path, tmp_path, change, metadata=None):
    tensors = load_file(path)
    change(tensors)
    out = tmp_path / "changed.safetensors"
    save_file(tensors, out, metadata)
    return out


def test_a_model_comes_back_tensor_for_tensor_and_frame_for_frame(model, path):
    again = open_model(path)
    _same(model, again)
    assert np.array_equal(_frames(model), _frames(again))
    assert again.card["motion_calibration"] == model.card["motion_calibration"]
    assert again.card["single_file"]["encoders_differ_by"] == pytest.approx(0, abs=1e-6)
    assert path.stat().st_mode & 0o044 and not list(path.parent.glob("*.partial"))


def test_a_release_without_our_metadata_is_read_by_its_shapes_alone(model, path, tmp_path):
    """With what a release holds beside: the text half of CLIP, and the frame encoder's unused other half."""

    def as_released(tensors):
        for name in ("positional_embedding", "text_projection", "token_embedding.weight", "ln_final.weight"):
            tensors[IMAGE_ENCODER + name] = torch.zeros(2, 2)
        tensors[IMAGE_ENCODER + "logit_scale"] = torch.tensor(4.6)
        tensors[FRAME_ENCODER + "decoder.conv_in.weight"] = torch.zeros(2, 2)
        tensors[FRAME_ENCODER + "post_quant_conv.bias"] = torch.zeros(2)

    again = import_single_file(_rewritten(path, tmp_path, as_released), num_frames=4, **HEADS)
    _same(model, again)
    assert again.card["imported"]["name"] == "changed.safetensors" and "motion_calibration" not in again.card
    assert again.unet.config.num_frames == 4
    assert np.array_equal(_frames(model), _frames(again))


def test_without_a_frame_encoder_the_first_stages_serves_and_encodes_the_same(model, path, tmp_path):
    """Its last convolution holds quant_conv, so the two together compute what they did."""

    def without(tensors):
        for name in [n for n in tensors if n.startswith(FRAME_ENCODER)]:
            del tensors[name]

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    again = import_single_file(_rewritten(path, tmp_path, without, metadata))
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after = (m.vae.encode(pixels).latent_dist.parameters for m in (model, again))
    assert (before - after).abs().max() < 1e-4 * before.abs().max()
    assert torch.equal(again.vae.quant_conv.weight[:, :, 0, 0], torch.eye(8))
    assert not torch.equal(model.vae.quant_conv.weight[:, :, 0, 0], torch.eye(8))


def test_two_encoders_that_differ_are_told_and_the_conditioning_frames_is_taken(model, path, tmp_path):
    def moved(tensors):
        tensors[FIRST_STAGE + "encoder.mid.block_1.conv1.weight"] += 0.1

    again = import_single_file(_rewritten(path, tmp_path, moved), **HEADS)
    assert again.card["single_file"]["encoders_differ_by"] > 0.1
    _same(model, again)


def test_the_image_encoder_is_open_clips(model, path):
    """An independent copy of its architecture, with torch's fused attention, takes the file's tensors and agrees."""

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.ln_1, self.ln_2 = torch.nn.LayerNorm(32), torch.nn.LayerNorm(32)
            self.attn = torch.nn.MultiheadAttention(32, 2)
            self.mlp = torch.nn.ModuleDict({"c_fc": torch.nn.Linear(32, 37), "c_proj": torch.nn.Linear(37, 32)})

        def forward(self, x):
            h = self.ln_1(x)
            x = x + self.attn(h, h, h, need_weights=False)[0]
            return x + self.mlp["c_proj"](torch.nn.functional.gelu(self.mlp["c_fc"](self.ln_2(x))))

    class Tower(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = torch.nn.Conv2d(3, 32, 32, 32, bias=False)
            self.class_embedding = torch.nn.Parameter(torch.zeros(32))
            self.positional_embedding = torch.nn.Parameter(torch.zeros(50, 32))
            self.ln_pre, self.ln_post = torch.nn.LayerNorm(32), torch.nn.LayerNorm(32)
            self.transformer = torch.nn.ModuleDict({"resblocks": torch.nn.ModuleList(Block() for _ in range(3))})
            self.proj = torch.nn.Parameter(torch.zeros(32, 32))

        def forward(self, pixels):
            x = self.conv1(pixels).flatten(2).transpose(1, 2)
            x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
            x = self.ln_pre(x).transpose(0, 1)
            for block in self.transformer["resblocks"]:
                x = block(x)
            return self.ln_post(x[0]) @ self.proj

    tower, prefix = Tower(), IMAGE_ENCODER + "visual."
    tensors = {n.removeprefix(prefix): t for n, t in load_file(path).items() if n.startswith(prefix)}
    tower.load_state_dict(tensors)
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(tower(pixels), model.image_encoder(pixels).image_embeds, atol=1e-4)


def test_half_precision_halves_the_file_and_reads_back_rounded(model, path, tmp_path):
    export_single_file(model, tmp_path / "half.safetensors", torch.float16)
    assert (tmp_path / "half.safetensors").stat().st_size < 0.55 * path.stat().st_size
    again = open_model(tmp_path / "half.safetensors").unet.state_dict()
    assert all(torch.equal(again[name], tensor.half().float()) for name, tensor in model.unet.state_dict().items())


def test_missing_unknown_and_misshapen_tensors_are_named(path, tmp_path):
    def refused(change) -> str:
        with pytest.raises(BadInputError) as caught:
            import_single_file(_rewritten(path, tmp_path, change), **HEADS)
        assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
        return str(caught.value)

    gone, extra = UNET + "middle_block.1.proj_out.bias", UNET + "input_blocks.99.0.weight"
    assert f"1 tensors are missing: {gone}" in refused(lambda t: t.pop(gone))
    assert f"1 tensors are unknown: {extra}" in refused(lambda t: t.update({extra: torch.zeros(1)}))
    narrow = {FIRST_STAGE + "encoder.norm_out.bias": torch.zeros(3)}
    assert "encoder.norm_out.bias is (3,), not (64,)" in refused(lambda t: t.update(narrow))
    assert "no Stable Video Diffusion model in the authors' layout" in refused(lambda t: t.clear())


def test_a_pickled_checkpoint_is_never_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (print, ("run",))

    for name in ("svd.ckpt", "svd.pt", "renamed.safetensors"):
        torch.save({"state_dict": Bomb()}, tmp_path / name)
        with pytest.raises(BadInputError, match="can run any program when it is read"):
            open_model(tmp_path / name)
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00\x00")
    with pytest.raises(BadInputError, match=r"cut.safetensors: damaged"):
        open_model(tmp_path / "cut.safetensors")
    with pytest.raises(BadInputError, match="no such file"):
        open_model(tmp_path / "nothing.safetensors")


def test_only_an_image_to_video_model_has_a_place_in_the_layout(model, tmp_path):
    other = VideoModel("text_to_video", model.unet, model.vae, model.image_encoder)
    with pytest.raises(BadInputError, match="not one of kind text_to_video"):
        export_single_file(other, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_damaged_metadata_are_an_error(path, tmp_path):
    broken = _rewritten(path, tmp_path, lambda t: None, {"svdflow": json.dumps({"card": {}})})
    with pytest.raises(BadInputError, match="its metadata are damaged"):
        import_single_file(broken)
