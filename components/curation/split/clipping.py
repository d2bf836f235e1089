"""Clips by stream copy: which packets make a clip that decodes by itself, and the pass that copies them.

Nothing is encoded again: every frame of a clip is bit-identical with the source's. A clip begins at a key frame,
without the frames that are shown before it and lie behind it in the stream (open GOP: they need the GOP before). It
ends where all packets up to there, in stream order, make an unbroken run of frames in display order: then nothing
that a frame needs is missing.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import av

from ...common.video import open_video, video_stream
from .clip_writer import ClipWriter, Sound, Span
from .scan import SECOND_FIELD, Packets, Scan


@dataclass(frozen=True)
class Plan:
    """The clips of a video, and what became of the shots' other frames (counts of frames by reason, and of clips)."""

    spans: list[Span]
    lost_frames: dict[str, int]
    dropped: dict[str, int]


def plan_spans(
    packets: Packets,
    times_s: Sequence[float],
    shots: Sequence[tuple[int, int]],
    end: str,
    min_s: float,
    max_s: float,
    ends_s: Mapping[int, float] = MappingProxyType({}),
) -> Plan:
    """Which clips to cut out of the shots.

    Args:
        packets: of the whole video, in stream order.
        times_s: when each frame is shown, and as one more value when the last one ends.
        shots: first and last frame (inclusive) of each, in order.
        end: "key_frame": a clip ends before the last key frame of its shot (the paper); "cut": with the last whole
            frame.
        min_s: shorter clips are dropped.
        max_s: a shot goes on in another clip when one would be longer.
        ends_s: when frames end that do not end with the next one.
    """
    keys = [(shown, n) for n, (key, shown) in enumerate(zip(packets.keys, packets.shown, strict=True)) if key]
    keys = sorted((shown, number) for shown, number in keys if shown >= 0)
    shown_keys = [shown for shown, _ in keys]
    spans: list[Span] = []
    lost = {
        "before the first key frame": 0,
        "after the last key frame": 0,
        "open GOP or reordering": 0,
        "in a GOP longer than a clip may be": 0,
        "in clips too short": 0,
    }
    dropped = {"no key frame in the shot": 0, "GOP longer than a clip may be": 0, "too short": 0}
    for number, (start, stop) in enumerate(shots):
        at = start
        while at <= stop:
            nearest = bisect_left(shown_keys, at)
            if nearest == len(keys) or shown_keys[nearest] > stop:
                lost["before the first key frame"] += stop - at + 1
                dropped["no key frame in the shot"] += at == start
                break
            first, place = keys[nearest]
            lost["before the first key frame"] += first - at
            longest = bisect_right(times_s, times_s[first] + max_s + 1e-6) - 2
            limit = max(first, min(stop, longest))
            wanted = limit
            if end == "key_frame":
                wanted = shown_keys[bisect_right(shown_keys, limit + 1) - 1] - 1  # the cut itself may be one
                if wanted < first and limit < stop:  # no clip ends in so long a GOP; the next one may be shorter
                    behind = shown_keys[nearest + 1] if nearest + 1 < len(keys) else stop + 1
                    at = min(behind, stop + 1)
                    lost["in a GOP longer than a clip may be"] += at - first
                    dropped["GOP longer than a clip may be"] += 1
                    continue
                if wanted < first:
                    lost["after the last key frame"] += stop - first + 1
                    dropped["too short"] += 1
                    break
            last, behind = _whole_until(packets, place, first, wanted)
            reached = limit if limit < stop and end == "cut" else wanted if limit < stop else stop
            lost["after the last key frame"] += max(0, reached - wanted)
            lost["open GOP or reordering"] += max(0, min(wanted, reached) - last)
            if last > first and ends_s.get(last, times_s[last + 1]) - times_s[first] >= min_s - 1e-6:
                spans.append(Span(first, last, place, behind, number))
            else:
                lost["in clips too short"] += last - first + 1
                dropped["too short"] += 1
            at = reached + 1
    return Plan(spans, lost, dropped)


def _whole_until(packets: Packets, begin: int, first: int, wanted: int) -> tuple[int, int]:
    """The last frame up to ``wanted`` with which a clip can end, and the index after its last packet.

    A packet refers only to packets before it in the stream, so any run of packets from a key frame decodes; it makes a
    clip when the frames it holds are exactly ``first`` … ``last``.
    """
    best, behind, count, highest = first - 1, begin, 0, first - 1
    for number in range(begin, len(packets)):
        shown = packets.shown[number]
        if shown == SECOND_FIELD:  # stays with the packet before it
            behind += behind == number
            continue
        if 0 <= shown < first:
            continue  # a leading frame of an open GOP: left out
        if shown < 0 or shown > wanted:
            break
        count, highest = count + 1, max(highest, shown)
        if count == highest - first + 1:
            best, behind = highest, number + 1
    return best, behind


def cut_clips(
    path: Path, scan: Scan, spans: Sequence[Span], directory: Path, audio: bool = False
) -> Iterator[tuple[Span, Path]]:
    """The clips, one after the other, as files in ``directory``; one pass over the source, packet by packet.

    They are MP4 files, or others where MP4 cannot hold the codec (see ``clip_writer``): the suffix says which.

    Args:
        path: the source.
        scan: of the source.
        spans: what to cut, not overlapping.
        directory: the file of the clip that was yielded before is removed.
        audio: keep the first audio stream, as far as a clip's pictures last.

    Raises:
        BadInputError: none of the containers can hold the codec.
        StorageError: the clips cannot be written: that says nothing of the video.
    """
    waiting = sorted(spans, key=lambda span: span.begin, reverse=True)
    with open_video(path) as source, Sound(path if audio else None) as sound:
        stream = video_stream(source)
        writer: ClipWriter | None = None
        for number, packet in enumerate(video_packets(source)):
            if writer is None and waiting and number >= waiting[-1].begin:
                writer = ClipWriter(path, stream, scan, waiting.pop(), directory, sound)
            if writer is not None:
                writer.take(number, packet)
                if number + 1 >= writer.span.end:
                    yield writer.span, writer.close()
                    writer = None
            if writer is None and not waiting:
                return
        if writer is not None or waiting:
            left = writer.span if writer else waiting[-1]
            raise RuntimeError(f"reading breaks off before frame {left.last}, which had been read")


def video_packets(container: Any) -> Iterator[Any]:
    """The packets of the video stream in stream order; of a container that breaks off, those before the break."""
    try:
        for packet in container.demux(video_stream(container)):
            if packet.size:
                yield packet
    except av.error.FFmpegError:
        return
