"""Settings of the model itself. Cheap to import: nothing of torch or diffusers here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from ..common.config import Settings
from ..common.errors import BadInputError

Kind = Literal["image", "text_to_video", "image_to_video", "multi_view", "interpolation"]
SHIPPED_AUTOENCODER = Path(__file__).parent / "weights" / "autoencoder"
KINDS: tuple[Kind, ...] = ("image", "text_to_video", "image_to_video", "multi_view", "interpolation")
INTERPOLATED_FRAMES = 5  # of a clip, the first and the last of them given: four times the frame rate [SVD D.5]
INTERPOLATION_RATE = INTERPOLATED_FRAMES - 1  # frames that come out for one that is given

# what the vector conditioning holds for each kind, in order; each scalar becomes addition_time_embed_dim sinusoids.
# Later kinds append, so that the weights of earlier ones carry over. fps_id is fps - 1, as the released models have it.
VECTOR_CONDITIONS: dict[str, tuple[str, ...]] = {
    "image": (),
    "text_to_video": ("fps_id", "motion_bucket"),  # SVD D.2
    "image_to_video": ("fps_id", "motion_bucket", "noise_aug"),  # released svd.yaml
    "multi_view": ("fps_id", "motion_bucket", "noise_aug", "elevation_deg"),  # SVD D.6: concatenated
    "interpolation": ("fps_id", "motion_bucket", "noise_aug"),  # not spelled out in SVD D.5: those of image-to-video
}


def input_channels(kind: Kind, latent: int) -> int:
    """Channels of a kind's input: the noisy latent, and what is joined to it, for so many latent channels."""
    joined = {"image_to_video": latent, "multi_view": latent, "interpolation": latent + 1}  # the last one: the mask
    return latent + joined.get(kind, 0)


def kind_in(config: Mapping[str, Any]) -> Kind:
    """Which kind a UNet is, by the widths in its diffusers configuration; one that tells no frames is an image's.

    Raises:
        BadInputError: widths that no kind has, or none.
    """
    if not config.get("num_frames"):
        return "image"
    try:
        takes, channels = config["in_channels"], config["out_channels"]
        conditions, remainder = divmod(
            config["projection_class_embeddings_input_dim"], config["addition_time_embed_dim"]
        )
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise BadInputError(f"tells no widths of a video UNet ({error})") from error
    for kind in KINDS:
        if not remainder and (takes, conditions) == (input_channels(kind, channels), len(VECTOR_CONDITIONS[kind])):
            return kind
    raise BadInputError(f"a video UNet with {takes} input channels and {conditions} scalars is of no known kind")


class UNetSettings(Settings):
    """The UNet's architecture. Defaults: Stable Diffusion 2.1 inflated, as Stable Video Diffusion has it (1,521M)."""

    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    attention_heads: tuple[int, ...] = (5, 10, 20, 20)  # per block; every block but the last attends to the context
    cross_attention_dim: int = 1024
    addition_time_embed_dim: int = 256
    num_frames: int = 14
    # latent side, or height and width, that the configuration mentions; the model itself takes any size
    sample_size: int | tuple[int, int] = 96

    @model_validator(mode="after")
    def _consistent(self) -> UNetSettings:
        if len(self.attention_heads) != len(self.block_out_channels):
            raise ValueError("attention_heads and block_out_channels must be equally long")
        if any(width % 32 for width in self.block_out_channels):
            raise ValueError("block_out_channels must be multiples of 32: every norm has 32 groups")
        if any(w % h for w, h in zip(self.block_out_channels, self.attention_heads, strict=True)):
            raise ValueError("each of block_out_channels must be a multiple of its attention_heads")
        return self


def sizes_in(config: Mapping[str, Any], **told: Any) -> UNetSettings:
    """The settings that describe a UNet, out of its diffusers configuration.

    Args:
        config: of a UNet2DConditionModel or a UNetSpatioTemporalConditionModel.
        told: what an image UNet's configuration lacks: ``num_frames``, ``addition_time_embed_dim``.

    Raises:
        BadInputError: an architecture that these settings cannot describe.
    """
    try:
        widths = tuple(config["block_out_channels"])
        heads = config.get("num_attention_heads") or config["attention_head_dim"]
        if not isinstance(config["layers_per_block"], int) or not isinstance(config["cross_attention_dim"], int):
            raise BadInputError("a UNet whose blocks differ in depth or context width cannot be described here")
        own = ("addition_time_embed_dim", "num_frames", "sample_size")
        return UNetSettings(
            latent_channels=config["out_channels"],
            block_out_channels=widths,
            layers_per_block=config["layers_per_block"],
            attention_heads=tuple(heads) if isinstance(heads, (list, tuple)) else (heads,) * len(widths),
            cross_attention_dim=config["cross_attention_dim"],
            **told | {name: value for name in own if isinstance(value := config.get(name), (int, list, tuple))},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BadInputError(f"tells no sizes of a UNet ({str(error).splitlines()[0]})") from error


TINY_UNET = UNetSettings(
    latent_channels=8,  # of the shipped autoencoder
    block_out_channels=(32, 64),
    layers_per_block=1,
    attention_heads=(2, 4),
    cross_attention_dim=384,  # the width of the local text encoder's token states
    addition_time_embed_dim=32,
    num_frames=8,
    sample_size=16,
)


class UNetPreset(NamedTuple):
    """A UNet by name: its kind and its architecture."""

    kind: Kind
    unet: UNetSettings


UNET_PRESETS: dict[str, UNetPreset] = {
    "sd21-image": UNetPreset("image", UNetSettings()),
    "svd-text-to-video": UNetPreset("text_to_video", UNetSettings()),
    "svd-image-to-video": UNetPreset("image_to_video", UNetSettings()),
    "svd-xt-image-to-video": UNetPreset("image_to_video", UNetSettings(num_frames=25)),
    "svd-multi-view": UNetPreset("multi_view", UNetSettings(num_frames=21)),
    "svd-interpolation": UNetPreset(
        "interpolation", UNetSettings(num_frames=INTERPOLATED_FRAMES, sample_size=(72, 128))
    ),
    "tiny-image": UNetPreset("image", TINY_UNET),
    "tiny-text-to-video": UNetPreset("text_to_video", TINY_UNET),
    "tiny-image-to-video": UNetPreset("image_to_video", TINY_UNET),
    "tiny-multi-view": UNetPreset("multi_view", TINY_UNET),
    "tiny-interpolation": UNetPreset("interpolation", TINY_UNET.model_copy(update={"num_frames": INTERPOLATED_FRAMES})),
}


class LoraSettings(Settings):
    """A low-rank adapter. [P] is the paper's section."""

    rank: int = Field(16, ge=1)  # [P D.4.2]
    alpha: float | None = Field(None, gt=0)  # what is added is scaled by alpha / rank; None: by 1. Ours
    layers: Literal["temporal", "spatial"] = "temporal"  # whose attention is adapted [P 4.3.1]
    modules: tuple[str, ...] = Field(("to_q", "to_k", "to_v", "to_out.0"), min_length=1)  # of each attention. Ours

    @property
    def scale(self) -> float:
        """Alpha over rank."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


class DecoderLosses(Settings):
    """What a decoder is finetuned against. Neither paper gives a figure: all are ours."""

    perceptual_weight: float = Field(1.0, ge=0)  # of LPIPS beside the absolute error, as in latent diffusion
    lpips_backbone: str = ""  # safetensors file of torchvision's VGG-16 or AlexNet
    lpips_heads: str = ""  # safetensors file of the package lpips' heads for it
    adversarial_weight: float = Field(0.5, ge=0)  # of the ratio of both losses' gradients, as in latent diffusion
    adversarial_from: int = Field(0, ge=0)  # step from which decoder and discriminator learn from each other
    discriminator_width: int = Field(64, ge=4, multiple_of=4)  # channels of its first layer
    discriminator_layers: int = Field(3, ge=1)  # that halve the sides


class SamplingSettings(Settings):
    """How videos are sampled; the released scripts' figures."""

    steps: int = 25  # svd; svd_xt 30, multi-view 50
    guidance_min: float = 1.0  # SVD D.4.1, diffusers' default
    guidance_max: float = 3.0
    fps: int = 7
    motion_bucket: int = 127
    noise_aug: float = 0.02
    sigma_min: float = 0.002
    sigma_max: float = 700.0
    rho: float = 7.0
    decode_chunk: int = 14
