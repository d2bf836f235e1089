"""Windows: which frames of a clip make a training sample, counted in frames or found by their time.

A clip's frames are laid out at one rate, its own or a whole fraction of it. A window takes every ``stride``-th of them
from ``first`` on, so that its rate is theirs divided by the stride.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .video import VideoFrame


@dataclass(frozen=True)
class Window:
    """``frames`` frames of a sequence: ``first``, ``first + stride``, and so on."""

    first: int
    stride: int
    frames: int

    @property
    def span(self) -> int:
        """Frames of the sequence from the first to the last one taken."""
        return (self.frames - 1) * self.stride + 1

    @property
    def indices(self) -> range:
        """The places of its frames in the sequence."""
        return range(self.first, self.first + self.span, self.stride)


def stride_for(rate: float, wanted: float) -> int:
    """The whole stride with which a sequence of ``rate`` frames a second comes nearest to the one wanted."""
    return max(1, round(rate / wanted))


def fitting_stride(available: int, frames: int, stride: int) -> int:
    """The largest stride up to ``stride`` at which so many frames fit; 1 when none does."""
    return max(1, min(stride, (available - 1) // (frames - 1))) if frames > 1 else 1


def spread(available: int, count: int | None) -> list[int]:
    """At most ``count`` places in a sequence at even distances, the first one among them; all of them for None."""
    count = available if count is None else min(count, available)
    return [i * available // count for i in range(count)]


def choose_window(available: int, starts: Sequence[int], frames: int, stride: int, place: float) -> Window:
    """A window that fits, by a number from 0 to 1.

    Args:
        available: frames of the sequence, at least ``frames``.
        starts: where windows may start, rising; the first one is 0.
        frames: of the window.
        stride: the one wanted; a smaller one is taken where it does not fit.
        place: 0 takes the first start that fits, numbers up to 1 the later ones, each with equal share.
    """
    stride = fitting_stride(available, frames, stride)
    last = available - Window(0, stride, frames).span
    fitting = [start for start in starts if start <= last]
    return Window(fitting[min(int(place * len(fitting)), len(fitting) - 1)], stride, frames)


def nearest_in_time(decoded: Iterable[VideoFrame], times_s: Iterable[float]) -> Iterator[np.ndarray]:
    """The frames nearest to rising times, as decoded, one at a time; it ends early when the clip does.

    One pass over the clip that holds two frames. A time may lie up to half a frame behind the last frame.
    """
    times = iter(times_s)
    wanted = next(times, None)
    before: VideoFrame | None = None
    gap_s = 0.0
    for frame in decoded:
        if wanted is None:
            return
        if before is not None:
            gap_s = frame.time_s - before.time_s
        while wanted is not None and wanted <= frame.time_s:
            earlier = before is not None and wanted - before.time_s < frame.time_s - wanted
            yield before.rgb if earlier and before is not None else frame.rgb
            wanted = next(times, None)
        before = frame
    while wanted is not None and before is not None and wanted <= before.time_s + 0.5 * gap_s:
        yield before.rgb
        wanted = next(times, None)
