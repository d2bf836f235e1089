"""GPU time that a training run has used, over all its attempts and whoever watched them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

from ....common.errors import StorageError
from ....common.storage import write_atomic
from ..endings import TrainingFailed

_WRITE_S = 30.0


class Budget:
    """Counts GPU-seconds while a job runs, in a file per attempt beside its log.

    Args:
        folder: of the run.
        gpu_hours: what it may use; None for no bound.
        clock: seconds, rising.
    """

    def __init__(self, folder: Path, gpu_hours: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder, self.gpu_hours, self._clock = folder / "attempts", gpu_hours, clock
        self._used = {path.parent.name: _read(path) for path in self.folder.glob("*/gpu_seconds.json")}
        self._at: float | None = None
        self._written = 0.0
        if gpu_hours is not None and self.used_s >= 3600 * gpu_hours:
            raise TrainingFailed(
                f"the budget of {gpu_hours:g} GPU-hours is used up by earlier attempts; raise gpu_hours"
            )

    @property
    def used_s(self) -> float:
        """GPU-seconds of all attempts."""
        return sum(self._used.values())

    def seconds_left(self, gpus: int) -> float:
        """How long so many GPUs may still be used."""
        if self.gpu_hours is None or not gpus:
            return math.inf
        return (3600 * self.gpu_hours - self.used_s) / gpus

    def count(self, attempt: str, gpus: int) -> None:
        """The attempt runs: count the time since the last call."""
        now = self._clock()
        if self._at is not None:
            self._used[attempt] = self._used.get(attempt, 0.0) + (now - self._at) * gpus
        self._at = now
        if now - self._written > _WRITE_S:
            self._write(attempt)

    def pause(self, attempt: str) -> None:
        """The attempt does not run."""
        if self._at is not None:
            self._at = None
            self._write(attempt)

    def _write(self, attempt: str) -> None:
        self._written = self._clock()
        path = self.folder / attempt / "gpu_seconds.json"
        if not path.parent.is_dir():  # another run that waited for the same job has cleared up
            return
        used = max(self._used.get(attempt, 0.0), _read(path))  # another step may have watched it for longer
        self._used[attempt] = used
        try:
            write_atomic(path, json.dumps(round(used, 1)).encode())
        except StorageError:
            pass  # a full disk is told by the training itself


def _read(path: Path) -> float:
    try:
        return float(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return 0.0
