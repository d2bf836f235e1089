"""The size that a clip is encoded at, and the variants of its picture: which part is kept, flipped or not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...common.frames import CENTRE, crop_shares
from .settings import EncodeSettings

_PLACES = {"centre": CENTRE, "start": 0.0, "end": 1.0}


@dataclass(frozen=True)
class Variant:
    """A way to bring a picture to the training size.

    Attributes:
        number: its place among all variants that there are.
        place: of the part that is kept along the longer axis, see ``fit_frame``.
        flipped: left and right exchanged.
    """

    number: int
    place: float
    flipped: bool


PLAIN = Variant(0, CENTRE, False)


def nearest_size(height: int, width: int, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The size whose aspect ratio is nearest to a picture's (by the ratio of the two); the first of equal ones."""
    return min(sizes, key=lambda size: abs(math.log(size[1] / size[0] * height / width)))


def variants(height: int, width: int, size: tuple[int, int], split: str, settings: EncodeSettings) -> list[Variant]:
    """The variants that a picture is encoded in; a held-out one, and one of which nothing is cut, has fewer.

    Args:
        height: of the picture.
        width: of the picture.
        size: height and width of the result.
        split: held-out clips have the first variant alone.
        settings: which crops, and whether flips.
    """
    every = [
        Variant(number, _PLACES[name], flipped)
        for number, (flipped, name) in enumerate((flipped, name) for flipped in (False, True) for name in _PLACES)
        if name in settings.crops and (settings.flips or not flipped)
    ]
    if split == "held_out":
        return every[:1]
    distinct: dict[tuple[bool, tuple[float, ...]], Variant] = {}
    for variant in every:
        distinct.setdefault((variant.flipped, crop_shares(height, width, *size, variant.place)), variant)
    return list(distinct.values())
