"""Which packets begin a stretch that decodes by itself, told from the packets' bytes alone.

H.264 and HEVC mark the pictures before which nothing is referred to (instantaneous decoding refresh). From such a
packet on, the same packets with the same parameter sets decode to the same pictures, whatever came before: the
standards define the decoder to the bit. FFmpeg's key frame flag says less: open GOPs begin with key frames too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_REFRESH = {"h264": {5}, "hevc": {19, 20}}  # coded slices of an IDR picture
_PARAMETER_SETS = {"h264": {7, 8, 13, 15}, "hevc": {32, 33, 34}}
_UNUSUAL = {"h264": {2, 3, 4}, "hevc": set()}  # data partitioning


class RefreshPoints:
    """Looks at a stream's packets in order.

    Attributes:
        extradata: the parameter sets that the stream begins with.
        known: whether packets still tell. Not with another codec, nor with start codes in place of lengths (MP4 has
            them rewritten), nor once parameter sets come within the stream: a clip from behind them would lack them.
    """

    def __init__(self, context: Any) -> None:
        self.codec: str = context.codec.name
        self.extradata = bytes(context.extradata or b"")
        self.known = self.codec in _REFRESH and len(self.extradata) > 22 and self.extradata[0] == 1
        self._length_bytes = (self.extradata[4 if self.codec == "h264" else 21] & 3) + 1 if self.known else 0

    def take(self, packet: Any) -> bool:
        """Whether the next packet is known to begin a stretch that decodes by itself."""
        if not self.known:
            return False
        kinds = set(self._unit_kinds(memoryview(packet)))
        if packet.has_sidedata("new_extradata") or kinds & (_PARAMETER_SETS[self.codec] | _UNUSUAL[self.codec]):
            self.known = False
        return self.known and bool(kinds & _REFRESH[self.codec])

    def _unit_kinds(self, data: memoryview) -> Iterator[int]:
        at = 0
        while at + self._length_bytes < len(data):
            length = int.from_bytes(data[at : at + self._length_bytes], "big")
            at += self._length_bytes
            yield data[at] & 0x1F if self.codec == "h264" else data[at] >> 1 & 0x3F
            at += length
        if at != len(data):
            self.known = False  # not made of whole units: somebody else's to judge
