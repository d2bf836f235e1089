"""Generated 3D objects: composites of primitives whose sides differ, each fully described by plain numbers.

The front, back, left and right of an object bear parts of other shapes and colours, so that a view cannot be mistaken
for another one and the elevation can be seen.
"""

from __future__ import annotations

import colorsys
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..common.identity import identity

VERSION = "1"
Vector = tuple[float, float, float]
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Part:
    """One primitive: shape name, semi-axes, centre, RGB colour (0 to 1), turn about its own axes, exponents."""

    shape: str  # "superquadric", "box", "cylinder", "torus" or "cone"; cylinder, torus and cone stand along z
    size: Vector
    centre: Vector
    colour: Colour
    turn_deg: Vector = (0.0, 0.0, 0.0)
    exponents: tuple[float, float] = (1.0, 1.0)  # superquadric only: 1 is an ellipsoid, towards 0 a box


@dataclass(frozen=True)
class GeneratedObject:
    """An object made of parts; z is up, x is its front."""

    name: str
    parts: tuple[Part, ...]

    @property
    def object_id(self) -> str:
        """Identity of the shape, not of the name."""
        return identity(generated=VERSION, parts=[asdict(part) for part in self.parts])


def generate_object(seed: int, index: int) -> GeneratedObject:
    """The object of a seed and a number; equal arguments give an equal object on every machine."""
    rng = np.random.default_rng([seed, index])
    family = _FAMILIES[index % len(_FAMILIES)]
    parts = family(rng, _palette(rng)) + [_marker(rng)]
    return GeneratedObject(f"{family.__name__.strip('_')}-{index:03d}", tuple(parts))


def _palette(rng: np.random.Generator) -> list[Colour]:
    hue = rng.uniform()
    steps = (0.0, 0.5, 0.28, 0.72, 0.12)
    return [_colour((hue + step) % 1, rng.uniform(0.6, 0.95), rng.uniform(0.55, 0.95)) for step in steps]


def _colour(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red, 4), round(green, 4), round(blue, 4)


def _v(*values: Any) -> Any:
    return tuple(round(float(value), 4) for value in values)  # so that the identity does not hang on the last bits


def _marker(rng: np.random.Generator) -> Part:
    """A small dark knob at a random place of the upper half: breaks what symmetry is left."""
    azimuth, height = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.6)
    return Part(
        "superquadric",
        _v(0.13, 0.13, 0.13),
        _v(0.75 * np.cos(azimuth), 0.75 * np.sin(azimuth), height),
        (0.12, 0.12, 0.14),
    )


def _vehicle(rng: np.random.Generator, c: list[Colour]) -> list[Part]:
    length, width, height = rng.uniform(0.9, 1.2), rng.uniform(0.4, 0.55), rng.uniform(0.2, 0.3)
    cabin = rng.uniform(-0.4, 0.1)
    parts = [
        Part("superquadric", _v(length, width, height), _v(0, 0, 0), c[0], exponents=_v(0.3, rng.uniform(0.3, 0.7))),
        Part(
            "superquadric",
            _v(0.45 * length, 0.85 * width, 0.28),
            _v(cabin, 0, height + 0.15),
            c[1],
            exponents=_v(0.4, 0.4),
        ),
        Part("cone", _v(0.2, 0.2, 0.3), _v(length + 0.1, 0, 0), c[2], turn_deg=_v(0, 90, 0)),
        Part("box", _v(0.05, width, 0.06), _v(-length - 0.02, 0, 0.1), c[3]),
    ]
    for x in (-0.6 * length, 0.6 * length):
        for side in (-1, 1):
            parts.append(
                Part(
                    "cylinder",
                    _v(0.24, 0.24, 0.08),
                    _v(x, side * width, -height),
                    (0.15, 0.15, 0.17),
                    turn_deg=_v(90, 0, 0),
                )
            )
    return parts


def _mug(rng: np.random.Generator, c: list[Colour]) -> list[Part]:
    radius, height = rng.uniform(0.5, 0.65), rng.uniform(0.6, 0.8)
    return [
        Part("cylinder", _v(radius, radius, height), _v(0, 0, 0), c[0]),
        Part("torus", _v(0.38, 0.38, 0.1), _v(-radius - 0.1, 0, 0), c[1], turn_deg=_v(90, 0, 0)),
        Part("cylinder", _v(0.85 * radius, 0.85 * radius, 0.04), _v(0, 0, height), c[2]),
        Part("superquadric", _v(0.08, 0.28, 0.28), _v(radius, 0, 0.1), c[3], exponents=_v(rng.uniform(0.3, 1.6), 1)),
        Part("torus", _v(radius, radius, 0.06), _v(0, 0, -height), c[4]),
    ]


def _figure(rng: np.random.Generator, c: list[Colour]) -> list[Part]:
    lean = rng.uniform(20, 70)
    return [
        Part("superquadric", _v(0.42, 0.5, 0.6), _v(0, 0, 0), c[0], exponents=_v(rng.uniform(0.6, 1.2), 0.8)),
        Part("superquadric", _v(0.34, 0.34, 0.34), _v(0.08, 0, 0.88), c[1]),
        Part("cone", _v(0.12, 0.12, 0.3), _v(0.5, 0, 0.88), c[2], turn_deg=_v(0, 90, 0)),
        Part("cylinder", _v(0.12, 0.12, 0.42), _v(0, 0.62, 0.1), c[3], turn_deg=_v(-lean, 0, 0)),
        Part("cylinder", _v(0.12, 0.12, 0.42), _v(0, -0.62, 0.1), c[4], turn_deg=_v(20, 0, 0)),
        Part("box", _v(0.5, 0.5, 0.08), _v(0, 0, -0.62), (0.35, 0.3, 0.28)),
    ]


def _house(rng: np.random.Generator, c: list[Colour]) -> list[Part]:
    width, depth, height = rng.uniform(0.55, 0.8), rng.uniform(0.45, 0.7), rng.uniform(0.35, 0.55)
    return [
        Part("box", _v(width, depth, height), _v(0, 0, 0), c[0]),
        Part("cone", _v(1.25 * max(width, depth), 1.25 * max(width, depth), 0.35), _v(0, 0, height + 0.33), c[1]),
        Part("box", _v(0.04, 0.16, 0.28), _v(width, rng.uniform(-0.2, 0.2), -height + 0.28), c[2]),
        Part("box", _v(0.2, 0.04, 0.16), _v(rng.uniform(-0.2, 0.2), depth, 0.05), c[3]),
        Part("cylinder", _v(0.1, 0.1, 0.3), _v(-0.35, -0.3, height + 0.5), c[4]),
    ]


def _tower(rng: np.random.Generator, c: list[Colour]) -> list[Part]:
    parts, z = [], -0.8
    for level in range(3):
        size = rng.uniform(0.35, 0.6) * (1 - 0.15 * level)
        shape = ("superquadric", "box", "cylinder")[int(rng.integers(3))]
        x, y = rng.uniform(-0.15, 0.15, 2)
        exponents = _v(*rng.uniform(0.3, 1.4, 2))
        parts.append(
            Part(shape, _v(size, size, 0.3), _v(x, y, z + 0.3), c[level], _v(0, 0, rng.uniform(0, 90)), exponents)
        )
        z += 0.6
    parts.append(Part("cone", _v(0.25, 0.25, 0.25), _v(0, 0, z + 0.2), c[3]))
    parts.append(Part("torus", _v(0.3, 0.3, 0.09), _v(0.45, 0.1, rng.uniform(-0.4, 0.4)), c[4], _v(0, 90, 0)))
    return parts


_FAMILIES = (_vehicle, _mug, _figure, _house, _tower)
