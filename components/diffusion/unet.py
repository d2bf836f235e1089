"""The UNets: building them, and growing one kind into the next without changing what it computes.

    image ──inflate──▶ text_to_video ──to_image_to_video──▶ image_to_video ──to_multi_view──▶ multi_view
                             └──to_interpolation──▶ interpolation

All are diffusers classes, so that any of its tools can load them; the last one adds a parameter to one of these.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from diffusers import UNet2DConditionModel, UNetSpatioTemporalConditionModel

from ..common.errors import BadInputError
from .image_only import allow_image_only
from .interpolation import InterpolationUNet
from .settings import (
    INTERPOLATED_FRAMES,
    UNET_PRESETS,
    VECTOR_CONDITIONS,
    Kind,
    UNetSettings,
    input_channels,
    kind_in,
    sizes_in,
)

UNetT = TypeVar("UNetT", bound=UNetSpatioTemporalConditionModel)
_TEMPORAL = ("temporal_res_block", "temporal_transformer_blocks", "time_pos_embed", "time_mixer")
# the last layers of every temporal branch: zero, and the branch adds nothing
_ZEROED = (
    "temporal_res_block.conv2",
    ".ff_in.net.2",
    ".ff.net.2",
    ".attn1.to_out.0",
    ".attn2.to_out.0",
)


def build_unet(preset: str) -> UNet2DConditionModel | UNetSpatioTemporalConditionModel:
    """An untrained UNet by the name of its preset (``settings.UNET_PRESETS``).

    Raises:
        BadInputError: no such preset.
    """
    if preset not in UNET_PRESETS:
        raise BadInputError(f"no UNet is called {preset!r}; there are {', '.join(UNET_PRESETS)}")
    kind, settings = UNET_PRESETS[preset]
    return build_image_unet(settings) if kind == "image" else build_video_unet(settings, kind)


def build_image_unet(settings: UNetSettings) -> UNet2DConditionModel:
    """An untrained image UNet with text context: Stable Diffusion 2.1's at the default settings."""
    widths = settings.block_out_channels
    attending = len(widths) - 1
    return UNet2DConditionModel(
        sample_size=settings.sample_size,
        in_channels=settings.latent_channels,
        out_channels=settings.latent_channels,
        down_block_types=("CrossAttnDownBlock2D",) * attending + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * attending,
        block_out_channels=widths,
        layers_per_block=settings.layers_per_block,
        cross_attention_dim=settings.cross_attention_dim,
        attention_head_dim=settings.attention_heads,  # the number of heads: diffusers keeps an old misnomer
        use_linear_projection=True,
    )


def build_video_unet(settings: UNetSettings, kind: Kind) -> UNetSpatioTemporalConditionModel:
    """An untrained video UNet that takes images and videos in one batch (``image_only``).

    Args:
        settings: the architecture.
        kind: any but ``image``; ``settings.input_channels`` says what each takes.
    """
    widths = settings.block_out_channels
    attending = len(widths) - 1
    unet = _network(kind)(
        sample_size=settings.sample_size,
        in_channels=input_channels(kind, settings.latent_channels),
        out_channels=settings.latent_channels,
        down_block_types=("CrossAttnDownBlockSpatioTemporal",) * attending + ("DownBlockSpatioTemporal",),
        up_block_types=("UpBlockSpatioTemporal",) + ("CrossAttnUpBlockSpatioTemporal",) * attending,
        block_out_channels=widths,
        addition_time_embed_dim=settings.addition_time_embed_dim,
        projection_class_embeddings_input_dim=settings.addition_time_embed_dim * len(VECTOR_CONDITIONS[kind]),
        layers_per_block=settings.layers_per_block,
        cross_attention_dim=settings.cross_attention_dim,
        num_attention_heads=settings.attention_heads,
        num_frames=settings.num_frames,
    )
    return allow_image_only(unet)


def settings_of(unet: UNet2DConditionModel | UNetSpatioTemporalConditionModel, **told: Any) -> UNetSettings:
    """The settings that describe a UNet; what an image UNet does not tell (``num_frames``) is taken from ``told``.

    Raises:
        BadInputError: an architecture that these settings cannot describe.
    """
    return sizes_in(unet.config, **told)


def inflate(image_unet: UNet2DConditionModel, settings: UNetSettings | None = None) -> UNetSpatioTemporalConditionModel:
    """A text-to-video UNet that at first treats every frame as the image UNet would.

    The spatial weights are taken over and the last layer of every temporal branch, of the frame embedding and of the
    vector conditioning is zero. The paper does not say how its temporal layers start; Align your Latents starts them
    as identities by the mixing factor, here the factor keeps the released 0.5, so that the branches learn from the
    first step. About 2e-4 of difference remains: diffusers' spatio-temporal blocks normalise with an epsilon of 1e-6,
    its image blocks with 1e-5.

    Args:
        image_unet: of Stable Diffusion 2.1's architecture, at any width.
        settings: of the video UNet; those of the image UNet where not given.

    Raises:
        BadInputError: the image UNet is of another architecture than the settings describe.
    """
    video = build_video_unet(settings or settings_of(image_unet), "text_to_video")
    spatial = {_spatial_name(name): tensor for name, tensor in image_unet.state_dict().items()}
    expected = {name: tensor.shape for name, tensor in video.state_dict().items() if not is_temporal(name)}
    if expected.keys() != spatial.keys() or any(spatial[n].shape != shape for n, shape in expected.items()):
        wrong = sorted(
            n for n in expected.keys() | spatial.keys() if n not in spatial or expected.get(n) != spatial[n].shape
        )
        raise BadInputError(
            f"the image UNet does not fit the video UNet's settings, first at {wrong[0]}: give both the same settings"
        )
    video.load_state_dict(spatial, strict=False)
    with torch.no_grad():
        for name, parameter in video.named_parameters():
            module = name.rpartition(".")[0]
            in_temporal_block = "temporal_" in name and module.endswith(_ZEROED)
            if in_temporal_block or module.endswith("time_pos_embed.linear_2") or module == "add_embedding.linear_2":
                parameter.zero_()
    return video.to(dtype=image_unet.dtype)


def to_image_to_video(unet: UNetSpatioTemporalConditionModel) -> UNetSpatioTemporalConditionModel:
    """Give a text-to-video UNet the conditioning latent and the noise augmentation; the new weights are zero.

    Raises:
        BadInputError: it is no text-to-video UNet.
    """
    _expect(unet, "text_to_video")
    return _grow(unet, _rebuild(unet, "image_to_video"))


def to_multi_view(unet: UNetSpatioTemporalConditionModel) -> UNetSpatioTemporalConditionModel:
    """Append the camera's elevation to an image-to-video UNet's scalars (SVD D.6); the new weights are zero.

    Raises:
        BadInputError: it is no image-to-video UNet.
    """
    _expect(unet, "image_to_video")
    return _grow(unet, _rebuild(unet, "multi_view"))


def to_interpolation(unet: UNetSpatioTemporalConditionModel, size: tuple[int, int] | None = None) -> InterpolationUNet:
    """Give a text-to-video UNet the frames at both ends, their mask and a latent for the frames between (SVD D.5).

    All that is new is zero.

    Args:
        unet: at any number of frames; the grown one makes clips of five.
        size: height and width of the latent for frames that are not given; the UNet's own ``sample_size`` by default.

    Raises:
        BadInputError: it is no text-to-video UNet.
    """
    _expect(unet, "text_to_video")
    own = {"num_frames": INTERPOLATED_FRAMES} | ({"sample_size": size} if size else {})
    return _grow(unet, _rebuild(unet, "interpolation", **own))


def unet_kind(unet: Any) -> Kind:
    """Which kind a UNet is, by its class and widths.

    Raises:
        BadInputError: it is none that svdflow knows.
    """
    if isinstance(unet, UNet2DConditionModel):
        return "image"
    if isinstance(unet, UNetSpatioTemporalConditionModel):
        if isinstance(unet, _network(kind := kind_in(unet.config))):
            return kind
        raise BadInputError(f"a {type(unet).__name__} with the inputs of {kind} is of no known kind")
    raise BadInputError(f"{type(unet).__name__} is no UNet of svdflow's")


def is_temporal(name: str) -> bool:
    """Whether a parameter is new in the video UNet: a temporal layer, the mixing factor or the vector conditioning."""
    return any(part in name.split(".") for part in _TEMPORAL) or name.startswith("add_embedding.")


def parameter_counts(unet: torch.nn.Module) -> dict[str, int]:
    """Parameters by part, and in ``total``.

    ``spatial`` (the image UNet's), ``temporal``, ``vector`` (fps, motion and so on), ``middle`` (the latent for frames
    that are not given, in interpolation).
    """
    counts = {"spatial": 0, "temporal": 0, "vector": 0, "middle": 0}
    for name, parameter in unet.named_parameters():
        part = "temporal" if is_temporal(name) else "middle" if name == "middle_latent" else "spatial"
        counts["vector" if name.startswith("add_embedding.") else part] += parameter.numel()
    return {**counts, "total": sum(counts.values())}


def _spatial_name(name: str) -> str:
    head, resnets, tail = name.partition(".resnets.")
    if not resnets:
        return name
    index, _, rest = tail.partition(".")
    return f"{head}.resnets.{index}.spatial_res_block.{rest}"


def _expect(unet: UNetSpatioTemporalConditionModel, kind: Kind) -> None:
    if (found := unet_kind(unet)) != kind:
        raise BadInputError(f"this step starts from a UNet of kind {kind}, not {found}")


def _network(kind: Kind) -> type[UNetSpatioTemporalConditionModel]:
    return InterpolationUNet if kind == "interpolation" else UNetSpatioTemporalConditionModel


def _rebuild(unet: UNetSpatioTemporalConditionModel, kind: Kind, **changed: Any) -> Any:
    """An untrained UNet of another kind, else as configured."""
    known = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    changed["in_channels"] = input_channels(kind, unet.config.out_channels)
    changed["projection_class_embeddings_input_dim"] = (
        len(VECTOR_CONDITIONS[kind]) * unet.config.addition_time_embed_dim
    )
    return allow_image_only(_network(kind).from_config(known | changed))


def _grow(old: UNetSpatioTemporalConditionModel, new: UNetT) -> UNetT:
    """Copy all weights; where an input grew, the new columns are zero."""
    weights = {**new.state_dict(), **old.state_dict()}
    for name in ("conv_in.weight", "add_embedding.linear_1.weight"):
        wide = torch.zeros_like(new.get_parameter(name), dtype=weights[name].dtype)
        wide[:, : weights[name].shape[1]] = weights[name]
        weights[name] = wide
    new = new.to(dtype=old.dtype)
    new.load_state_dict(weights)
    return new
