"""What the model sees at each step, as a function of (seed, ordinal of the sample) and of nothing else.

The ordinal counts samples over the whole run: step s of global batch B uses s*B to (s+1)*B - 1. Order, window, caption,
noise level, noise and dropped conditions are drawn from it, never from a process's rank or a generator's running state.
So any split over processes sees the same samples, and a run that resumes needs to know its step number only.

Shapes: B batch, F frames, C latent channels, H W latent size; L text tokens, E width of an embedding.
"""

from __future__ import annotations

from collections import OrderedDict
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
from .buckets import Bucket, bucket, is_window, sequence_fps, sequence_frames, window_frames, window_lengths
from .order import Order, Place, generator
from .settings import StageSettings

# streams of random numbers that must not share bits, with each other and with those of ``order``
_DRAW, _NOISE, _FRAME_NOISE, _LATENT = 2, 3, 4, 5
_TRAINING, _HELD_OUT = 0, 1
_OPEN_SHARDS = 64


@dataclass(frozen=True)
class Draw:
    """One sample at one step: which, at which noise, under which conditions."""

    row: int  # of the manifest
    place: float  # 0 to 1: where its window starts, or the single frame lies
    caption: int  # 0 image, 1 video, 2 summary
    sigma: float
    augment_sigma: float  # of the noise on the conditioning frame
    drop_text: bool
    drop_embedding: bool
    drop_frame: bool
    noise_key: tuple[int, ...]  # names the sample's noise
    pace: float = 0.0  # 0 to 1: which of the frame rates asked for


class Plan:
    """The order and the draws of a stage.

    Args:
        settings: of the stage.
        samples: dataset and bucket of each training sample; a number stands for so many of one dataset and bucket.
        weights: of the datasets.

    Raises:
        BadInputError: there are no samples, or none of a dataset.
    """

    def __init__(
        self, settings: StageSettings, samples: int | Sequence[Place], weights: Sequence[float] = (1.0,)
    ) -> None:
        places = [(0, None)] * samples if isinstance(samples, int) else samples
        self.settings, self.samples = settings, len(places)
        self.order = Order(places, settings.batch, settings.seed, weights)

    def draw(self, ordinal: int) -> Draw:
        """The draw with this ordinal; every epoch visits each sample once, in its own order (``order.py``)."""
        s, rng = self.settings, generator(_DRAW, _TRAINING, self.settings.seed, ordinal)
        place_in_clip, caption, text, image = rng.random(4)
        normal, augment = rng.standard_normal(2)
        pace, alone = rng.random(2)
        bounds = np.cumsum(s.caption_weights)
        if s.embedding_dropout is None and s.frame_dropout is None:
            # One p each for: embedding alone, both, frame alone. Guidance then has a model for every combination.
            drop_embedding, drop_frame = image < 2 * s.image_dropout, s.image_dropout <= image < 3 * s.image_dropout
        else:
            drop_embedding, drop_frame = image < (s.embedding_dropout or 0.0), alone < (s.frame_dropout or 0.0)
        return Draw(
            row=self.order.row(*divmod(ordinal, s.batch)),
            place=float(place_in_clip),
            caption=int(min(np.searchsorted(bounds, caption, side="right"), 2)),
            sigma=float(np.exp(s.p_mean + s.p_std * normal)),
            augment_sigma=float(np.exp(s.augment_mean + s.augment_std * augment)),
            drop_text=bool(text < s.text_dropout),
            drop_embedding=bool(drop_embedding),
            drop_frame=bool(drop_frame),
            noise_key=(_TRAINING, s.seed, ordinal),
            pace=float(pace),
        )

    def micro_batch(self, step: int, index: int, rank: int, processes: int) -> list[Draw]:
        """What one process takes as its ``index``-th micro-batch of a step."""
        first = step * self.settings.batch + (index * processes + rank) * self.settings.micro_batch
        return [self.draw(ordinal) for ordinal in range(first, first + self.settings.micro_batch)]


def held_out_draws(settings: StageSettings, rows: int) -> list[tuple[int, Draw]]:
    """The held-out loss's fixed draws, each with the index of its noise level; the training seed has no part."""
    count = min(rows, settings.held_out_samples)
    chosen = sorted({round(place) for place in np.linspace(0, rows - 1, count)}) if count else []
    draws = []
    for level, sigma in enumerate(held_out_sigmas(settings)):
        for seed in range(settings.held_out_seeds):
            for place, row in enumerate(chosen):
                frame = float(generator(_DRAW, _HELD_OUT, seed, place).random())
                draws.append(
                    (
                        level,
                        Draw(
                            int(row),
                            frame,
                            0,
                            sigma,
                            float(np.exp(settings.augment_mean)),
                            False,
                            False,
                            False,
                            (_HELD_OUT, seed, int(row), level),
                        ),
                    )
                )
    return draws


def held_out_sigmas(settings: StageSettings) -> list[float]:
    """Noise levels in the middle of equal shares of the training distribution's mass, low to high."""
    from statistics import NormalDist

    normal = NormalDist(settings.p_mean, settings.p_std)
    return [
        float(np.exp(normal.inv_cdf((i + 0.5) / settings.held_out_levels))) for i in range(settings.held_out_levels)
    ]


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
        """A stage's. Windows of text-to-video need no picture; the held-out loss takes the posterior's mean."""
        return Gathering(
            window_lengths(stage, settings),
            settings.fps,
            anywhere=stage in ("image", "video"),
            sampled=training and settings.latent == "sample",
        )


class SampleSource:
    """Reads windows of a manifest's samples out of their shards; keeps a bounded number of shards open.

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

    # which frames

    @cached_property
    def buckets(self) -> list[Bucket]:
        """The bucket of each sample."""
        return [bucket(row, self.gathering.lengths) for row in self.rows]

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

    def picture(self, draw: Draw) -> np.ndarray:
        """The clean first frame of the draw's window, uint8 [H, W, 3]."""
        row = self.rows[draw.row]
        return read_picture(self._reader(row["shard_uri"]), row, self.window(draw).first)

    @property
    def typical_fps(self) -> float:
        """The median rate of the samples' windows."""
        rates = sorted(self.fps(middle_draw(row)) for row in range(len(self.rows)))
        return rates[len(rates) // 2]

    @property
    def latent_channels(self) -> int:
        """Channels of the latents, by the first sample."""
        return int(self.tensor(0, "latents" if is_window(self.rows[0]) else "mean", 0, 1).shape[1])

    # tensors

    def tensor(self, row: int, name: str, first: int = 0, count: int | None = None) -> np.ndarray:
        """A tensor of a sample, or ``count`` entries of its first axis; only their bytes are read."""
        return self._reader(self.rows[row]["shard_uri"]).read_rows(self.rows[row]["tensor_prefix"], name, first, count)

    def _gather(self, row: int, name: str, window: Window) -> np.ndarray:
        # One read: the span is a few MB at most, and frames between those wanted cost less than many requests.
        return self.tensor(row, name, window.first, window.span)[:: window.stride].astype(np.float32)

    def _reader(self, uri: str) -> ShardReader:
        reader = self._readers.pop(uri, None) or ShardReader.open(self.root, uri, self.cache)
        self._readers[uri] = reader
        if len(self._readers) > _OPEN_SHARDS:
            self._readers.popitem(last=False)
        return reader


def middle_draw(row: int) -> Draw:
    """A draw that stands for a sample: the window in the middle, nothing dropped."""
    return Draw(row, 0.5, 0, 1.0, 1.0, False, False, False, (), 0.5)


def noise(draw: Draw, shape: Sequence[int]) -> np.ndarray:
    """The sample's noise: standard normal, float32, the same wherever it is drawn."""
    return generator(_NOISE, *draw.noise_key).standard_normal(tuple(shape), dtype=np.float32)


def frame_noise(draw: Draw, shape: Sequence[int]) -> np.ndarray:
    """The noise of the sample's conditioning frame."""
    return generator(_FRAME_NOISE, *draw.noise_key).standard_normal(tuple(shape), dtype=np.float32)


def draw_latents(draw: Draw, mean: np.ndarray, logvar: np.ndarray) -> np.ndarray:
    """Latents drawn from their posterior."""
    return np.asarray(mean + np.exp(0.5 * logvar) * latent_noise(draw, mean.shape), np.float32)


def latent_noise(draw: Draw, shape: Sequence[int]) -> np.ndarray:
    """What draws the sample's latents from their posterior."""
    return generator(_LATENT, *draw.noise_key).standard_normal(tuple(shape), dtype=np.float32)
