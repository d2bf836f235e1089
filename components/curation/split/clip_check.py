"""Whether a clip is what it is said to be: its frames are the source's, bit for bit."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av

from ...common.video import open_video
from .clipping import Span, video_packets
from .scan import Scan, frame_checksum

_TICK_S = 2e-3  # MP4 may count time in another unit than the source


def is_the_source(clip: Path, scan: Scan, span: Span, how: str) -> bool:
    """Check a clip against its source.

    Args:
        clip: its file.
        scan: of the source, with the checksums that ``how`` needs.
        span: what the clip holds.
        how: "packets": by its packets, where these tell (see ``refresh``), else as "ends"; "ends": its first and its
            last GOP are decoded, the only ones that lost their neighbours; "every_frame": all of it is.
    """
    if how == "packets" and scan.packets.refreshes[span.begin]:
        return same_packets(clip, scan, span)
    return same_frames(clip, scan, span, how == "every_frame")


def same_packets(clip: Path, scan: Scan, span: Span) -> bool:
    """Whether a clip holds the source's packets, byte for byte and in time, and the source's parameter sets."""
    numbers = _numbers(scan, span)
    with open_video(clip) as container:
        if bytes(container.streams.video[0].codec_context.extradata or b"") != scan.packets.extradata:
            return False
        packets = [(zlib.crc32(p), float(p.pts * p.time_base)) for p in video_packets(container) if p.pts is not None]
    if len(packets) != len(numbers):
        return False
    for (checksum, time_s), number in zip(packets, numbers, strict=True):
        shown_s = scan.times_s[scan.packets.shown[number]] - scan.times_s[span.first]
        if checksum != scan.packets.checksums[number] or abs(time_s - shown_s) > _TICK_S:
            return False
    return True


def same_frames(clip: Path, scan: Scan, span: Span, every_frame: bool) -> bool:
    """Whether a clip decodes to the source's frames, bit for bit.

    Args:
        clip: its file.
        scan: of the source, with the frames' checksums.
        span: what the clip holds.
        every_frame: decode all of it; else its first and its last GOP.
    """
    numbers = _numbers(scan, span)
    shown = [scan.packets.shown[n] for n in numbers]
    key_places = [place for place, n in enumerate(numbers) if scan.packets.keys[n]]
    if every_frame or len(key_places) < 3:
        parts = [(0, len(numbers))]
    else:
        parts = [(0, key_places[1]), (key_places[-1], len(numbers))]
    with open_video(clip) as container:
        stream = container.streams.video[0]
        stream.codec_context.flags |= av.codec.context.Flags.copy_opaque
        packets = [packet for packet in video_packets(container)]
        if len(packets) != len(numbers) or packets[0].pts != 0:
            return False
        for begin, end in parts:
            # frames shown before the key frame that a part begins with need the GOP before it
            wanted = {shown[n]: scan.checksums[shown[n]] for n in range(begin, end) if shown[n] >= shown[begin]}
            for packet, frame_index in zip(packets[begin:end], shown[begin:end], strict=True):
                packet.opaque = frame_index
            if not _decodes_to(stream.codec_context, packets[begin:end], wanted):
                return False
    return True


def _numbers(scan: Scan, span: Span) -> list[int]:
    """The source's packets that a clip holds."""
    return [n for n in range(span.begin, span.end) if scan.packets.shown[n] >= span.first]


def _decodes_to(decoder: Any, packets: Sequence[Any], wanted: dict[int, int]) -> bool:
    """Whether exactly the wanted frames (display index to checksum) come out of packets, and others only before."""
    decoder.flush_buffers()
    try:
        for packet in (*packets, None):
            for frame in decoder.decode(packet):
                if frame.opaque in wanted and wanted.pop(frame.opaque) != frame_checksum(frame):
                    return False
    except av.error.FFmpegError:
        return False
    return not wanted
