"""The tensors of a draw: windows of samples, read out of their shards.

Shapes: B batch, F frames, C latent channels, H W latent size; L text tokens, E width of an embedding.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ...common.block_cache import BlockCache
from ...common.errors import BadInputError
from ...common.sample_tensors import read_picture
from ...common.shards import ShardReader
from ...common.storage import DataRoot
from ...common.windows import Window, choose_window, stride_for
from .buckets import (
    COLUMNS,
    NO_LAST_EMBEDDING,
    Bucket,
    bucket,
    is_window,
    sequence_fps,
    sequence_frames,
    window_frames,
    window_lengths,
)
from .draws import Draw, draw_latents, middle_draw
from .packed_rows import only
from .settings import StageSettings

_OPEN_SHARDS = 64
_TYPICAL = 10_000  # samples that a median is of


@dataclass(frozen=True)
class Gathering:
    """Which windows a stage takes out of the samples.

    Attributes:
        lengths: frames of a window; a sample takes the longest that it holds. None given: its reference window's.
        fps: rates, one of which is drawn for a sample; its nearest whole stride that fits is taken. None: the rate of
            the reference window.
        anywhere: windows start at any frame; else where the pixels of the frame are kept.
        sampled: latents are drawn from their posterior, else its mean is taken.
    """

    lengths: tuple[int, ...] = ()
    fps: tuple[float, ...] | None = None
    anywhere: bool = False
    sampled: bool = False

    @staticmethod
    def of(stage: str, settings: StageSettings, training: bool) -> Gathering:
        """A stage's. Only pictures that are encoded anew need their pixels; the held-out loss takes posterior means."""
        return Gathering(
            window_lengths(stage, settings),
            settings.fps,
            anywhere=stage in ("image", "video", "interpolation", "decoder"),
            sampled=training and settings.latent == "sample",
        )


@dataclass(frozen=True)
class Reading:
    """What is read of a draw, before any encoder of the model sees it.

    Attributes:
        latents: scaled, float32 [F, C, H, W]; None when they are yet to be encoded.
        context: token states [L, E], the embedding of an image [1, E], or those of the frames at both ends [2, E]; None
            likewise.
        picture: the clean first frame, uint8 [H, W, 3]; None for kinds that take a text, and for interpolation.
        frames: uint8 [F, H, W, 3] of a sample that is not encoded.
    """

    latents: np.ndarray | None = None
    context: np.ndarray | None = None
    picture: np.ndarray | None = None
    frames: np.ndarray | None = None


class SampleSource:
    """Reads windows of a manifest's samples out of their shards; keeps a bounded number of shards open.

    Several threads may read at the same time.

    Args:
        root: where the shards lie.
        rows: of the samples manifest.
        gathering: which windows are taken.
        cache: keeps what is read of shards in an object store.
    """

    def __init__(
        self,
        root: DataRoot,
        rows: Sequence[dict[str, Any]],
        gathering: Gathering | None = None,
        cache: BlockCache | None = None,
    ) -> None:
        self.root, self.rows, self.gathering, self.cache = root, rows, gathering or Gathering(), cache
        self._readers: OrderedDict[str, ShardReader] = OrderedDict()
        self._lock = threading.Lock()

    # which frames

    @cached_property
    def buckets(self) -> list[Bucket]:
        """The bucket of each sample; equal ones are one object."""
        known: dict[Bucket, Bucket] = {}
        found = (bucket(row, self.gathering.lengths) for row in only(self.rows, *COLUMNS))
        return [known.setdefault(size, size) for size in found]

    def window(self, draw: Draw, single_frame: bool = False) -> Window:
        """The frames of the sample's sequence that a draw takes."""
        row, g = self.rows[draw.row], self.gathering
        available = sequence_frames(row)
        if single_frame:
            return Window(min(int(draw.place * available), available - 1), 1, 1)
        frames = window_frames(row, g.lengths)
        if frames is None:
            raise BadInputError(f"sample {row['sample_id']}: holds none of the lengths {g.lengths}")
        starts = range(available) if g.anywhere else row.get("starts") or [0]
        return choose_window(available, starts, frames, self._stride(row, draw.pace), draw.place)

    def fps(self, draw: Draw) -> float:
        """The frame rate that the sample is conditioned on: that of its window."""
        row = self.rows[draw.row]
        return sequence_fps(row) / self.window(draw).stride

    def _stride(self, row: dict[str, Any], pace: float) -> int:
        rates = self.gathering.fps
        if rates is None:
            return row.get("stride") or 1
        return stride_for(sequence_fps(row), rates[min(int(pace * len(rates)), len(rates) - 1)])

    # what a draw's model is given

    def read(self, draw: Draw, kind: str) -> Reading:
        """All that a model of a kind is given of a draw, as far as no encoder is needed for it."""
        latents = self.latents(draw, single_frame=kind == "image")
        if kind in ("image", "text_to_video"):
            return Reading(latents, self.text(draw))
        if kind == "interpolation":
            return Reading(latents, self.end_images(draw))
        return Reading(latents, self.image(draw)[None], self.picture(draw))

    def encode(self, draw: Draw, reading: Reading, kind: str) -> Reading:
        """What ``read`` gave, with nothing left to be encoded."""
        return reading

    def latents(self, draw: Draw, single_frame: bool = False) -> np.ndarray:
        """Scaled latents [F, C, H, W] of the draw's window in float32; of one frame, by the draw, when single."""
        window = self.window(draw, single_frame)
        if is_window(self.rows[draw.row]):
            return self._gather(draw.row, "latents", window)
        mean = self._gather(draw.row, "mean", window)
        if not self.gathering.sampled:
            return mean
        return draw_latents(draw, mean, self._gather(draw.row, "logvar", window))

    def text(self, draw: Draw) -> np.ndarray:
        """Token states [L, E] of the drawn caption."""
        row = self.rows[draw.row]
        uri, prefix = row.get("text_uri") or row["shard_uri"], row.get("text_prefix") or row["tensor_prefix"]
        return self._reader(uri).read_rows(prefix, "text", draw.caption, 1)[0].astype(np.float32)

    def image(self, draw: Draw) -> np.ndarray:
        """The embedding [E] of the clean first frame of the draw's window."""
        if is_window(self.rows[draw.row]):
            return self.tensor(draw.row, "image").astype(np.float32)
        return self.tensor(draw.row, "images", self.window(draw).first, 1)[0].astype(np.float32)

    def end_images(self, draw: Draw) -> np.ndarray:
        """The embeddings [2, E] of the clean first and last frame of the draw's window."""
        if is_window(self.rows[draw.row]):
            raise BadInputError(f"sample {self.rows[draw.row]['sample_id']}: {NO_LAST_EMBEDDING}")
        return self._gather(draw.row, "images", self.window(draw))[[0, -1]]

    def picture(self, draw: Draw) -> np.ndarray:
        """The clean first frame of the draw's window, uint8 [H, W, 3]."""
        row = self.rows[draw.row]
        return read_picture(self._reader(row["shard_uri"]), row, self.window(draw).first)

    @property
    def typical_fps(self) -> float:
        """The median rate of the samples' windows, of many samples those at even distances; pictures have none."""
        moving = [row for row, (frames, _, _) in enumerate(self.buckets) if frames > 1] or range(len(self.rows))
        rates = sorted(self.fps(middle_draw(row)) for row in moving[:: max(1, len(moving) // _TYPICAL)])
        return rates[len(rates) // 2]

    @property
    def typical_size(self) -> Bucket:
        """The size that most samples have; pictures do not count where there are others."""
        moving = [size for size in self.buckets if size[0] > 1] or self.buckets
        return Counter(moving).most_common(1)[0][0]

    @property
    def latent_channels(self) -> int:
        """Channels of the latents, by the first sample."""
        return int(self.tensor(0, "latents" if is_window(self.rows[0]) else "mean", 0, 1).shape[1])

    def context_width(self, kind: str) -> int:
        """Width of what a model of a kind attends to, by the first sample."""
        draw = middle_draw(0)
        return int((self.text(draw) if kind in ("image", "text_to_video") else self.image(draw)).shape[-1])

    # tensors

    def tensor(self, row: int, name: str, first: int = 0, count: int | None = None) -> np.ndarray:
        """A tensor of a sample, or ``count`` entries of its first axis; only their bytes are read."""
        return self._reader(self.rows[row]["shard_uri"]).read_rows(self.rows[row]["tensor_prefix"], name, first, count)

    def _gather(self, row: int, name: str, window: Window) -> np.ndarray:
        # One read: the span is a few MB at most, and frames between those wanted cost less than many requests.
        return self.tensor(row, name, window.first, window.span)[:: window.stride].astype(np.float32)

    def _reader(self, uri: str) -> ShardReader:
        with self._lock:
            if (reader := self._readers.get(uri)) is not None:
                self._readers.move_to_end(uri)
                return reader
        reader = ShardReader.open(self.root, uri, self.cache)  # two threads may open the same one; one of them stays
        with self._lock:
            self._readers[uri] = reader
            if len(self._readers) > _OPEN_SHARDS:
                self._readers.popitem(last=False)
        return reader
