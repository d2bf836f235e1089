"""The tensors of one variant of a unit's frames, filled chunk by chunk."""

from __future__ import annotations

import numpy as np

from ...common.frames import crop_shares, fit_frame
from ...common.sample_tensors import pack_picture, picture_name
from ...common.windows import spread
from .encoders import Encoders
from .settings import EncodeSettings
from .units import Unit
from .variants import Variant


def precision(settings: EncodeSettings) -> type[np.float16] | type[np.float32]:
    """The number format of moments and text states."""
    return np.float16 if settings.half else np.float32


class SequenceTensors:
    """Takes frames as decoded and keeps what is stored of them.

    Attributes:
        starts: places of the frames whose pixels are kept.
        first: the first frame as it is encoded.
        crop: shares cut off at left, top, right and bottom.
    """

    def __init__(self, variant: Variant, unit: Unit, settings: EncodeSettings) -> None:
        self.variant, self.size, self.precision = variant, unit.size, precision(settings)
        self.starts = set(spread(unit.sequence.frames, unit.starts))
        self.arrays: dict[str, list[np.ndarray]] = {"mean": [], "logvar": [], "images": []}
        self.pictures: dict[int, np.ndarray] = {}
        self.first: np.ndarray | None = None
        self.crop: tuple[float, ...] | None = None

    def take(self, chunk: list[np.ndarray], count: int, encoders: Encoders | None) -> None:
        """Take in the frames from place ``count`` on, uint8 [H, W, 3] each; without encoders only the first one."""
        if encoders is None and self.first is not None:
            return
        frames_FHWC = np.stack([fit_frame(rgb, *self.size, self.variant.place, self.variant.flipped) for rgb in chunk])
        if self.first is None:
            height, width = chunk[0].shape[:2]
            self.first, self.crop = frames_FHWC[0], crop_shares(height, width, *self.size, self.variant.place)
        if encoders is None:
            return
        mean_FCHW, logvar_FCHW = encoders.moments(frames_FHWC)
        self.arrays["mean"].append(mean_FCHW.astype(self.precision))
        self.arrays["logvar"].append(logvar_FCHW.astype(self.precision))
        self.arrays["images"].append(encoders.images(frames_FHWC).astype(np.float32))
        places = [count + i for i in range(len(chunk)) if count + i in self.starts]
        self.pictures |= {place: pack_picture(frames_FHWC[place - count]) for place in places}

    def tensors(self) -> dict[str, np.ndarray]:
        """By name, as they are stored."""
        whole = {name: np.concatenate(values) for name, values in self.arrays.items()}
        return whole | {picture_name(place): data for place, data in self.pictures.items()}
