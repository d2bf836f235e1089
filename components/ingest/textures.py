"""Procedural surfaces: noise, checks, stripes, bricks, planks and the like, in named colours."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 45, 40),
    "orange": (235, 135, 35),
    "yellow": (235, 210, 60),
    "green": (60, 150, 65),
    "teal": (35, 150, 150),
    "blue": (50, 90, 200),
    "purple": (130, 65, 165),
    "pink": (235, 130, 170),
    "brown": (130, 85, 50),
    "grey": (130, 132, 136),
    "white": (235, 234, 228),
    "black": (36, 36, 42),
}


def surface(kind: str, colour: str, height: int, width: int, scale_px: float, rng: np.random.Generator) -> np.ndarray:
    """A surface of one kind in one named colour.

    Args:
        kind: a key of PATTERNS.
        colour: a key of COLOURS; its shade varies from call to call.
        height: px.
        width: px.
        scale_px: size of the pattern's repeating element.
        rng: source of all variation.

    Returns:
        uint8 RGB [height, width, 3].
    """
    base = np.clip(np.asarray(COLOURS[colour], float) + rng.normal(0, 9, 3), 8, 247)
    depth = rng.uniform(0.35, 0.75)
    second = base * (1 - depth) if base.mean() > 90 else base + (255 - base) * depth * 0.6
    weight = np.clip(PATTERNS[kind](height, width, scale_px, rng), 0, 1)[..., None]
    grain = noise(height, width, scale_px / 3, 3, rng)[..., None]
    shade = 1 + 0.22 * (grain - 0.5)
    return np.clip((base * weight + second * (1 - weight)) * shade, 0, 255).astype(np.uint8)


def noise(height: int, width: int, scale_px: float, octaves: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise in 0 to 1 [height, width]: octaves from ``scale_px`` down, each half as large and half as strong."""
    total, strength, amount = np.zeros((height, width)), 0.0, 1.0
    for octave in range(octaves):
        cell = max(scale_px / 2**octave, 1.0)
        grid = rng.random((int(height / cell) + 3, int(width / cell) + 3))
        large = cv2.resize(grid, None, fx=cell, fy=cell, interpolation=cv2.INTER_CUBIC)
        total += (
            amount * cv2.resize(large, (width, height)) if min(large.shape) < 2 else amount * large[:height, :width]
        )
        strength, amount = strength + amount, amount / 2
    return np.clip(total / strength, 0, 1)


def _grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[0:height, 0:width]
    return y.astype(float), x.astype(float)


def _soft_step(value: np.ndarray, softness: float = 0.04) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(value / softness, -40, 40)))


def _clouds(height: int, width: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    return _soft_step(noise(height, width, scale * 2.5, 5, rng) - 0.5, 0.09)


def _stone(height: int, width: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    return noise(height, width, scale * 0.6, 4, rng) * 1.5 - 0.25


def _checks(height: int, width: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    y, x = _grid(height, width)
    return ((y // scale + x // scale) % 2).astype(float)


def _stripes(height: int, width: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    y, x = _grid(height, width)
    angle = rng.uniform(0, np.pi)
    return _soft_step(np.sin((x * np.cos(angle) + y * np.sin(angle)) * np.pi / scale), 0.2)


def _bricks(height: int, width: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    y, x = _grid(height, width)
    row = (y // (scale * 0.6)).astype(int)
    shifted = x + (row % 2) * scale * 0.6
    column = (shifted // (scale * 1.2)).astype(int)
    joint = np.minimum(y % (scale * 0.6), shifted % (scale * 1.2)) < max(1.5, scale * 0.08)
    tint = rng.uniform(0.6, 1.0, (row.max() + 1, column.max() + 1))[row, column]
    return np.where(joint, 0.0, tint)


def _planks(height: int, width: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    y, x = _grid(height, width)
    plank = (y // (scale * 1.2)).astype(int)
    rings = noise(height, width, scale * 3, 2, rng) * 8 + plank * 2.3 + y / scale
    tint = rng.uniform(0.45, 0.75, plank.max() + 1)[plank]
    return np.where(y % (scale * 1.2) < 1.5, 0.0, tint + 0.25 * np.sin(rings * 2 * np.pi + x * 0.01))


def _dots(height: int, width: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    y, x = _grid(height, width)
    return _soft_step((np.hypot(y % scale - scale / 2, x % scale - scale / 2) - scale * rng.uniform(0.2, 0.36)) / scale)


def _gradient(height: int, width: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    y, x = _grid(height, width)
    angle = rng.uniform(0, 2 * np.pi)
    ramp = x / width * np.cos(angle) + y / height * np.sin(angle)
    return (ramp - ramp.min()) / (np.ptp(ramp) or 1)


def _ripples(height: int, width: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    y, x = _grid(height, width)
    centre_y, centre_x = rng.uniform(0, height), rng.uniform(0, width)
    return 0.5 + 0.5 * np.sin(np.hypot(y - centre_y, x - centre_x) * 2 * np.pi / scale)


Pattern = Callable[[int, int, float, np.random.Generator], np.ndarray]
PATTERNS: dict[str, Pattern] = {
    "clouds": _clouds,
    "stone": _stone,
    "checks": _checks,
    "stripes": _stripes,
    "bricks": _bricks,
    "planks": _planks,
    "dots": _dots,
    "gradient": _gradient,
    "ripples": _ripples,
}
