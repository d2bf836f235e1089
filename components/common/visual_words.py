"""Plain words for what can be measured in a picture: colours, brightness, texture. No recogniser: it names no thing."""

from __future__ import annotations

import cv2
import numpy as np

from .picture import colourfulness, contrast, sharpness, shrink

_COLOURS = {
    "red": (200, 40, 40),
    "orange": (235, 135, 35),
    "yellow": (235, 210, 60),
    "green": (60, 150, 60),
    "teal": (35, 150, 150),
    "blue": (50, 90, 200),
    "purple": (130, 65, 165),
    "pink": (235, 130, 170),
    "brown": (130, 85, 50),
    "grey": (130, 130, 135),
    "white": (240, 240, 236),
    "black": (25, 25, 28),
}


def dominant_colours(rgb: np.ndarray, most: int = 3, share: float = 0.12) -> list[str]:
    """Names of the colours that fill at least ``share`` of the picture, the largest first (one at least)."""
    names = list(_COLOURS)
    palette = cv2.cvtColor(np.array([list(_COLOURS.values())], np.uint8), cv2.COLOR_RGB2LAB)[0].astype(np.float32)
    pixels = (
        cv2.cvtColor(cv2.resize(rgb, (48, 48), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2LAB)
        .reshape(-1, 3)
        .astype(np.float32)
    )
    nearest = ((pixels[:, None] - palette[None]) ** 2).sum(-1).argmin(1)
    shares = np.bincount(nearest, minlength=len(names)) / len(pixels)
    order = sorted(range(len(names)), key=lambda i: (-shares[i], i))
    return [names[i] for n, i in enumerate(order[:most]) if n == 0 or shares[i] >= share]


def visual_words(rgb: np.ndarray) -> dict[str, list[str]]:
    """Words by kind: ``light``, ``colours`` and ``texture``."""
    small = shrink(rgb)
    brightness = float(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).mean())
    light = ["dark"] if brightness < 70 else ["bright"] if brightness > 165 else []
    light += ["high-contrast"] if contrast(small) > 62 else ["low-contrast"] if contrast(small) < 22 else []
    light += ["colourful"] if colourfulness(small) > 60 else ["nearly colourless"] if colourfulness(small) < 10 else []
    detail = sharpness(small)
    texture = (
        ["smooth, plain surfaces"] if detail < 4 else ["fine, detailed texture"] if detail > 7 else ["soft texture"]
    )
    return {"light": light, "colours": dominant_colours(small), "texture": texture}


def sentence(rgb: np.ndarray) -> str:
    """The words of a picture as one sentence."""
    words = visual_words(rgb)
    light = ", ".join(words["light"])
    colours = words["colours"]
    listed = colours[0] if len(colours) == 1 else ", ".join(colours[:-1]) + " and " + colours[-1]
    start = "an" if light[:1] in tuple("aeiou") and light else "a"
    return f"{start} {light + ' ' if light else ''}picture in {listed} with {words['texture'][0]}"
