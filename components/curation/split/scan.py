"""One pass over a video: every packet noted, every frame decoded once, shown to the cut finder and checksummed.

What does not decode is passed over, not the end of the video: frames from a damaged packet to the next key frame belong
to no shot, and what follows is used.
"""

from __future__ import annotations

import zlib
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np

from ...common.errors import BadInputError
from ...common.video import open_video, video_stream
from .cuts import CutFinder, Detection
from .refresh import RefreshPoints

Checksums = Literal["frames", "packets", "off"]
_NO_FRAME = -1
SECOND_FIELD = -2


@dataclass
class Packets:
    """The packets of the video stream in stream order.

    Attributes:
        keys: whether each is a key frame.
        shown: display index of the frame that it shows; -1 when none comes of it (hidden by an edit list, damaged),
            SECOND_FIELD when it is the other half of the frame that the packet before it shows (H.264 coded field by
            field).
        refreshes: whether it is known to begin a stretch that decodes by itself, see ``refresh``.
        checksums: of its bytes.
        extradata: the parameter sets that the stream begins with.
    """

    keys: array = field(default_factory=lambda: array("b"))
    shown: array = field(default_factory=lambda: array("q"))
    refreshes: array = field(default_factory=lambda: array("b"))
    checksums: array = field(default_factory=lambda: array("L"))
    extradata: bytes = b""

    def __len__(self) -> int:
        return len(self.keys)


@dataclass
class Scan:
    """What one pass over a video leaves behind: some 40 bytes a frame.

    Attributes:
        pts: of every frame in display order, in the stream's time base.
        times_s: when each frame is shown, from zero, and as one more value when the last one ends. Ascending, also
            where the video's own times jump back.
        ends_s: when a frame ends that damage follows: not with the next one that decodes, which may be long after.
        checksums: of every frame's pixels as the decoder gave them; 0 where none was asked for.
        packets: in stream order.
        detections: the cut finder's, and "damage" and "timestamps" where a shot must end whatever the picture.
        gap_s: the cut finder's.
        fault: what is wrong with the video, if anything is.
    """

    pts: array = field(default_factory=lambda: array("q"))
    times_s: array = field(default_factory=lambda: array("d"))
    ends_s: dict[int, float] = field(default_factory=dict)
    checksums: array = field(default_factory=lambda: array("L"))
    packets: Packets = field(default_factory=Packets)
    detections: list[Detection] = field(default_factory=list)
    gap_s: float = 0.0
    fault: str | None = None

    def end_s(self, frame: int) -> float:
        """When a frame is no longer shown."""
        return self.ends_s.get(frame, self.times_s[frame + 1])


def scan_video(path: Path, finder: CutFinder, fps: float, checksums: Checksums = "frames") -> Scan:
    """Decode a video once.

    Args:
        path: the video.
        finder: is shown every frame.
        fps: to assume for frames without a time.
        checksums: "frames": of all; "packets": of all packets, and of the frames from where packets do not tell which
            frames they decode to; "off": of none.

    Raises:
        BadInputError: no frame decodes.
    """
    scan = Scan(gap_s=finder.gap_s)
    with open_video(path) as container:
        stream = video_stream(container)
        decoder = stream.codec_context
        decoder.flags |= av.codec.context.Flags.copy_opaque  # frames then say which packet they came out of
        decoder.options = {"err_detect": "explode"}  # a picture that was mended is no frame of the source
        untimed = container.format.name == "avi"  # it tells when a frame is decoded, and not when it is shown
        reader = _Reader(scan, finder, float(stream.time_base), fps, checksums, decoder, untimed)
        try:
            for packet in container.demux(stream):
                reader.take(packet)
        except av.error.FFmpegError as error:
            reader.note_fault(f"reading breaks off after frame {len(scan.pts)} ({_reason(error, path)})")
    if not scan.pts:
        raise BadInputError(f"{path}: {scan.fault or 'no frame of it decodes'}")
    reader.finish()
    return scan


class _Reader:
    """Takes packets in and fills a Scan."""

    def __init__(
        self,
        scan: Scan,
        finder: CutFinder,
        seconds: float,
        fps: float,
        checksums: Checksums,
        context: Any,
        untimed: bool = False,
    ) -> None:
        self.scan, self.finder, self.seconds = scan, finder, seconds
        self.refresh = RefreshPoints(context) if checksums == "packets" else None
        self.checksum_frames = checksums == "frames"
        if self.refresh:
            self.checksum_frames = not self.refresh.known
            scan.packets.extradata = self.refresh.extradata
        self.frame_pts = max(1, round(1 / fps / seconds))  # how long a frame is shown when nothing says so
        self.shown_pts = self.frame_pts  # how long the last one is
        self.size: tuple[int, int] | None = None
        self.packet_pts = array("q")
        self.damaged: set[int] = set()
        self.awaited: dict[int, int] = {}  # the frame that was to be shown next when a damaged packet came
        self.later = array("b")  # whether a packet may be the second field of the one before
        self.interlaced = False  # any frame
        self.untimed = untimed

    def take(self, packet: Any) -> None:
        number = len(self.scan.packets)
        if packet.size:
            hidden = packet.pts is None and packet.dts is None
            key = bool(packet.is_keyframe and not packet.is_discard and not hidden)
            refreshes = self.refresh is not None and self.refresh.take(packet)
            if self.refresh and key and not refreshes:
                self.checksum_frames = True  # from here on: a clip that begins here is told by its frames
            self.scan.packets.keys.append(key)
            self.scan.packets.refreshes.append(refreshes)
            self.scan.packets.checksums.append(zlib.crc32(packet) if self.refresh else 0)
            self.scan.packets.shown.append(_NO_FRAME)
            self.packet_pts.append(packet.pts if packet.pts is not None else packet.dts or 0)
            follows = packet.pts is None or (number > 0 and self.packet_pts[-1] > self.packet_pts[-2])
            self.later.append(bool(follows and not packet.is_discard and not hidden))
            packet.opaque = number
            if packet.is_corrupt:
                self.damaged.add(number)
                self.awaited[number] = len(self.scan.pts)
        try:
            for frame in packet.decode():  # the last packet of all is empty: it flushes the decoder
                self.show(frame)
        except av.error.FFmpegError as error:
            if packet.size:
                self.damaged.add(number)
                self.awaited[number] = len(self.scan.pts)
            self.note_fault(f"damaged near frame {len(self.scan.pts)} ({_reason(error)})")

    def show(self, frame: Any) -> None:
        scan, index, origin = self.scan, len(self.scan.pts), frame.opaque
        if isinstance(origin, int) and scan.packets.shown[origin] == _NO_FRAME:
            scan.packets.shown[origin] = index
        else:
            origin = len(scan.packets) - 1  # for damage; the packet that shows this frame is not known
        self.interlaced = self.interlaced or bool(frame.interlaced_frame)
        if self.refresh and frame.interlaced_frame:
            self.checksum_frames = True  # where its fields are coded one by one, packets are no frames
        self.size = self.size or (frame.width, frame.height)
        if (frame.width, frame.height) != self.size:
            self.damaged.add(origin)
            self.note_fault(f"from frame {index} on the picture has another size")
        if frame.is_corrupt:
            self.damaged.add(origin)
            self.note_fault(f"frame {index} is damaged")
        told = frame.dts if self.untimed else frame.pts
        pts = told if told is not None else (scan.pts[-1] + self.shown_pts if scan.pts else 0)
        step = pts - scan.pts[-1] if scan.pts else 0
        if scan.pts and step <= 0:
            scan.detections.append(Detection("timestamps", index, index))
            self.note_fault(f"at frame {index} its times jump back")
            step = self.shown_pts
        scan.times_s.append(scan.times_s[-1] + step * self.seconds if scan.pts else 0.0)
        self.shown_pts = frame.duration or self.frame_pts
        scan.pts.append(pts)
        scan.checksums.append(frame_checksum(frame) if self.checksum_frames else 0)
        scan.detections += self.finder.look(index, scan.times_s[-1], frame)

    def finish(self) -> None:
        self.scan.detections += self.finder.finish()
        if self.interlaced:
            self.pair_fields()
        self.scan.times_s.append(self.scan.times_s[-1] + self.shown_pts * self.seconds)
        self.scan.detections += self.damage()

    def pair_fields(self) -> None:
        """Mark the packets that give no frame of their own because they complete the one before."""
        shown = self.scan.packets.shown
        for number in range(1, len(shown)):
            if shown[number] == _NO_FRAME and shown[number - 1] >= 0 and self.later[number]:
                if not self.damaged & {number - 1, number}:
                    shown[number] = SECOND_FIELD
        if shown[-1] == SECOND_FIELD:
            self.shown_pts *= 2

    def damage(self) -> list[Detection]:
        """The frames that are not to be trusted: from each damaged packet to the next key frame that decodes.

        Those that were still to be shown when it came are among them, though their packets came before: its own picture
        may be missing between them, and so may the next one, which a decoder that fails forgets to give.
        """
        packets, finds = self.scan.packets, []
        done, last_key = -1, 0
        for number, key in enumerate(packets.keys):
            if number in self.damaged and number >= done:
                shown: list[int] = []
                leading = number > last_key and self.packet_pts[number] < self.packet_pts[last_key]
                done = number
                while done < len(packets) and not self._starts_anew(done, number, last_key if leading else None):
                    shown += [packets.shown[done]] if packets.shown[done] >= 0 else []
                    done += 1
                if leading:  # pictures shown before their key frame: nothing but one another refers to them
                    end = packets.shown[last_key]
                else:
                    end = packets.shown[done] if done < len(packets) else len(self.scan.pts)
                first = min([*shown, end, self.awaited.get(number, end)])
                finds.append(Detection("damage", first, end))
                if first:
                    nominal_s = self.scan.times_s[first - 1] + self.frame_pts * self.seconds
                    self.scan.ends_s[first - 1] = min(self.scan.times_s[first], nominal_s)
            if key and packets.shown[number] >= 0:
                last_key = number
        return finds

    def _starts_anew(self, number: int, damaged: int, key: int | None) -> bool:
        if key is not None:
            return self.packet_pts[number] > self.packet_pts[key]
        good = self.scan.packets.keys[number] and self.scan.packets.shown[number] >= 0
        return bool(number > damaged and good and number not in self.damaged)

    def note_fault(self, fault: str) -> None:
        self.scan.fault = self.scan.fault or fault


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


def _reason(error: BaseException, path: Path | None = None) -> str:
    told = getattr(error, "strerror", None) or str(error) or type(error).__name__
    line = told.splitlines()[0]
    return line.replace(str(path), "the file") if path else line
