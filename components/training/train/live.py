"""Training without the cache: clips are decoded and encoded at every step, behind the interface of the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...common.block_cache import BlockCache
from ...common.errors import BadInputError
from ...common.sample_tensors import CLIP, read_clip_frames
from ...common.storage import DataRoot
from ...diffusion.conditioning import image_embeddings, text_context
from ...diffusion.model_directory import VideoModel
from ..encode.encoders import scaled_moments
from .data import Gathering, Reading, SampleSource
from .draws import Draw, draw_latents

_CHUNK = 8  # frames that go through the autoencoder at once, as when the cache is made


class LiveSource(SampleSource):
    """Samples of which some are not encoded: those with the layout "clip"; others are read as they are.

    Args:
        root: where clips and shards lie.
        rows: of the samples manifest.
        gathering: which windows are taken.
        cache: keeps what is read of an object store.
        model: gives the encoders: autoencoder, image encoder, text encoder.
    """

    def __init__(
        self,
        root: DataRoot,
        rows: Sequence[dict[str, Any]],
        gathering: Gathering | None,
        cache: BlockCache | None,
        model: VideoModel,
    ) -> None:
        super().__init__(root, rows, gathering, cache)
        self.model = model

    def read(self, draw: Draw, kind: str) -> Reading:
        if not self._is_live(draw):
            return super().read(draw, kind)
        window = self.window(draw, single_frame=kind == "image")
        frames_FHWC = self._frames(draw.row, window.indices)
        return Reading(picture=frames_FHWC[0] if kind in ("image_to_video", "multi_view") else None, frames=frames_FHWC)

    def encode(self, draw: Draw, reading: Reading, kind: str) -> Reading:
        if reading.frames is None:
            return reading
        latents = self.encoded(draw, reading.frames)
        if kind in ("image", "text_to_video"):
            return replace(reading, latents=latents, context=self.text(draw))
        seen = reading.frames[[0, -1]] if kind == "interpolation" else reading.frames[:1]
        return replace(reading, latents=latents, context=self._embedded(seen))

    def latents(self, draw: Draw, single_frame: bool = False) -> np.ndarray:
        if not self._is_live(draw):
            return super().latents(draw, single_frame)
        return self.encoded(draw, self._frames(draw.row, self.window(draw, single_frame).indices))

    def text(self, draw: Draw) -> np.ndarray:
        if not self._is_live(draw):
            return super().text(draw)
        if self.model.text_encoder is None:
            raise BadInputError(f"a model of kind {self.model.kind} has no text encoder; encode the samples")
        return text_context([self.rows[draw.row]["captions"][draw.caption]], self.model.text_encoder)[0].numpy()

    def image(self, draw: Draw) -> np.ndarray:
        return self._embedded(self.picture(draw)[None])[0] if self._is_live(draw) else super().image(draw)

    def end_images(self, draw: Draw) -> np.ndarray:
        if not self._is_live(draw):
            return super().end_images(draw)
        indices = self.window(draw).indices
        return self._embedded(self._frames(draw.row, [indices[0], indices[-1]]))

    def picture(self, draw: Draw) -> np.ndarray:
        if not self._is_live(draw):
            return super().picture(draw)
        return self._frames(draw.row, [self.window(draw).first])[0]

    @property
    def latent_channels(self) -> int:
        if self.rows[0].get("layout") != CLIP:
            return super().latent_channels
        return int(self.model.vae.config.latent_channels)

    def frames(self, draw: Draw) -> np.ndarray:
        """The frames of the draw's window, uint8 [F, H, W, 3]."""
        return self._frames(draw.row, self.window(draw).indices)

    def _is_live(self, draw: Draw) -> bool:
        return self.rows[draw.row].get("layout") == CLIP

    def _frames(self, row: int, places: Sequence[int]) -> np.ndarray:
        return read_clip_frames(self.rows[row], places, self._read_range)

    def _read_range(self, uri: str, offset: int, length: int) -> bytes:
        if self.cache is None:
            return self.root.read_range(uri, offset, length)
        return self.cache.read(uri, offset, length, lambda at, size: self.root.read_range(uri, at, size))

    def encoded(self, draw: Draw, frames_FHWC: np.ndarray) -> np.ndarray:
        """Scaled latents [F, C, h, w] of a draw's frames: drawn from their posterior, or its mean."""
        chunks = [frames_FHWC[at : at + _CHUNK] for at in range(0, len(frames_FHWC), _CHUNK)]
        moments = [scaled_moments(self.model.vae, chunk) for chunk in chunks]
        mean, logvar = (np.concatenate(part) for part in zip(*moments, strict=True))
        return draw_latents(draw, mean, logvar) if self.gathering.sampled else mean

    def _embedded(self, pictures_FHWC: np.ndarray) -> np.ndarray:
        encoder, extractor = self.model.image_encoder.to(self.model.vae.device), self.model.feature_extractor
        return image_embeddings(encoder, extractor, pictures_FHWC).cpu().numpy()
