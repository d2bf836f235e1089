"""What the model sees at each step, as a function of (seed, ordinal of the sample) and of nothing else.

The ordinal counts samples over the whole run: step s of global batch B uses s*B to (s+1)*B - 1. Order, caption, noise
level, noise and dropped conditions are drawn from it, never from a process's rank or from a generator's running state.
So any split over processes sees the same samples, and a run that resumes needs to know its step number only.

Shapes: B batch, F frames, C latent channels, H W latent size; L text tokens, E width of an embedding.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...common.errors import BadInputError
from ...common.shards import ShardReader
from ...common.storage import DataRoot
from .settings import StageSettings

_ORDER, _DRAW, _NOISE, _FRAME_NOISE = 1, 2, 3, 4  # streams of random numbers that must not share bits
_TRAINING, _HELD_OUT = 0, 1
_OPEN_SHARDS = 64


@dataclass(frozen=True)
class Draw:
    """One sample at one step: which, at which noise, under which conditions."""

    row: int  # of the manifest
    frame: float  # place in the clip, 0 to 1, for the stage that trains on single frames
    caption: int  # 0 image, 1 video, 2 summary
    sigma: float
    augment_sigma: float  # of the noise on the conditioning frame
    drop_text: bool
    drop_embedding: bool
    drop_frame: bool
    noise_key: tuple[int, ...]  # names the sample's noise


class Plan:
    """The order and the draws of a stage."""

    def __init__(self, settings: StageSettings, samples: int) -> None:
        if samples < 1:
            raise BadInputError("the samples manifest holds no training sample: loosen the filter or add footage")
        self.settings, self.samples = settings, samples
        self._epoch, self._permutation = -1, np.empty(0, dtype=np.int64)

    def draw(self, ordinal: int) -> Draw:
        """The draw with this ordinal; every epoch visits each sample once, in its own order."""
        epoch, place = divmod(ordinal, self.samples)
        if epoch != self._epoch:
            self._epoch = epoch
            self._permutation = _generator(_ORDER, self.settings.seed, epoch).permutation(self.samples)
        s, rng = self.settings, _generator(_DRAW, _TRAINING, self.settings.seed, ordinal)
        frame, caption, text, image = rng.random(4)
        normal, augment = rng.standard_normal(2)
        bounds = np.cumsum(s.caption_weights)
        return Draw(
            row=int(self._permutation[place]),
            frame=float(frame),
            caption=int(min(np.searchsorted(bounds, caption, side="right"), 2)),
            sigma=float(np.exp(s.p_mean + s.p_std * normal)),
            augment_sigma=float(np.exp(s.augment_mean + s.augment_std * augment)),
            drop_text=bool(text < s.text_dropout),
            # One p each for: embedding alone, both, frame alone. Guidance then has a model for every combination.
            drop_embedding=bool(image < 2 * s.image_dropout),
            drop_frame=bool(s.image_dropout <= image < 3 * s.image_dropout),
            noise_key=(_TRAINING, s.seed, ordinal),
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
                frame = float(_generator(_DRAW, _HELD_OUT, seed, place).random())
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


class SampleSource:
    """Reads the samples of a manifest out of their shards; keeps a bounded number of shards open."""

    def __init__(self, root: DataRoot, rows: Sequence[dict[str, Any]]) -> None:
        self.root, self.rows = root, rows
        self._readers: OrderedDict[str, ShardReader] = OrderedDict()

    def tensor(self, row: int, name: str, first: int = 0, count: int | None = None) -> np.ndarray:
        """A tensor of a sample, or ``count`` entries of its first axis; only their bytes are read."""
        uri = self.rows[row]["shard_uri"]
        reader = self._readers.pop(uri, None) or ShardReader.open(self.root, uri)
        self._readers[uri] = reader
        if len(self._readers) > _OPEN_SHARDS:
            self._readers.popitem(last=False)
        return reader.read_rows(self.rows[row]["tensor_prefix"], name, first, count)

    def latents(self, draw: Draw, single_frame: bool) -> np.ndarray:
        """Latents [F, C, H, W] in float32; one frame of them, by the draw, when single."""
        if not single_frame:
            return self.tensor(draw.row, "latents").astype(np.float32)
        frames = self.rows[draw.row]["frames"]
        return self.tensor(draw.row, "latents", min(int(draw.frame * frames), frames - 1), 1).astype(np.float32)

    def text(self, draw: Draw) -> np.ndarray:
        """Token states [L, E] of the drawn caption."""
        return self.tensor(draw.row, "text", draw.caption, 1)[0].astype(np.float32)


def noise(draw: Draw, shape: Sequence[int]) -> np.ndarray:
    """The sample's noise: standard normal, float32, the same wherever it is drawn."""
    return _generator(_NOISE, *draw.noise_key).standard_normal(tuple(shape), dtype=np.float32)


def frame_noise(draw: Draw, shape: Sequence[int]) -> np.ndarray:
    """The noise of the sample's conditioning frame."""
    return _generator(_FRAME_NOISE, *draw.noise_key).standard_normal(tuple(shape), dtype=np.float32)


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
