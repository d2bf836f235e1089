"""Videos whose cuts are known, made by joining single-shot clips: hard cuts, dissolves and fades through black.

The shots are the sample footage's (their limits were set by eye) and generated ones, mirrored, played backwards and
faster at random. Tuning and test sets share no shot, but they share films, and thresholds were also looked at on the
films as they are. The set "unseen" is of generated shots alone, of seeds on which nothing was ever chosen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import av
import numpy as np

from svdflow.common.video import encode_mp4
from svdflow.ingest.footage import make_scene

MEDIA = Path(__file__).resolve().parents[2] / ".cache" / "media"
HEIGHT, WIDTH, FPS = 180, 320, 24
PURE = 24  # frames of every shot that no transition touches
SHOTS = {
    "tuning": {
        "trailer_bbb.mp4": [(30, 215), (362, 592), (593, 745), (988, 1049), (1145, 1225)],
        "carphone_pristine.mp4": [(0, 120)],
        "bikes.mp4": [(30, 76), (76, 137)],
    },
    "test": {
        "trailer_bbb.mp4": [(266, 316), (795, 864), (905, 988), (1049, 1105)],
        "bikes.mp4": [(0, 30), (137, 187), (187, 242)],
        "bigbuckbunny.mp4": [(0, 132)],
    },
    "unseen": {},
}
_SETS = tuple(SHOTS)


@dataclass(frozen=True)
class Truth:
    """A transition: its own frames are ``first`` … ``last - 1``; a hard cut has none."""

    kind: str  # hard, dissolve or fade
    first: int
    last: int


def joined_videos(which: str, count: int, shots: int = 7) -> Iterator[tuple[bytes, list[Truth], int]]:
    """MP4s with their truths and numbers of frames; the n-th does not depend on how many there are."""
    for number in range(count):
        rng = np.random.default_rng([_SETS.index(which), number])
        frames, truths = _join(_shots(rng, which, shots), rng)
        yield encode_mp4(frames, FPS, crf=23), truths, len(frames)


@cache
def _library(which: str) -> list[np.ndarray]:
    return [shot for name, limits in SHOTS[which].items() for shot in _read(name, limits)]


def _read(name: str, limits: list[tuple[int, int]]) -> list[np.ndarray]:
    pictures = []
    with av.open(str(MEDIA / name)) as container:
        for frame in container.decode(video=0):
            scale = max(HEIGHT / frame.height, WIDTH / frame.width)
            size = max(WIDTH, round(frame.width * scale)), max(HEIGHT, round(frame.height * scale))
            whole = frame.reformat(*size, format="rgb24", interpolation="AREA").to_ndarray()
            top, left = (size[1] - HEIGHT) // 2, (size[0] - WIDTH) // 2
            pictures.append(whole[top : top + HEIGHT, left : left + WIDTH])
    return [np.stack(pictures[first:last]) for first, last in limits]


def _shots(rng: np.random.Generator, which: str, count: int) -> list[np.ndarray]:
    """Single shots; no two neighbours are of the same footage, where a join might be no cut to the eye."""
    library, chosen, before = _library(which), [], -1
    for _ in range(count):
        length, faster = int(rng.integers(48, 121)), int(rng.choice([1, 2, 3], p=[0.5, 0.3, 0.2]))
        if not library or rng.random() < 0.4:
            seed = [_SETS.index(which), int(rng.integers(10**6))]
            chosen.append(make_scene(seed, length, HEIGHT, WIDTH, FPS / faster).frames)
            before = -1
            continue
        before = int(rng.choice([n for n in range(len(library)) if n != before]))
        shot = library[before]
        shot = shot[::faster] if len(shot) // faster >= 48 else shot
        shot = shot[:, :, ::-1] if rng.random() < 0.5 else shot
        shot = shot[::-1] if rng.random() < 0.5 else shot
        start = rng.integers(max(1, len(shot) - length))
        chosen.append(shot[start : start + length])
    return chosen


def _join(shots: list[np.ndarray], rng: np.random.Generator) -> tuple[np.ndarray, list[Truth]]:
    parts, truths, length, tail = [], [], 0, shots[0]
    for following in shots[1:]:
        kind = str(rng.choice(["hard", "dissolve", "fade"], p=[0.4, 0.4, 0.2]))
        room = min(len(tail) - PURE, (len(following) - PURE) // 2)
        frames = min(int(rng.choice([8, 12, 24, 36, 48] if kind == "dissolve" else [6, 12, 24])), room)
        if kind == "hard" or frames < 6:
            parts.append(tail)
            length += len(tail)
            truths.append(Truth("hard", length, length))
            tail = following
            continue
        before, out, come = tail[:-frames], tail[-frames:].astype(np.float32), following[:frames].astype(np.float32)
        if kind == "dissolve":
            mix = np.linspace(0, 1, frames + 2)[1:-1, None, None, None]
            between = (1 - mix) * out + mix * come
        else:
            level = np.linspace(1, 0, frames + 1)[1:, None, None, None]
            between = np.concatenate([out * level, come * level[::-1]])
        parts += [before, (between + 0.5).astype(np.uint8)]
        length += len(before)
        truths.append(Truth(kind, length, length + len(between)))
        length += len(between)
        tail = following[frames:]
    return np.concatenate([*parts, tail]), truths
