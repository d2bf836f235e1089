"""H.264 coded field by field, as broadcasters do it and no encoder at hand: written bit by bit, pixels as they are."""

from __future__ import annotations

import io
import tempfile
from fractions import Fraction

import av

_WIDTH, _HEIGHT = 64, 64
_TICK = Fraction(1, 90_000)


class _Bits:
    def __init__(self) -> None:
        self.bits: list[str] = []

    def u(self, value: int, width: int) -> _Bits:
        self.bits.append(f"{value:0{width}b}" if width else "")
        return self

    def ue(self, *values: int) -> _Bits:
        """Exponential Golomb codes."""
        for value in values:
            code = f"{value + 1:b}"
            self.bits.append("0" * (len(code) - 1) + code)
        return self

    def aligned(self, data: bytes) -> _Bits:
        whole = "".join(self.bits)
        whole += "0" * (-len(whole) % 8)
        self.bits = [whole, "".join(f"{byte:08b}" for byte in data)]
        return self

    def nal(self, kind: int, ref: int = 3) -> bytes:
        whole = "".join(self.bits) + "1"
        whole += "0" * (-len(whole) % 8)
        raw = bytes(int(whole[at : at + 8], 2) for at in range(0, len(whole), 8))
        out, zeros = bytearray(), 0
        for byte in raw:  # no start code within
            if zeros >= 2 and byte <= 3:
                out.append(3)
                zeros = 0
            out.append(byte)
            zeros = zeros + 1 if byte == 0 else 0
        return b"\0\0\0\1" + bytes([ref << 5 | kind]) + bytes(out)


def _parameters() -> bytes:
    sps = _Bits().u(77, 8).u(0, 8).u(30, 8).ue(0, 0, 0, 4, 1).u(0, 1).ue(_WIDTH // 16 - 1, _HEIGHT // 32 - 1)
    sps.u(0, 1).u(0, 1).u(1, 1).u(0, 1).u(0, 1)  # fields are allowed, no adaption by macroblock, no cropping, no VUI
    pps = _Bits().ue(0, 0).u(0, 2).ue(0, 0, 0).u(0, 3).ue(0, 0, 0).u(0b100, 3)
    return sps.nal(7) + pps.nal(8)


def _field(luma: int, number: int, in_gop: int, bottom: bool) -> bytes:
    """One field, all of one brightness: the macroblocks as plain pixels."""
    idr = in_gop == 0 and not bottom
    bits = _Bits().ue(0, 7, 0).u(in_gop % 16, 4).u(1, 1).u(bottom, 1)
    if idr:
        bits.ue(number % 2)
    bits.u((2 * in_gop + bottom) % 256, 8)
    bits.u(0, 2 if idr else 1)
    bits.ue(0, 1)
    block = bytes([luma]) * 256 + bytes([128]) * 128
    for _ in range(_WIDTH // 16 * (_HEIGHT // 32)):
        bits.ue(25).aligned(block)
    return (_parameters() if idr else b"") + bits.nal(5 if idr else 1)


def field_coded(frames: int, gop: int = 10, container: str = "mpegts") -> bytes:
    """A video at 25 frames a second whose brightness grows frame by frame, a packet a field."""
    fields = [
        _field(40 + 3 * (n % 50) + int(bottom), n // gop, n % gop, bottom)
        for n in range(frames)
        for bottom in (False, True)
    ]
    buffer = io.BytesIO()
    with tempfile.NamedTemporaryFile(suffix=".h264") as raw:
        raw.write(b"".join(fields[: 2 * gop]))
        raw.flush()
        with av.open(raw.name) as source, av.open(buffer, "w", format=container) as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for number, data in enumerate(fields):
                packet = av.Packet(data)
                packet.stream, packet.time_base = stream, _TICK
                packet.pts = packet.dts = number * 1800 + 9000
                packet.is_keyframe = number % (2 * gop) == 0
                target.mux(packet)
    return buffer.getvalue()
