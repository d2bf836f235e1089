"""Names of tensors in the authors' single-file layout, for each tensor of diffusers' and transformers' modules.

The names follow from the architecture: blocks are counted through in the original, nested in diffusers. Read off
Stability-AI/generative-models (sgm): VideoUNet, VideoDecoder, open_clip's visual tower.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from ..common.errors import BadInputError

UNET = "model.diffusion_model."
FIRST_STAGE = "first_stage_model."
IMAGE_ENCODER = "conditioner.embedders.0.open_clip.model."
FRAME_ENCODER = "conditioner.embedders.3.encoder."

Form = Literal["same", "convolution", "transposed", "stacked"]

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_CLIP_ENDS = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
}


@dataclass(frozen=True)
class Original:
    """A tensor of the original layout and the tensors of ours that it is made of.

    Attributes:
        name: in the single file, whole.
        parts: names in our module; several where the original has them stacked.
        form: ``same``; ``convolution``: a linear layer written as a 1×1 convolution; ``transposed``; ``stacked``:
            query, key and value one below the other.
    """

    name: str
    parts: tuple[str, ...]
    form: Form = "same"

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        """In the single file, from our tensors' shapes."""
        first = shapes[self.parts[0]]
        if self.form == "convolution":
            return (*first, 1, 1)
        if self.form == "transposed":
            return first[::-1]
        if self.form == "stacked":
            return (sum(shapes[part][0] for part in self.parts), *first[1:])
        return first

    def pack(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Our tensors as the original has them."""
        first = parts[self.parts[0]]
        if self.form == "convolution":
            return first[:, :, None, None]
        if self.form == "transposed":
            return first.T.contiguous()
        if self.form == "stacked":
            return torch.cat([parts[part] for part in self.parts])
        return first

    def unpack(self, tensor: torch.Tensor, part: str) -> torch.Tensor:
        """One of our tensors out of the original."""
        if self.form == "convolution":
            return tensor[:, :, 0, 0]
        if self.form == "transposed":
            return tensor.T.contiguous()
        if self.form == "stacked":
            return tensor.chunk(len(self.parts))[self.parts.index(part)].clone()
        return tensor


def unet_originals(names: Iterable[str], layers_per_block: int) -> list[Original]:
    """Originals of a UNetSpatioTemporalConditionModel's tensors.

    Args:
        names: of its state.
        layers_per_block: of its configuration.

    Raises:
        BadInputError: a name has no original.
    """
    names = list(names)
    attending = {name.split(".")[1] for name in names if name.startswith("up_blocks.") and ".attentions." in name}
    return [Original(UNET + _unet_name(name, layers_per_block, attending), (name,)) for name in names]


def _unet_name(name: str, layers: int, attending: set[str]) -> str:
    for ours, theirs in _UNET_ENDS.items():
        if name.startswith(ours + "."):
            return theirs + name[len(ours) :]
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name):
        kind, index, rest = match.groups()
        place = 1 if kind == "attentions" else 2 * int(index)
        return f"middle_block.{place}.{_block_name(kind, rest, name)}"
    if match := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", name):
        way, block, kind, layer, rest = match.groups()
        count = int(block) * (layers + 1) + int(layer) + (way == "down")  # input_blocks.0 is conv_in
        group = "input_blocks" if way == "down" else "output_blocks"
        return f"{group}.{count}.{int(kind == 'attentions')}.{_block_name(kind, rest, name)}"
    if match := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.+)", name):
        return f"input_blocks.{(int(match[1]) + 1) * (layers + 1)}.0.op.{match[2]}"
    if match := re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.conv\.(.+)", name):
        return f"output_blocks.{int(match[1]) * (layers + 1) + layers}.{1 + (match[1] in attending)}.conv.{match[2]}"
    raise _nameless(name)


def _block_name(kind: str, rest: str, name: str) -> str:
    if kind == "attentions":
        for ours, theirs in (
            ("temporal_transformer_blocks.", "time_stack."),
            ("time_pos_embed.linear_1.", "time_pos_embed.0."),
            ("time_pos_embed.linear_2.", "time_pos_embed.2."),
        ):
            if rest.startswith(ours):
                return theirs + rest[len(ours) :]
        return rest
    part, _, inner = rest.partition(".")
    if part == "time_mixer":
        return rest
    layer, _, leaf = inner.rpartition(".")
    if part not in ("spatial_res_block", "temporal_res_block") or layer not in _RESNET:
        raise _nameless(name)
    return f"{'time_stack.' if part == 'temporal_res_block' else ''}{_RESNET[layer]}.{leaf}"


def vae_originals(names: Iterable[str], blocks: int) -> list[Original]:
    """Originals of an AutoencoderKLTemporalDecoder's tensors in the first stage, without its ``quant_conv``.

    The original first stage has no such layer: ``single_file`` says where its weights go.

    Args:
        names: of its state.
        blocks: how many widths it has.

    Raises:
        BadInputError: a name has no original.
    """
    return [_vae_original(FIRST_STAGE, name, blocks) for name in names if not name.startswith("quant_conv.")]


def frame_encoder_originals(names: Iterable[str], blocks: int) -> list[Original]:
    """Originals of what encodes the conditioning frame: a second copy of the encoder, with ``quant_conv``."""
    return [
        Original(FRAME_ENCODER + name, (name,))
        if name.startswith("quant_conv.")
        else _vae_original(FRAME_ENCODER, name, blocks)
        for name in names
        if name.startswith(("quant_conv.", "encoder."))
    ]


def _vae_original(prefix: str, name: str, blocks: int) -> Original:
    """Coarse blocks come last in the original's decoder, and its attention is written as convolutions."""
    side, _, rest = name.partition(".")
    if match := re.fullmatch(r"mid_block\.attentions\.0\.(.+)\.(weight|bias)", rest):
        layer, leaf = match.groups()
        if layer not in _VAE_ATTENTION:
            raise _nameless(name)
        form: Form = "convolution" if leaf == "weight" and layer != "group_norm" else "same"
        return Original(f"{prefix}{side}.mid.attn_1.{_VAE_ATTENTION[layer]}.{leaf}", (name,), form)
    if match := re.fullmatch(r"mid_block\.resnets\.(\d+)\.(.+)", rest):
        theirs = f"mid.block_{int(match[1]) + 1}.{_vae_resnet(match[2], name)}"
    elif match := re.fullmatch(r"(down|up)_blocks\.(\d+)\.resnets\.(\d+)\.(.+)", rest):
        level = int(match[2]) if match[1] == "down" else blocks - 1 - int(match[2])
        theirs = f"{match[1]}.{level}.block.{match[3]}.{_vae_resnet(match[4], name)}"
    elif match := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.(.+)", rest):
        theirs = f"down.{match[1]}.downsample.{match[2]}"
    elif match := re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.(.+)", rest):
        theirs = f"up.{blocks - 1 - int(match[1])}.upsample.{match[2]}"
    elif match := re.fullmatch(r"(conv_in|conv_out|conv_norm_out|time_conv_out)\.(.+)", rest):
        ends = {"conv_norm_out": "norm_out", "time_conv_out": "conv_out.time_mix_conv"}
        theirs = f"{ends.get(match[1], match[1])}.{match[2]}"
    else:
        raise _nameless(name)
    return Original(f"{prefix}{side}.{theirs}", (name,))


def _vae_resnet(rest: str, name: str) -> str:
    if rest == "time_mixer.mix_factor":
        return "mix_factor"
    if rest.startswith("temporal_res_block."):
        layer, _, leaf = rest.removeprefix("temporal_res_block.").rpartition(".")
        if layer not in _RESNET:
            raise _nameless(name)
        return f"time_stack.{_RESNET[layer]}.{leaf}"
    return rest.removeprefix("spatial_res_block.").replace("conv_shortcut", "nin_shortcut")


def image_encoder_originals(names: Iterable[str]) -> list[Original]:
    """Originals of a CLIPVisionModelWithProjection's tensors: query, key and value are one tensor there.

    Raises:
        BadInputError: a name has no original.
    """
    out = []
    for name in names:
        if name == "visual_projection.weight":
            out.append(Original(f"{IMAGE_ENCODER}visual.proj", (name,), "transposed"))
        elif name in _CLIP_ENDS:
            out.append(Original(IMAGE_ENCODER + _CLIP_ENDS[name], (name,)))
        elif match := re.fullmatch(r"vision_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name):
            index, layer, leaf = match.groups()
            block = f"{IMAGE_ENCODER}visual.transformer.resblocks.{index}"
            if layer == "self_attn.q_proj":
                parts = tuple(name.replace("q_proj", part) for part in ("q_proj", "k_proj", "v_proj"))
                out.append(Original(f"{block}.attn.in_proj_{leaf}", parts, "stacked"))
            elif layer in _CLIP_LAYER:
                out.append(Original(f"{block}.{_CLIP_LAYER[layer]}.{leaf}", (name,)))
            elif layer not in ("self_attn.k_proj", "self_attn.v_proj"):
                raise _nameless(name)
        else:
            raise _nameless(name)
    return out


def _nameless(name: str) -> BadInputError:
    return BadInputError(f"tensor {name} has no place in the original single-file layout")
