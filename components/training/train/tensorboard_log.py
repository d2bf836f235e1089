"""The curves of a run for TensorBoard. A run that goes on from a checkpoint writes on where that was."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


class TensorBoardLog:
    """Event files in a folder; does nothing when tensorboard is not installed.

    Args:
        folder: of the run's event files.
        step: steps done: later ones that a broken-off run had logged are hidden.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self._writer = SummaryWriter(str(folder), purge_step=step or None, flush_secs=30)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each named curve."""
        if self._writer:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image_HWC: np.ndarray) -> None:
        """Add a uint8 picture."""
        if self._writer:
            self._writer.add_image(name, image_HWC, step, dataformats="HWC")

    def close(self) -> None:
        """Write what is left."""
        if self._writer:
            self._writer.close()
