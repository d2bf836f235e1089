"""Generated, captioned footage: textured scenes with moving objects and a moving camera, whose motion is known.

It is always labelled ``generated``. A scene is a function of its seed alone, so that the same footage is made anywhere.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..common.errors import ConfigError
from ..common.video import encode_mp4
from .settings import FootageSettings
from .textures import COLOURS, surface

VERSION = "1"
CAMERAS = {
    "static": "",
    "pan_left": "the camera pans left",
    "pan_right": "the camera pans right",
    "pan_up": "the camera tilts up",
    "pan_down": "the camera tilts down",
    "zoom_in": "the camera zooms in",
    "zoom_out": "the camera zooms out",
}
_PANS = {
    "pan_left": (1, 0),
    "pan_right": (-1, 0),
    "pan_up": (0, 1),
    "pan_down": (0, -1),
}  # of the picture: x right, y down
_ZOOM_RATE = 1.008
BACKGROUNDS = {
    "clouds": "cloudy sky",
    "stone": "stone wall",
    "checks": "checkered floor",
    "stripes": "striped curtain",
    "bricks": "brick wall",
    "planks": "wooden floor",
    "dots": "dotted wallpaper",
    "gradient": "plain backdrop",
    "ripples": "rippled pond",
}
SHAPES = {"disc": 48, "square": 4, "triangle": 3, "star": 10, "hexagon": 6, "cross": 12}  # corners
_MOVES = {
    "right": (1, 0, "moves to the right"),
    "left": (-1, 0, "moves to the left"),
    "up": (0, -1, "moves up"),
    "down": (0, 1, "moves down"),
    "fall": (0.8, 0.6, "drifts down to the right"),
    "rise": (-0.8, -0.6, "drifts up to the left"),
    "spin": (0, 0, "spins in place"),
    "rest": (0, 0, "rests"),
}
_WORDS = (
    "NORTHERN LIGHTS",
    "CHAPTER ONE",
    "THE LONG ROAD",
    "A FILM IN COLOUR",
    "DIRECTED BY NOBODY",
    "TWO DAYS LATER",
    "THE END",
    "PART THREE",
)
_SUBTITLES = (
    "all rights reserved",
    "any likeness is accidental",
    "based on a true story",
    "filmed in one afternoon",
    "with the kind help of many",
)


@dataclass(frozen=True)
class MovingObject:
    """One object of a scene and how it moves on the screen."""

    shape: str
    colour: str
    pattern: str
    radius_px: float
    move: str
    velocity_px: tuple[float, float]  # x to the right, y down, per frame
    spin_deg: float  # per frame


@dataclass(frozen=True)
class Scene:
    """A shot and the truth about it.

    Attributes:
        frames: uint8 RGB [F, H, W, 3].
        caption: what is to be seen, in plain words.
        camera: a key of CAMERAS.
        camera_px: motion of the background on the screen in px per frame, x to the right and y down.
        camera_zoom: growth of the background per frame, as a factor.
    """

    frames: np.ndarray
    caption: str
    camera: str
    camera_px: tuple[float, float]
    camera_zoom: float
    objects: list[MovingObject] = field(default_factory=list)

    def truth(self) -> dict[str, Any]:
        """Caption and motion without the pictures."""
        return {
            "description": self.caption,
            "frames": len(self.frames),
            "camera": self.camera,
            "camera_px": list(self.camera_px),
            "camera_zoom": self.camera_zoom,
            "objects": [asdict(o) for o in self.objects],
        }


def make_scene(
    seed: int | list[int],
    frames: int,
    height: int,
    width: int,
    fps: float = 12.0,
    camera: str | None = None,
    still: bool = False,
) -> Scene:
    """One shot: a textured background, one to three objects, a camera.

    Args:
        seed: names the scene; equal seeds and sizes give equal frames.
        frames: number of frames.
        height: px.
        width: px.
        fps: speeds are chosen per second, so that the same seed moves equally fast at any rate.
        camera: a key of CAMERAS; chosen by the seed when None.
        still: nothing moves at all.

    Raises:
        ConfigError: there is no such camera.
    """
    if camera is not None and camera not in CAMERAS:
        raise ConfigError(f"camera {camera!r} is none of {', '.join(CAMERAS)}")
    rng = np.random.default_rng(seed)
    chosen = list(CAMERAS)[rng.integers(len(CAMERAS))]
    camera = "static" if still else camera or chosen
    side, rate = min(height, width), 12.0 / fps
    pan = _PANS.get(camera, (0, 0))
    speed = rng.uniform(0.008, 0.02) * side * rate
    camera_px = (pan[0] * speed, pan[1] * speed)
    zoom = {"zoom_in": _ZOOM_RATE**rate, "zoom_out": _ZOOM_RATE**-rate}.get(camera, 1.0)
    kind, colour = list(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))], list(COLOURS)[rng.integers(len(COLOURS))]
    objects = _choose_objects(rng, colour, side, rate, still)
    backdrop = _Backdrop(kind, colour, frames, height, width, camera_px, zoom, rng)
    actors = [_Actor(o, frames, height, width, rng) for o in objects]
    pictures = np.empty((frames, height, width, 3), np.uint8)
    for index in range(frames):
        picture = backdrop.draw(index)
        for actor in actors:
            actor.draw(picture, index)
        pictures[index] = np.clip(picture + 0.5, 0, 255).astype(np.uint8)
    return Scene(pictures, _caption(objects, kind, colour, camera), camera, camera_px, zoom, objects)


def make_title_card(seed: int | list[int], frames: int, height: int, width: int) -> Scene:
    """A still card full of text, as films have them: what a text filter should drop."""
    rng = np.random.default_rng(seed)
    card = (
        surface("gradient", ("black", "blue", "purple", "brown")[rng.integers(4)], height, width, height / 4, rng) // 2
    )
    lines = [_WORDS[rng.integers(len(_WORDS))], *(_SUBTITLES[i] for i in rng.permutation(len(_SUBTITLES))[:3])]
    for row, line in enumerate(lines):
        thickness = 2 if row == 0 else 1
        (text_width, _), _ = cv2.getTextSize(line, cv2.FONT_HERSHEY_DUPLEX, 1.0, thickness)
        scale = width * (0.86 if row == 0 else 0.72) / text_width
        size = cv2.getTextSize(line, cv2.FONT_HERSHEY_DUPLEX, scale, thickness)[0]
        origin = ((width - size[0]) // 2, int(height * (0.3 + 0.2 * row)))
        cv2.putText(card, line, origin, cv2.FONT_HERSHEY_DUPLEX, scale, (240, 238, 225), thickness, cv2.LINE_AA)
    caption = f'a title card with the words "{lines[0].lower()}" and three lines of small text'
    return Scene(np.repeat(card[None], frames, axis=0), caption, "static", (0.0, 0.0), 1.0)


def join_shots(shots: list[np.ndarray], fade_frames: int = 0) -> tuple[np.ndarray, list[int]]:
    """Put shots after one another: hard cuts, or each one fades out to black and the next one in.

    Returns:
        Frames [F, H, W, 3], and the index of every shot's first frame but the first's.
    """
    parts = []
    for number, shot in enumerate(shots):
        level = np.ones(len(shot))
        if fade_frames and number:
            level[:fade_frames] = np.linspace(0, 1, fade_frames)
        if fade_frames and number < len(shots) - 1:
            level[-fade_frames:] = np.linspace(1, 0, fade_frames)
        parts.append((shot * level[:, None, None, None]).astype(np.uint8))
    return np.concatenate(parts), np.cumsum([len(shot) for shot in shots])[:-1].tolist()


def write_footage(directory: Path, count: int, seed: int, settings: FootageSettings) -> list[Path]:
    """Write ``count`` videos of one seed with a JSON sidecar each; files that are there already are left alone.

    Most hold one scene. In every twelve there are two of several shots (one with hard cuts, one with fades), one title
    card and one where nothing moves. The n-th video does not depend on how many there are.
    """
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        path = directory / f"scene_{number:04d}.mp4"
        paths.append(path)
        if path.exists() and path.with_suffix(".json").exists():
            continue
        video, truth = _video(number, [seed, number], settings)
        about = {"licence": "CC0-1.0", "source": "generated", "generator": f"svdflow footage {VERSION}"}
        sidecar = {**about, "fps": settings.fps, **truth}
        partial = path.with_suffix(".partial")
        partial.write_bytes(encode_mp4(video, settings.fps, gop=settings.gop))
        path.with_suffix(".json").write_text(json.dumps(sidecar, indent=1, sort_keys=True) + "\n")
        partial.replace(path)
    return paths


def _video(number: int, seed: list[int], settings: FootageSettings) -> tuple[np.ndarray, dict[str, Any]]:
    rng = np.random.default_rng([*seed, 1])
    height, width, fps = settings.height, settings.width, settings.fps
    frames = max(2, round(rng.uniform(settings.min_s, settings.max_s) * fps))
    role = number % 12
    if role == 5:
        scene = make_title_card(seed, frames, height, width)
    elif role == 7:
        scene = make_scene(seed, frames, height, width, fps, still=True)
    elif role in (3, 9):
        shots = [
            make_scene([*seed, 2 + i], frames - 3 * i, height, width, fps)
            for i in range(2 + (number // 12 + role // 9) % 2)
        ]
        fade = round(fps / 3) if role == 9 else 0
        joined, cuts = join_shots([shot.frames for shot in shots], fade)
        caption = ", then ".join(shot.caption for shot in shots)
        return joined, {
            "description": caption,
            "cuts": cuts,
            "fade_frames": fade,
            "shots": [shot.truth() for shot in shots],
        }
    else:
        scene = make_scene(seed, frames, height, width, fps)
    return scene.frames, {"cuts": [], **scene.truth()}


class _Backdrop:
    """The background, larger than the frame by what the camera will see, and the camera that moves over it."""

    def __init__(
        self,
        kind: str,
        colour: str,
        frames: int,
        height: int,
        width: int,
        motion: tuple[float, float],
        zoom: float,
        rng: np.random.Generator,
    ) -> None:
        spread = max(zoom ** (frames - 1), zoom ** (1 - frames))
        self.margin = int(max(abs(motion[0]), abs(motion[1])) * frames / 2 + max(height, width) * (spread - 1) / 2) + 4
        size = (height + 2 * self.margin, width + 2 * self.margin)
        self.picture = surface(
            kind, colour, *size, scale_px=min(height, width) * rng.uniform(0.12, 0.28), rng=rng
        ).astype(np.float32)
        self.frames, self.height, self.width, self.motion, self.zoom = frames, height, width, motion, zoom

    def draw(self, index: int) -> np.ndarray:
        """The background as seen in one frame, float32 [H, W, 3]."""
        age = index - (self.frames - 1) / 2
        scale = self.zoom**age
        middle = np.array([self.width / 2, self.height / 2])
        moved = middle + np.array(self.motion) * age - scale * (middle + self.margin)
        matrix = np.array([[scale, 0, moved[0]], [0, scale, moved[1]]])
        return cv2.warpAffine(
            self.picture, matrix, (self.width, self.height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
        )


class _Actor:
    """An object with its own surface on its way over the screen."""

    def __init__(self, what: MovingObject, frames: int, height: int, width: int, rng: np.random.Generator) -> None:
        self.what, self.frames, self.height, self.width = what, frames, height, width
        self.side = int(what.radius_px * 2.4) + 4
        self.skin = surface(
            what.pattern, what.colour, self.side, self.side, what.radius_px * rng.uniform(0.3, 0.7), rng
        ).astype(np.float32)
        path = np.array(what.velocity_px) * (frames - 1)
        room = np.maximum(np.array([width, height]) - np.abs(path) - 2 * what.radius_px, 0)
        self.middle = np.array([width, height]) / 2 + rng.uniform(-0.5, 0.5, 2) * room
        self.angle = rng.uniform(0, 360)

    def draw(self, picture: np.ndarray, index: int) -> None:
        """Paint it, and a soft shadow below it, into a float32 [H, W, 3] picture."""
        age = index - (self.frames - 1) / 2
        centre = self.middle + np.array(self.what.velocity_px) * age
        reach = self.what.radius_px * 1.6 + 8  # the shadow included
        left, top = np.maximum(np.floor(centre - reach), 0).astype(int)
        right, bottom = np.minimum(np.ceil(centre + reach), (self.width, self.height)).astype(int)
        if right <= left or bottom <= top:
            return
        spot, size = picture[top:bottom, left:right], (int(right - left), int(bottom - top))
        x, y = centre - (left, top)
        corners = _corners(self.what.shape, self.what.radius_px, self.angle + self.what.spin_deg * index) + (x, y)
        soft_px = max(self.what.radius_px * 0.08, 0.5)
        shadow = cv2.GaussianBlur(_mask(corners + self.what.radius_px * 0.12, size), (0, 0), soft_px)
        spot *= 1 - 0.4 * shadow[..., None]
        matrix = cv2.getRotationMatrix2D((self.side / 2, self.side / 2), -self.angle - self.what.spin_deg * index, 1.0)
        matrix[:, 2] += (x - self.side / 2, y - self.side / 2)
        skin = cv2.warpAffine(self.skin, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        spot += _mask(corners, size)[..., None] * (skin - spot)


def _mask(corners: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A filled polygon with smooth edges, 0 to 1 [height, width]; ``size`` is (width, height)."""
    mask = np.zeros(size[::-1], np.uint8)
    cv2.fillPoly(mask, [np.round(corners * 16).astype(np.int32)], 255, lineType=cv2.LINE_AA, shift=4)
    return mask.astype(np.float32) / 255


def _corners(shape: str, radius: float, angle_deg: float) -> np.ndarray:
    """Corner points [N, 2] (x, y) of a shape around the origin."""
    count = SHAPES[shape]
    angles = np.radians(angle_deg) + np.arange(count) * 2 * np.pi / count
    reach = np.full(count, radius)
    if shape == "star":
        reach[1::2] *= 0.45
    if shape == "cross":  # two bars: each arm has two outer corners, then an inner one
        arms = np.radians(angle_deg) + np.repeat(np.arange(4) * np.pi / 2, 3) + np.tile([-0.32, 0.32, np.pi / 4], 4)
        angles, reach = arms, np.tile([radius, radius, radius * 0.32 * np.sqrt(2) * np.cos(0.32)], 4)
    return np.stack([np.cos(angles) * reach, np.sin(angles) * reach], axis=1)


def _choose_objects(
    rng: np.random.Generator, backdrop_colour: str, side: int, rate: float, still: bool
) -> list[MovingObject]:
    colours = [c for c in COLOURS if c != backdrop_colour]
    names = rng.permutation(colours)
    moves = list(_MOVES)[:-1]
    objects = []
    for number in range(int(rng.choice([1, 2, 3], p=[0.5, 0.35, 0.15]))):
        move = "rest" if still else moves[rng.integers(len(moves))]
        speed = rng.uniform(0.008, 0.022) * side * rate
        spin = rng.choice([-1, 1]) * rng.uniform(4, 9) * rate
        shape = list(SHAPES)[
            rng.integers(1 if move == "spin" else 0, len(SHAPES))
        ]  # a disc that spins looks like one at rest
        pattern = ("gradient", "stripes", "dots", "stone", "checks")[rng.integers(5)]
        velocity = (_MOVES[move][0] * speed, _MOVES[move][1] * speed)
        radius = side * rng.uniform(0.1, 0.2)
        objects.append(
            MovingObject(shape, str(names[number]), pattern, radius, move, velocity, spin if move == "spin" else 0.0)
        )
    return objects


def _caption(objects: list[MovingObject], kind: str, colour: str, camera: str) -> str:
    skins = {"stripes": "striped ", "dots": "dotted ", "checks": "checkered "}
    phrases = [f"{_article(skins.get(o.pattern, '') + o.colour)} {o.shape} {_MOVES[o.move][2]}" for o in objects]
    listed = phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]
    view = f" while {CAMERAS[camera]}" if CAMERAS[camera] else ""
    return f"{listed} over {_article(colour)} {BACKGROUNDS[kind]}{view}"


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words
