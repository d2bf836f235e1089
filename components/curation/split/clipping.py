"""Clips by stream copy: which packets make a clip that decodes by itself, and the MP4 that holds them.

Nothing is encoded again: every frame of a clip is bit-identical with the source's. A clip begins at a key frame,
without the frames that are shown before it and lie behind it in the stream (open GOP: they need the GOP before). It
ends where all packets up to there, in stream order, make an unbroken run of frames in display order: then nothing
that a frame needs is missing.
"""

from __future__ import annotations

import io
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from ...common.errors import BadInputError
from ...common.video import open_video
from .cuts import frame_checksum


@dataclass(frozen=True)
class Packet:
    """A packet of the video stream: what it takes to plan, without its bytes."""

    pts: int
    duration: int
    key: bool
    shown: int  # index of its frame in display order; -1 when no frame of that time comes out of the decoder


@dataclass(frozen=True)
class Span:
    """A clip to be cut.

    Attributes:
        first: its first frame, display index in the source; a key frame.
        last: its last frame, inclusive.
        begin: index of its first packet in stream order.
        end: index after its last packet.
        shot: which shot it is of.
    """

    first: int
    last: int
    begin: int
    end: int
    shot: int


@dataclass(frozen=True)
class Plan:
    """The clips of a video, and what became of the shots' other frames (counts of frames by reason, and of clips)."""

    spans: list[Span]
    lost_frames: dict[str, int]
    dropped: dict[str, int]


def read_packets(path: Path, shown_pts: Sequence[int]) -> list[Packet]:
    """The packets of a video in stream order, with the display index of the frame that each one holds."""
    index_of = {pts: index for index, pts in enumerate(shown_pts)}
    packets = []
    with open_video(path) as container:
        for packet in _video_packets(container):
            hidden = packet.pts is None or packet.is_discard
            shown = -1 if hidden else index_of.get(packet.pts, -1)
            packets.append(Packet(packet.pts or 0, packet.duration or 0, packet.is_keyframe, shown))
    return packets


def plan_spans(
    packets: Sequence[Packet],
    times_s: Sequence[float],
    shots: Sequence[tuple[int, int]],
    end: str,
    min_s: float,
    max_s: float,
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
    """
    keys = [(packet.shown, number) for number, packet in enumerate(packets) if packet.key and packet.shown >= 0]
    keys.sort()
    shown_keys = [shown for shown, _ in keys]
    spans: list[Span] = []
    lost = {
        "before the first key frame": 0,
        "after the last key frame": 0,
        "open GOP or reordering": 0,
        "in clips too short": 0,
    }
    dropped = {"no key frame in the shot": 0, "too short": 0}
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
                if wanted < first:
                    lost["after the last key frame"] += stop - first + 1
                    dropped["too short"] += 1
                    break
            last, behind = _whole_until(packets, place, first, wanted)
            reached = limit if limit < stop and end == "cut" else wanted if limit < stop else stop
            lost["after the last key frame"] += max(0, reached - wanted)
            lost["open GOP or reordering"] += max(0, min(wanted, reached) - last)
            if last > first and times_s[last + 1] - times_s[first] >= min_s - 1e-6:
                spans.append(Span(first, last, place, behind, number))
            else:
                lost["in clips too short"] += last - first + 1
                dropped["too short"] += 1
            at = reached + 1
    return Plan(spans, lost, dropped)


def _whole_until(packets: Sequence[Packet], begin: int, first: int, wanted: int) -> tuple[int, int]:
    """The last frame up to ``wanted`` with which a clip can end, and the index after its last packet.

    A packet refers only to packets before it in the stream, so any run of packets from a key frame decodes; it makes a
    clip when the frames it holds are exactly ``first`` … ``last``.
    """
    best, behind, count, highest = first - 1, begin, 0, first - 1
    for number in range(begin, len(packets)):
        packet = packets[number]
        if 0 <= packet.shown < first:
            continue  # a leading frame of an open GOP: left out
        if packet.shown < 0 or packet.shown > wanted:
            break
        count, highest = count + 1, max(highest, packet.shown)
        if count == highest - first + 1:
            best, behind = highest, number + 1
    return best, behind


def cut_clips(path: Path, packets: Sequence[Packet], spans: Sequence[Span]) -> Iterator[tuple[Span, bytes]]:
    """The clips, one after the other, as MP4 files; one pass over the source.

    Raises:
        BadInputError: MP4 cannot hold the codec.
    """
    waiting = sorted(spans, key=lambda span: span.begin)
    kept: list[Any] = []
    with open_video(path) as source:
        stream = source.streams.video[0]
        number = -1
        for packet in _video_packets(source):
            number += 1
            while waiting and number >= waiting[0].end:
                yield waiting[0], _write_mp4(path, stream, kept)
                waiting, kept = waiting[1:], []
            if not waiting:
                return
            span = waiting[0]
            if number >= span.begin and span.first <= packets[number].shown <= span.last:
                kept.append(packet)
        if waiting:
            yield waiting[0], _write_mp4(path, stream, kept)


def _write_mp4(path: Path, stream: Any, packets: list[Any]) -> bytes:
    """An MP4 of packets in stream order, with times from zero. Decoding times are made anew from the order alone."""
    pts = [packet.pts for packet in packets]
    in_order = sorted(pts)
    delay = max(early - shown for early, shown in zip(in_order, pts, strict=True))
    buffer = io.BytesIO()
    try:
        with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as target:
            copy = target.add_stream_from_template(stream)
            copy.time_base = stream.time_base
            for packet, early in zip(packets, in_order, strict=True):
                packet.pts -= in_order[0]
                packet.dts = early - in_order[0] - delay
                packet.stream = copy
                target.mux(packet)
    except (av.error.FFmpegError, ValueError) as error:
        raise BadInputError(
            f"{path}: MP4 cannot hold its stream ({stream.codec_context.name}: {str(error).splitlines()[0]})"
        ) from error
    return buffer.getvalue()


def decoded_checksums(clip: bytes) -> tuple[list[int], list[float]]:
    """Checksums and times in s of a clip's frames; short when decoding breaks off."""
    checksums, times = [], []
    with open_video(clip) as container:
        try:
            for frame in container.decode(container.streams.video[0]):
                checksums.append(frame_checksum(frame))
                times.append(float(frame.time if frame.time is not None else Fraction(-1)))
        except av.error.FFmpegError:
            pass
    return checksums, times


def _video_packets(container: Any) -> Iterator[Any]:
    """The packets of the video stream in stream order; of a container that breaks off, those before the break."""
    try:
        for packet in container.demux(container.streams.video[0]):
            if packet.size:
                yield packet
    except av.error.FFmpegError:
        return
