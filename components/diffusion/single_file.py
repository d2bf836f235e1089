"""The authors' single-file layout (``svd.safetensors``), read and written as safetensors, one tensor at a time.

It holds the UNet, the autoencoder, the image encoder, and a second autoencoder that encodes the conditioning frame.
diffusers has one autoencoder for both: it takes the encoder that the conditioning frame sees, since that is the one
which runs at inference. The first stage has no ``quant_conv``, which is therefore folded into its last convolution.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..common.errors import BadInputError
from .conditioning import build_feature_extractor
from .edm import EDM
from .image_only import allow_image_only
from .model_directory import VideoModel
from .original_names import (
    FIRST_STAGE,
    FRAME_ENCODER,
    IMAGE_ENCODER,
    UNET,
    Original,
    frame_encoder_originals,
    image_encoder_originals,
    unet_originals,
    vae_originals,
)
from .settings import VECTOR_CONDITIONS, UNetSettings
from .weights_files import TensorFiles, TensorToWrite, build_filled, check_tensors, write_safetensors

_METADATA = "svdflow"
# what the release holds beside: the text half of CLIP without its layers, and the frame encoder's unused other half
_UNUSED_TEXT = ("positional_embedding", "text_projection", "logit_scale", "token_embedding.", "ln_final.")
_UNUSED = (
    *(IMAGE_ENCODER + name for name in _UNUSED_TEXT),
    *(FRAME_ENCODER + name for name in ("decoder.", "post_quant_conv.")),
)
_CONV_OUT = "encoder.conv_out."


def export_single_file(model: VideoModel, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write an image-to-video model in the authors' layout.

    Configurations and the card lie in the file's metadata, so that a model of any size can be read again.

    Raises:
        BadInputError: the layout has no place for a model of this kind.
    """
    if model.kind != "image_to_video" or model.parameterisation != EDM:
        raise BadInputError(f"the single-file layout holds image-to-video models, not one of kind {model.kind}")
    if type(model.vae).__name__ != "AutoencoderKLTemporalDecoder":
        raise BadInputError(f"the single-file layout has a temporal decoder, the model an {type(model.vae).__name__}")
    states = {name: getattr(model, name).state_dict() for name in ("unet", "vae", "image_encoder")}
    tensors: list[TensorToWrite] = []
    for name, originals in _originals(model.unet, model.vae, model.image_encoder).items():
        state = states["vae" if name in ("first_stage", "frame_encoder") else name]
        shapes = {part: tuple(tensor.shape) for part, tensor in state.items()}
        for original in originals:
            make: Callable[[], torch.Tensor] = partial(original.pack, state)
            if name == "first_stage" and original.parts[0].startswith(_CONV_OUT):
                make = _folder(original.parts[0].removeprefix(_CONV_OUT), state)
            tensors.append(TensorToWrite(original.name, original.shape(shapes), dtype, make))
    stored = {
        "unet": _plain(model.unet.config),
        "vae": _plain(model.vae.config),
        "image_encoder": model.image_encoder.config.to_dict(),
        "card": model.card,
    }
    write_safetensors(Path(path), tensors, {"format": "pt", _METADATA: json.dumps(stored, sort_keys=True, default=str)})


def import_single_file(
    path: Path, *, num_frames: int = 14, head_channels: int = 64, image_head_channels: int = 80
) -> VideoModel:
    """Read an image-to-video model in the authors' layout, in float32 and for inference.

    Sizes are read off the tensors' shapes, or off the metadata of a file that ``export_single_file`` wrote.

    Args:
        path: a safetensors file.
        num_frames: what the configuration should say: 14 for svd, 25 for svd_xt. The file does not tell.
        head_channels: width of the UNet's attention heads; 64 in the released models.
        image_head_channels: width of the image encoder's; 80 in ViT-H.

    Raises:
        BadInputError: the file is missing, pickled or damaged, or tensors are missing, unknown or of another shape.
    """
    path = Path(path)
    with TensorFiles([path]) as files:
        builds, card = _builds(files, num_frames, head_channels, image_head_channels)
        with torch.device("meta"):
            empty = {name: build() for name, build in builds.items()}
        originals = _originals(empty["unet"], empty["vae"], empty["image_encoder"])
        framed = any(name.startswith(FRAME_ENCODER) for name in files.names())
        if not framed:
            originals["frame_encoder"] = []
        shapes = {
            name: {part: tuple(t.shape) for part, t in module.state_dict().items()} for name, module in empty.items()
        }
        _check(files, originals, shapes)
        readers = {name: _readers(files, originals[name], shapes[name]) for name in ("unet", "image_encoder")}
        readers["vae"] = _vae_readers(files, originals, shapes["vae"])
        if _METADATA not in files.metadata:  # what its motion buckets stand for is not known, as of any release
            card["imported"] = {"name": path.name, "prediction_type": EDM.prediction, "weights": "single file"}
        if framed:
            difference = _encoders_differ(files, originals)
            card.setdefault("single_file", {})["encoders_differ_by"] = difference
        unet, vae, image_encoder = (
            build_filled(builds[name], readers[name], str(path)) for name in ("unet", "vae", "image_encoder")
        )
    return VideoModel(
        "image_to_video", allow_image_only(unet), vae, image_encoder, build_feature_extractor(), card=card
    )


def _originals(unet: Any, vae: Any, image_encoder: Any) -> dict[str, list[Original]]:
    blocks = len(vae.config.block_out_channels)
    return {
        "unet": unet_originals(unet.state_dict(), unet.config.layers_per_block),
        "first_stage": vae_originals(vae.state_dict(), blocks),
        "frame_encoder": frame_encoder_originals(vae.state_dict(), blocks),
        "image_encoder": image_encoder_originals(image_encoder.state_dict()),
    }


def _check(
    files: TensorFiles, originals: Mapping[str, list[Original]], shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
) -> None:
    expected = {
        original.name: original.shape(shapes["vae" if name in ("first_stage", "frame_encoder") else name])
        for name, entries in originals.items()
        for original in entries
    }
    given = {name: files.shape(name) for name in files.names() if not name.startswith(_UNUSED)}
    check_tensors(expected, given, files.where)


def _readers(
    files: TensorFiles, originals: list[Original], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[tuple[int, ...], Callable[[], torch.Tensor]]]:
    return {
        part: (shapes[part], partial(_unpacked, files, original, part))
        for original in originals
        for part in original.parts
    }


def _unpacked(files: TensorFiles, original: Original, part: str) -> torch.Tensor:
    return original.unpack(files.read(original.name), part)


def _vae_readers(
    files: TensorFiles, originals: Mapping[str, list[Original]], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[tuple[int, ...], Callable[[], torch.Tensor]]]:
    readers = _readers(files, originals["first_stage"], shapes)
    if originals["frame_encoder"]:
        return {**readers, **_readers(files, originals["frame_encoder"], shapes)}
    channels = shapes["quant_conv.bias"][0]
    identity = {"weight": torch.eye(channels)[:, :, None, None], "bias": torch.zeros(channels)}
    return {
        **readers,
        **{f"quant_conv.{name}": (tuple(tensor.shape), tensor.clone) for name, tensor in identity.items()},
    }


def _encoders_differ(files: TensorFiles, originals: Mapping[str, list[Original]]) -> float:
    """The largest difference between the two encoders' weights, the last layers folded, in units of a tensor's rms."""
    frame = {o.parts[0]: o for o in originals["frame_encoder"]}
    state = {part: o.unpack(files.read(o.name), part).float() for part, o in frame.items()}
    worst = 0.0
    for original in originals["first_stage"]:
        part = original.parts[0]
        if not part.startswith("encoder."):
            continue
        theirs = _folder(part.removeprefix(_CONV_OUT), state)() if part.startswith(_CONV_OUT) else state[part]
        ours = original.unpack(files.read(original.name), part).float()
        rms = float(theirs.square().mean().sqrt())
        worst = max(worst, float((ours - theirs).abs().max()) / max(rms, 1e-12))
    return worst


def _folder(leaf: str, state: Mapping[str, torch.Tensor]) -> Callable[[], torch.Tensor]:
    """The encoder's last convolution with ``quant_conv`` behind it, as one convolution."""

    def fold() -> torch.Tensor:
        matrix, shift = state["quant_conv.weight"][:, :, 0, 0], state["quant_conv.bias"]
        last = state[_CONV_OUT + leaf]
        if torch.equal(matrix, torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)) and not shift.any():
            return last
        if leaf == "bias":
            return matrix @ last + shift
        return torch.einsum("oc,cihw->oihw", matrix, last)

    return fold


def _builds(
    files: TensorFiles, num_frames: int, head_channels: int, image_head_channels: int
) -> tuple[dict[str, Callable[[], Any]], dict[str, Any]]:
    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    from .unet import build_video_unet

    card: dict[str, Any] = {}
    if _METADATA in files.metadata:
        try:
            stored = json.loads(files.metadata[_METADATA])
            card = dict(stored["card"])
            unet_config, vae_config, image_config = (stored[name] for name in ("unet", "vae", "image_encoder"))
        except (ValueError, KeyError, TypeError) as error:
            raise BadInputError(f"{files.where}: its metadata are damaged ({error!r})") from None
        builds = {
            "unet": lambda: UNetSpatioTemporalConditionModel.from_config(unet_config),
            "vae": lambda: AutoencoderKLTemporalDecoder.from_config(vae_config),
            "image_encoder": lambda: CLIPVisionModelWithProjection(CLIPVisionConfig.from_dict(image_config)),
        }
        return builds, card
    try:
        settings = _unet_settings(files, num_frames, head_channels)
        vae_sizes = _vae_sizes(files)
        image_sizes = _image_encoder_sizes(files, image_head_channels)
    except (KeyError, ZeroDivisionError, IndexError) as error:
        raise BadInputError(
            f"{files.where}: no Stable Video Diffusion model in the authors' layout (tensor {error} is missing)"
        ) from None
    return {
        "unet": lambda: build_video_unet(settings, "image_to_video"),
        "vae": lambda: AutoencoderKLTemporalDecoder(**vae_sizes),
        "image_encoder": lambda: CLIPVisionModelWithProjection(CLIPVisionConfig(**image_sizes)),
    }, card


def _unet_settings(files: TensorFiles, num_frames: int, head_channels: int) -> UNetSettings:
    down = re.compile(re.escape(UNET) + r"input_blocks\.(\d+)\.0\.op\.weight")
    downs = sorted(int(match[1]) for name in files.names() if (match := down.fullmatch(name)))
    layers = downs[0] - 1
    widths = tuple(
        files.shape(f"{UNET}input_blocks.{1 + block * (layers + 1)}.0.out_layers.3.weight")[0]
        for block in range(len(downs) + 1)
    )
    vector = files.shape(f"{UNET}label_emb.0.0.weight")[1]
    return UNetSettings(
        latent_channels=files.shape(f"{UNET}out.2.weight")[0],
        block_out_channels=widths,
        layers_per_block=layers,
        attention_heads=tuple(max(width // head_channels, 1) for width in widths),
        cross_attention_dim=files.shape(f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight")[1],
        addition_time_embed_dim=vector // len(VECTOR_CONDITIONS["image_to_video"]),
        num_frames=num_frames,
    )


def _vae_sizes(files: TensorFiles) -> dict[str, Any]:
    start = f"{FIRST_STAGE}encoder.down."
    places = {tuple(name.removeprefix(start).split(".")[:3]) for name in files.names() if name.startswith(start)}
    levels = {int(level) for level, *_ in places}
    layers = {int(place[2]) for place in places if place[0] == "0" and place[1] == "block"}
    widths = tuple(files.shape(f"{start}{level}.block.0.conv2.weight")[0] for level in sorted(levels))
    return {
        "block_out_channels": widths,
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "layers_per_block": len(layers),
        "latent_channels": files.shape(f"{FIRST_STAGE}decoder.conv_in.weight")[1],
        "sample_size": 768,
    }


def _image_encoder_sizes(files: TensorFiles, head_channels: int) -> dict[str, Any]:
    tower = f"{IMAGE_ENCODER}visual."
    start = f"{tower}transformer.resblocks."
    width = files.shape(f"{tower}class_embedding")[0]
    patch = files.shape(f"{tower}conv1.weight")[-1]
    return {
        "hidden_size": width,
        "intermediate_size": files.shape(f"{start}0.mlp.c_fc.weight")[0],
        "num_hidden_layers": len({n.removeprefix(start).split(".")[0] for n in files.names() if n.startswith(start)}),
        "num_attention_heads": max(width // head_channels, 1),
        "patch_size": patch,
        "image_size": patch * math.isqrt(files.shape(f"{tower}positional_embedding")[0] - 1),
        "projection_dim": files.shape(f"{tower}proj")[1],
        "hidden_act": "gelu",
    }


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if not name.startswith("_") or name == "_class_name"}
