"""Where one shot ends and the next begins: a cascade of PySceneDetect's detectors over one decode of the video."""

from __future__ import annotations

import math
import zlib
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np

from ...common.errors import BadInputError
from ...common.video import open_video
from .settings import CutLevel

_EVERY_FRAME_FPS = 1000.0  # stands for "every frame" where levels are put in order


@dataclass(frozen=True)
class Detection:
    """One detector's find: the change lies after frame ``first - 1`` and not after frame ``last``."""

    first: int
    last: int
    level: int
    fps: float | None
    threshold: float
    score: float


@dataclass(frozen=True)
class Transition:
    """Between two shots: one ends before frame ``first``, the next begins with frame ``last`` (equal at a hard cut)."""

    first: int
    last: int
    evidence: list[Detection] = field(default_factory=list)


@dataclass
class Decoded:
    """What one decode of a video leaves behind.

    Attributes:
        pts: of every frame, in display order, in the stream's time base.
        checksums: of every frame's pixels as the decoder gave them.
        detections: of all levels.
        fault: why decoding broke off, if it did.
    """

    pts: array = field(default_factory=lambda: array("q"))
    checksums: array = field(default_factory=lambda: array("L"))
    detections: list[Detection] = field(default_factory=list)
    fault: str | None = None


def decode_and_detect(path: Path, levels: Iterable[CutLevel], width_px: int) -> Decoded:
    """Decode a video once and run all detectors on it.

    A level with a frame rate looks at a frame whenever its period has passed, by the frames' own times, so that a
    variable frame rate does no harm.

    Raises:
        BadInputError: no frame decodes.
    """
    detectors = [_Level(number, level) for number, level in enumerate(levels)]
    decoded = Decoded()
    with open_video(path) as container:
        stream = container.streams.video[0]
        seconds = float(stream.time_base)
        size: tuple[int, int] | None = None
        try:
            for frame in container.decode(stream):
                if frame.pts is None or (decoded.pts and frame.pts <= decoded.pts[-1]):
                    decoded.fault = f"after frame {len(decoded.pts)} the times of its frames do not increase"
                    break
                index = len(decoded.pts)
                size = size or (frame.width, frame.height)
                if (frame.width, frame.height) != size:
                    decoded.fault = f"after frame {index} the picture has another size"
                    break
                decoded.pts.append(frame.pts)
                decoded.checksums.append(frame_checksum(frame))
                time_s = (frame.pts - decoded.pts[0]) * seconds
                due = [d for d in detectors if d.due(time_s)]
                if due:
                    height = max(2, round(frame.height * width_px / frame.width))
                    small = frame.reformat(
                        width=width_px, height=height, format="bgr24", interpolation="AREA"
                    ).to_ndarray()
                    for detector in due:
                        decoded.detections += detector.look(index, time_s, small)
        except av.error.FFmpegError as error:
            reason = str(error).splitlines()[0].replace(str(path), "the file")
            decoded.fault = f"decoding breaks off after frame {len(decoded.pts)} ({reason})"
    if not decoded.pts:
        raise BadInputError(f"{path}: {decoded.fault or 'no frame of it decodes'}")
    return decoded


def merge_detections(
    detections: Iterable[Detection], pts: array, time_base: float, levels: Iterable[CutLevel]
) -> list[Transition]:
    """The union of all levels' finds, merged when closer than one frame at the coarsest level.

    The rule is ours: the paper is silent. A find of a coarse level that spans a find of a finer one says nothing new
    and only adds evidence to it. Of merged finds the frames between the first and the last belong to no shot, so that a
    merger never lets a clip cross a cut.
    """
    rates = [level.fps for level in levels if level.fps]
    distance_s = 1 / min(rates) if rates else 0.0
    sharp: list[Transition] = []
    for found in sorted(detections, key=lambda d: (-(d.fps or _EVERY_FRAME_FPS), d.level, d.first)):
        explained = [t for t in sharp if t.first <= found.last and t.last >= found.first]
        for transition in explained:
            transition.evidence.append(found)
        if not explained:
            sharp.append(Transition(found.first, found.last, [found]))
    merged: list[Transition] = []
    for transition in sorted(sharp, key=lambda t: (t.first, t.last)):
        before = merged[-1] if merged else None
        if before and (pts[transition.first] - pts[before.last]) * time_base < distance_s:
            merged[-1] = Transition(
                before.first, max(before.last, transition.last), before.evidence + transition.evidence
            )
        else:
            merged.append(transition)
    return merged


def frame_checksum(frame: Any) -> int:
    """CRC-32 of a decoded frame's planes: tells whether two decodes gave the same picture."""
    checksum = zlib.crc32(f"{frame.format.name} {frame.width} {frame.height}".encode())
    planar = frame.format.is_planar
    pixel_bytes = (frame.format.components[0].bits if planar else frame.format.padded_bits_per_pixel) + 7 >> 3
    for plane in frame.planes:
        rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height]
        checksum = zlib.crc32(
            np.ascontiguousarray(rows[:, : plane.width * pixel_bytes]).data, checksum
        )  # past it: padding
    return checksum


class _Level:
    """One detector and the frames it has seen."""

    def __init__(self, number: int, level: CutLevel) -> None:
        from scenedetect.detectors import ContentDetector

        class ScoringDetector(ContentDetector):
            """ContentDetector that hands out the score of the last frame."""

            @property
            def score(self) -> float:
                return self._frame_score or 0.0

        self.number, self.level = number, level
        self.period_s = 1 / level.fps if level.fps else 0.0
        self.detector = ScoringDetector(threshold=level.threshold, min_scene_len=0)
        self.next_s, self.seen = 0.0, -1

    def due(self, time_s: float) -> bool:
        return time_s >= self.next_s - 1e-6

    def look(self, index: int, time_s: float, bgr: Any) -> list[Detection]:
        from scenedetect import FrameTimecode

        self.next_s = (math.floor(time_s / self.period_s + 1e-6) + 1) * self.period_s if self.period_s else 0.0
        found = self.detector.process_frame(FrameTimecode(index, _EVERY_FRAME_FPS), bgr)
        before, self.seen = self.seen, index
        if not found or before < 0:
            return []
        return [
            Detection(
                before + 1, index, self.number, self.level.fps, self.level.threshold, round(self.detector.score, 3)
            )
        ]
