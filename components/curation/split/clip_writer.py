"""The file of one clip: packets in stream order with times from zero, in a container that can hold their codec."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av

from ...common.errors import BadInputError
from ...common.files import is_storage_fault, storage_error
from ...common.video import codec_name, open_video
from .scan import SECOND_FIELD, Scan

# in the order in which they are tried, with the suffix: MP4 knows no ProRes, QuickTime no VP8, Matroska no WMV
_CONTAINERS = (("mp4", ".mp4"), ("mov", ".mov"), ("matroska", ".mkv"), ("nut", ".nut"))


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


class ClipWriter:
    """A clip of packets in stream order, with times from zero. Decoding times are made anew from the order alone.

    Args:
        source: names the source in messages.
        stream: of the source; its packets are given to ``take``.
        scan: of the source.
        span: the clip.
        directory: takes the file; that of the clip before is overwritten or removed.
        sound: of the source, or none.

    Raises:
        BadInputError: none of the containers can hold the codec.
        StorageError: the clip cannot be written: that says nothing of the video.
    """

    def __init__(self, source: Path, stream: Any, scan: Scan, span: Span, directory: Path, sound: Sound) -> None:
        self.source, self.span, self.scan = source, span, scan
        shown = (scan.packets.shown[n] for n in range(span.begin, span.end))
        order = [scan.pts[n] for n in shown if n >= span.first]
        self.early = sorted(order)
        self.start = self.early[0]
        self.delay = max(early - pts for early, pts in zip(self.early, order, strict=True))
        self.written = 0
        self.waiting: Any = None  # the packet to be written next: its second field may follow
        self.codec = codec_name(stream)
        self.seconds = float(stream.time_base)
        first: BaseException | None = None
        for container, suffix in _CONTAINERS:
            self.path = directory / f"clip{suffix}"
            try:
                self._open(container, stream, sound)
                break
            except (av.error.FFmpegError, ValueError) as error:
                self.path.unlink(missing_ok=True)
                refused = self._refused(error)
                if not isinstance(refused, BadInputError):
                    raise refused from error
                first = first or refused
        else:
            assert first is not None
            raise first
        length_s = scan.end_s(span.last) - scan.times_s[span.first]
        self.sound = sound.of_clip(self.voice, self.start * self.seconds, length_s)

    def _open(self, container: str, stream: Any, sound: Sound) -> None:
        """Write the header, which says whether a container can hold the streams."""
        self.target = av.open(str(self.path), "w", format=container, options={"fflags": "+bitexact"})
        try:
            # of a codec that is read by a library that only reads (AV1 by dav1d), there is no encoder of that name
            self.copy = self.target.add_stream_from_template(stream, opaque=not _is_encoder(stream.codec_context.name))
            self.copy.time_base = stream.time_base
            if stream.sample_aspect_ratio:  # the container alone may tell it
                self.copy.codec_context.sample_aspect_ratio = stream.sample_aspect_ratio
            self.voice = self.target.add_stream_from_template(sound.stream) if sound.stream is not None else None
            self.target.start_encoding()
        except BaseException:
            self.target.close()
            raise

    def take(self, number: int, packet: Any) -> None:
        """The next packet of the source, with its place in stream order."""
        shown = self.scan.packets.shown[number]
        if shown == SECOND_FIELD:  # one sample of a container holds both
            self.waiting = _joined(self.waiting, packet) if self.waiting else None
            return
        self._flush()
        if shown < self.span.first:  # a leading frame of an open GOP
            return
        packet.pts = self.scan.pts[shown] - self.start
        packet.dts = self.early[self.written] - self.start - self.delay
        self.written += 1
        self.waiting = packet

    def _flush(self) -> None:
        packet, self.waiting = self.waiting, None
        if packet is None:
            return
        packet.stream = self.copy
        try:
            self._write_sound(packet.dts * self.seconds)
            self.target.mux(packet)
        except (av.error.FFmpegError, ValueError) as error:
            raise self._refused(error) from error

    def close(self) -> Path:
        """Write what is left; returns the file."""
        self._flush()
        try:
            self._write_sound(float("inf"))
            self.target.close()
        except (av.error.FFmpegError, ValueError) as error:
            raise self._refused(error) from error
        return self.path

    def _write_sound(self, until_s: float) -> None:
        while self.sound and float(self.sound[0].pts * self.sound[0].time_base) <= until_s:
            self.target.mux(self.sound.pop(0))

    def _refused(self, error: BaseException) -> BaseException:
        """What to raise: a verdict on the stream, unless the machine is at fault."""
        if is_storage_fault(error):
            return storage_error(self.path, OSError(getattr(error, "errno", 0), getattr(error, "strerror", "")))
        if isinstance(error, (OSError, MemoryError)):
            return error
        return BadInputError(
            f"{self.source}: no container of clips can hold its stream ({self.codec}: {str(error).splitlines()[0]})"
        )


def _is_encoder(name: str) -> bool:
    try:
        av.Codec(name, "w")
    except av.codec.codec.UnknownCodecError:
        return False
    return True


def _joined(first: Any, second: Any) -> Any:
    """The packet of a frame out of those of its two fields."""
    packet = av.Packet(bytes(first) + bytes(second))
    packet.pts, packet.dts, packet.time_base = first.pts, first.dts, first.time_base
    packet.duration, packet.is_keyframe = first.duration + second.duration, first.is_keyframe
    return packet


class Sound:
    """The first audio stream of a source, read alongside the pictures: a second reader that keeps pace with the clips.

    None to have no sound. A source without an audio stream has none either.
    """

    def __init__(self, path: Path | None) -> None:
        self.container = open_video(path) if path is not None else None
        streams = self.container.streams.audio if self.container else []
        self.stream = streams[0] if streams else None
        self.packets = iter(self.container.demux(self.stream)) if self.container and self.stream else iter(())
        self.held: Any = None

    def __enter__(self) -> Sound:
        return self

    def __exit__(self, *_: object) -> None:
        if self.container:
            self.container.close()

    def of_clip(self, copy: Any, start_s: float, length_s: float) -> list[Any]:
        """The packets that begin within a clip, their times moved to the clip's, ready to be written to its stream."""
        if self.stream is None:
            return []
        start = round(start_s / self.stream.time_base)
        kept = []
        while (packet := self._next()) is not None:
            at_s = float(packet.pts * packet.time_base) - start_s
            if at_s >= length_s:
                self.held = packet
                break
            if at_s >= 0:
                packet.pts = packet.dts = packet.pts - start
                packet.stream = copy
                kept.append(packet)
        return kept

    def _next(self) -> Any:
        packet, self.held = self.held, None
        try:
            while packet is None or not packet.size or packet.pts is None:
                packet = next(self.packets)
        except (StopIteration, av.error.FFmpegError):
            return None
        return packet
