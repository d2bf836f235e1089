"""Names of the authors' single-file layout, derived from the architecture."""

import csv
from pathlib import Path

import pytest
import torch

from svdflow.common.errors import BadInputError
from svdflow.diffusion.original_names import (
    FIRST_STAGE,
    IMAGE_ENCODER,
    UNET,
    frame_encoder_originals,
    image_encoder_originals,
    unet_originals,
    vae_originals,
)
from svdflow.diffusion.settings import TINY_UNET
from svdflow.diffusion.unet import build_unet, build_video_unet

RELEASED = Path(__file__).resolve().parents[3] / "shared" / "reference" / "svd-original-tensors.tsv"
WIDTHS = (128, 256, 512, 512)


def _vae(widths, layers):
    from diffusers import AutoencoderKLTemporalDecoder

    return AutoencoderKLTemporalDecoder(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        layers_per_block=layers,
    )


def _vision(**sizes):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes))


def _shapes(module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.fixture(scope="module")
def full_size():
    with torch.device("meta"):
        vision = _vision(
            hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16, patch_size=14,
            projection_dim=1024, hidden_act="gelu",
        )  # fmt: skip
        return build_unet("svd-image-to-video"), _vae(WIDTHS, 2), vision


def test_the_full_size_names_and_shapes_are_the_released_ones(full_size):
    if not RELEASED.is_file():
        pytest.skip(f"the list of the release's tensors is not at {RELEASED}")
    with RELEASED.open() as file:
        rows = list(csv.reader((line for line in file if not line.startswith("#")), delimiter="\t"))
    released = {name: tuple(map(int, shape.split("x"))) for name, shape in rows}
    assert len(released) == len(rows) == 1800
    unet, vae, _ = full_size
    ours: dict[str, tuple[int, ...]] = {}
    for originals, shapes in (
        (unet_originals(_shapes(unet), 2), _shapes(unet)),
        (vae_originals(_shapes(vae), 4), _shapes(vae)),
    ):
        for original in originals:
            assert original.name not in ours
            ours[original.name] = original.shape(shapes)
    assert ours == released


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("conv_in.weight", "input_blocks.0.0.weight"),
     ("add_embedding.linear_2.bias", "label_emb.0.2.bias"),
     ("down_blocks.0.downsamplers.0.conv.weight", "input_blocks.3.0.op.weight"),
     ("down_blocks.1.resnets.0.spatial_res_block.conv_shortcut.weight", "input_blocks.4.0.skip_connection.weight"),
     ("down_blocks.2.attentions.1.temporal_transformer_blocks.0.ff_in.net.0.proj.weight",
      "input_blocks.8.1.time_stack.0.ff_in.net.0.proj.weight"),
     ("down_blocks.3.resnets.1.temporal_res_block.conv2.bias", "input_blocks.11.0.time_stack.out_layers.3.bias"),
     ("mid_block.resnets.1.time_mixer.mix_factor", "middle_block.2.time_mixer.mix_factor"),
     ("mid_block.attentions.0.time_pos_embed.linear_2.weight", "middle_block.1.time_pos_embed.2.weight"),
     ("up_blocks.0.upsamplers.0.conv.weight", "output_blocks.2.1.conv.weight"),
     ("up_blocks.1.upsamplers.0.conv.weight", "output_blocks.5.2.conv.weight"),
     ("up_blocks.3.attentions.2.proj_out.weight", "output_blocks.11.1.proj_out.weight"),
     ("conv_out.bias", "out.2.bias")],
)  # fmt: skip
def test_blocks_of_the_unet_are_counted_through(full_size, ours, theirs):
    names = {o.parts[0]: o.name for o in unet_originals(_shapes(full_size[0]), 2)}
    assert names[ours] == UNET + theirs


@pytest.mark.parametrize(
    ("ours", "theirs", "shape"),
    [("encoder.down_blocks.1.resnets.0.conv_shortcut.weight", "encoder.down.1.block.0.nin_shortcut.weight",
      (256, 128, 1, 1)),
     ("encoder.mid_block.attentions.0.to_q.weight", "encoder.mid.attn_1.q.weight", (512, 512, 1, 1)),
     ("encoder.mid_block.attentions.0.group_norm.weight", "encoder.mid.attn_1.norm.weight", (512,)),
     ("decoder.mid_block.attentions.0.to_out.0.bias", "decoder.mid.attn_1.proj_out.bias", (512,)),
     ("decoder.up_blocks.0.resnets.2.time_mixer.mix_factor", "decoder.up.3.block.2.mix_factor", (1,)),
     ("decoder.up_blocks.3.resnets.0.temporal_res_block.conv1.weight",
      "decoder.up.0.block.0.time_stack.in_layers.2.weight", (128, 128, 3, 1, 1)),
     ("decoder.up_blocks.2.upsamplers.0.conv.weight", "decoder.up.1.upsample.conv.weight", (256, 256, 3, 3)),
     ("decoder.time_conv_out.weight", "decoder.conv_out.time_mix_conv.weight", (3, 3, 3, 1, 1))],
)  # fmt: skip
def test_the_decoders_blocks_run_the_other_way_and_its_attention_is_convolutions(full_size, ours, theirs, shape):
    shapes = _shapes(full_size[1])
    found = {o.parts[0]: (o.name, o.shape(shapes)) for o in vae_originals(shapes, 4)}
    assert found[ours] == (FIRST_STAGE + theirs, shape)
    assert not any("quant" in name for name, _ in found.values())


def test_the_image_encoder_has_one_tensor_for_query_key_and_value(full_size):
    shapes = _shapes(full_size[2])
    names = {o.name.removeprefix(IMAGE_ENCODER): o.shape(shapes) for o in image_encoder_originals(shapes)}
    assert names["visual.transformer.resblocks.31.attn.in_proj_weight"] == (3840, 1280)
    assert names["visual.transformer.resblocks.0.attn.in_proj_bias"] == (3840,)
    assert names["visual.conv1.weight"] == (1280, 3, 14, 14)
    assert names["visual.positional_embedding"] == (257, 1280)
    assert names["visual.proj"] == (1280, 1024)  # transposed
    assert len(names) == 8 + 12 * 32


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("widths", [(32, 64), (32, 64, 64)])
def test_the_mapping_is_one_to_one_at_any_size_and_undoes_itself(widths, layers):
    settings = TINY_UNET.model_copy(
        update={"block_out_channels": widths, "attention_heads": (2,) * len(widths), "layers_per_block": layers,
                "cross_attention_dim": 32}
    )  # fmt: skip
    torch.manual_seed(0)
    unet, vae = build_video_unet(settings, "image_to_video"), _vae(widths, layers)
    vision = _vision(hidden_size=32, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=2,
                     image_size=28, patch_size=14, projection_dim=16)  # fmt: skip
    blocks = len(widths)
    groups = [
        (unet, unet_originals(_shapes(unet), layers)),
        (vae, vae_originals(_shapes(vae), blocks) + frame_encoder_originals(_shapes(vae), blocks)),
        (vision, image_encoder_originals(_shapes(vision))),
    ]
    written: set[str] = set()
    for module, originals in groups:
        state, shapes = module.state_dict(), _shapes(module)
        assert {part for original in originals for part in original.parts} == state.keys()
        for original in originals:
            assert original.name not in written
            written.add(original.name)
            packed = original.pack(state)
            assert tuple(packed.shape) == original.shape(shapes)
            for part in original.parts:
                assert torch.equal(original.unpack(packed, part), state[part])


def test_a_tensor_without_a_place_is_an_error_that_names_it():
    for make in (lambda n: unet_originals(n, 2), lambda n: vae_originals(n, 4), image_encoder_originals):
        with pytest.raises(BadInputError, match=r"tensor mid_block.resnets.0.extra.scale has no place"):
            make(["mid_block.resnets.0.extra.scale"])
