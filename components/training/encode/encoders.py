"""The frozen models that turn frames and captions into what training reads, and the identity of each.

Shapes: F frames, C latent channels, H W latent size, N captions, L tokens, E width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...common.errors import BadInputError
from ...common.identity import identity, tree_sha256
from ...diffusion import autoencoder, conditioning
from ...diffusion.device import default_device
from .settings import EncodeSettings


class Encoders:
    """Loads each model when it is first used: a run that finds every clip encoded loads none.

    Those of frames compute on this process's GPU, if it has one.
    """

    def __init__(self, settings: EncodeSettings) -> None:
        self.settings = settings
        self._loaded: dict[str, Any] = {}
        self._texts: dict[str, np.ndarray] = {}

    def identity(self) -> dict[str, str]:
        """What names the encoders' results: contents of shipped or given weights, versions of the local stand-ins."""
        s = self.settings
        text = (
            f"{conditioning.LOCAL_TEXT_ENCODER} {conditioning.VERSION}"
            if s.text_encoder == "local"
            else _directory(s.text_encoder)
        )
        image = (
            f"{conditioning.LOCAL_IMAGE_ENCODER} {conditioning.VERSION}"
            if s.image_encoder == "local"
            else _directory(s.image_encoder)
        )
        return {"autoencoder": autoencoder.autoencoder_id(s.autoencoder), "text": text, "image": image}

    def moments(self, frames_FHWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8 frames to mean and log-variance of the scaled latents' posterior, float32 [F, C, H, W] each."""
        return scaled_moments(self._once("vae", self._load_autoencoder), frames_FHWC)

    def texts(self, captions: list[str]) -> np.ndarray:
        """Captions to token states [N, L, E]; equal captions are encoded once."""
        new = sorted(set(captions) - self._texts.keys())
        if new:
            if len(self._texts) > 10_000:
                self._texts.clear()
                new = sorted(set(captions))
            source = (
                conditioning.LOCAL_TEXT_ENCODER if self.settings.text_encoder == "local" else self.settings.text_encoder
            )
            for caption in new:  # one at a time: a caption's states must not depend on its neighbours in a batch
                self._texts[caption] = conditioning.text_context([caption], source)[0].numpy()
        return np.stack([self._texts[caption] for caption in captions])

    def images(self, frames_FHWC: np.ndarray) -> np.ndarray:
        """The embeddings of clean frames, [F, E]."""
        encoder, extractor = self._once("image", self._load_image_encoder)
        return conditioning.image_embeddings(encoder, extractor, frames_FHWC).cpu().numpy()

    def _load_autoencoder(self) -> Any:
        return autoencoder.load_autoencoder(self.settings.autoencoder).to(default_device())

    def _load_image_encoder(self) -> tuple[Any, Any]:
        if self.settings.image_encoder == "local":
            local = conditioning.build_image_encoder(self.texts([""]).shape[-1])
            return local.to(default_device()), conditioning.build_feature_extractor()
        from transformers import CLIPVisionModelWithProjection

        encoder = CLIPVisionModelWithProjection.from_pretrained(
            self.settings.image_encoder, local_files_only=True, use_safetensors=True
        )
        return encoder.to(default_device()).eval().requires_grad_(False), conditioning.build_feature_extractor()

    def _once(self, name: str, load: Any) -> Any:
        if name not in self._loaded:
            self._loaded[name] = load()
        return self._loaded[name]


def scaled_moments(vae: Any, frames_FHWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and log-variance of the posterior of what the diffusion model sees: latents times the scaling factor.

    Args:
        vae: an autoencoder in diffusers' form.
        frames_FHWC: uint8 frames [F, H, W, 3].

    Returns:
        float32 [F, C, H, W] each.
    """
    pixels_FCHW = autoencoder.to_unit_range(frames_FHWC).to(next(vae.parameters()).device)
    mean_FCHW, std_FCHW = autoencoder.encode_moments(vae, pixels_FCHW)
    scale = vae.config.scaling_factor
    return (mean_FCHW.float() * scale).cpu().numpy(), 2.0 * (std_FCHW.float() * scale).log().cpu().numpy()


def _directory(source: str) -> str:
    if not Path(source).is_dir():
        raise BadInputError(f"{source}: no such encoder; give 'local' or a model's directory")
    return identity(tree=tree_sha256(Path(source)))
