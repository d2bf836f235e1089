"""What the model sees at each step, as a function of (seed, ordinal of the sample) and of nothing else.

The ordinal counts samples over the whole run: step s of global batch B uses s*B to (s+1)*B - 1. Order, window, caption,
noise level, noise and dropped conditions are drawn from it, never from a process's rank or a generator's running state.
So any split over processes sees the same samples, and a run that resumes needs to know its step number only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from .order import Order, Place, generator
from .settings import StageSettings

# streams of random numbers that must not share bits, with each other and with those of ``order``
_DRAW, _NOISE, _FRAME_NOISE, _LATENT, _OFFSET = 2, 3, 4, 5, 8
_TRAINING, _HELD_OUT = 0, 1


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
        sigma = float(np.exp(s.p_mean + s.p_std * normal))
        if s.noise_schedule == "discrete":
            sigma = float(rng.choice(discrete_sigmas()))
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
            sigma=sigma,
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
    shares = [(i + 0.5) / settings.held_out_levels for i in range(settings.held_out_levels)]
    if settings.noise_schedule == "discrete":
        sigmas = discrete_sigmas()
        return [float(sigmas[int(share * len(sigmas))]) for share in shares]
    from statistics import NormalDist

    normal = NormalDist(settings.p_mean, settings.p_std)
    return [float(np.exp(normal.inv_cdf(share))) for share in shares]


@cache
def discrete_sigmas() -> np.ndarray:
    """The noise levels of Stable Diffusion's timesteps, rising; each is as likely as any other."""
    from ...diffusion.discrete import DiscreteSchedule

    return DiscreteSchedule().sigmas().numpy()


def middle_draw(row: int) -> Draw:
    """A draw that stands for a sample: the window in the middle, nothing dropped."""
    return Draw(row, 0.5, 0, 1.0, 1.0, False, False, False, (), 0.5)


def noise(draw: Draw, shape: Sequence[int]) -> np.ndarray:
    """The sample's noise: standard normal, float32, the same wherever it is drawn."""
    return generator(_NOISE, *draw.noise_key).standard_normal(tuple(shape), dtype=np.float32)


def frame_noise(draw: Draw, shape: Sequence[int]) -> np.ndarray:
    """The noise of the sample's conditioning frame."""
    return generator(_FRAME_NOISE, *draw.noise_key).standard_normal(tuple(shape), dtype=np.float32)


def noise_offset(draw: Draw, channels: int) -> np.ndarray:
    """What offset noise shifts each channel of the sample by, before its strength: standard normal [C]."""
    return generator(_OFFSET, *draw.noise_key).standard_normal(channels, dtype=np.float32)


def draw_latents(draw: Draw, mean: np.ndarray, logvar: np.ndarray) -> np.ndarray:
    """Latents drawn from their posterior."""
    return np.asarray(mean + np.exp(0.5 * logvar) * latent_noise(draw, mean.shape), np.float32)


def latent_noise(draw: Draw, shape: Sequence[int]) -> np.ndarray:
    """What draws the sample's latents from their posterior."""
    return generator(_LATENT, *draw.noise_key).standard_normal(tuple(shape), dtype=np.float32)
