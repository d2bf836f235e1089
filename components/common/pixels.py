"""Pictures as plain pixels: what comes back from where a file was decoded, with nothing left in it to decode."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import BadInputError


@dataclass(frozen=True)
class Pixels:
    """A picture: height and width in px, and its RGB values row by row, 8 bits each."""

    height: int
    width: int
    rgb: bytes

    @staticmethod
    def of(picture: np.ndarray) -> Pixels:
        """Of a picture uint8 [H, W, 3]."""
        return Pixels(picture.shape[0], picture.shape[1], np.ascontiguousarray(picture, np.uint8).tobytes())

    def array(self) -> np.ndarray:
        """The picture, uint8 [H, W, 3].

        Raises:
            BadInputError: size and values do not agree.
        """
        if min(self.height, self.width) < 1 or len(self.rgb) != self.height * self.width * 3:
            raise BadInputError(f"a picture of {self.width}x{self.height} px came with {len(self.rgb)} bytes")
        return np.frombuffer(self.rgb, np.uint8).reshape(self.height, self.width, 3).copy()
