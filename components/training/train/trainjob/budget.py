"""GPU time that a training run has used, over all its attempts and whoever watched them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

from ....common.errors import StorageError
from ....common.files import write_atomic
from ..endings import TrainingFailed

_WRITE_S = 30.0


class Budget:
    """Counts GPU-seconds while a job runs, in a file per attempt beside its log.

    Args:
        folder: of the run.
        gpu_hours: what it may use; None for no bound.
        clock: seconds, rising.
        calendar: seconds since 1970.
    """

    def __init__(
        self,
        folder: Path,
        gpu_hours: float | None,
        clock: Callable[[], float] = time.monotonic,
        calendar: Callable[[], float] = time.time,
    ) -> None:
        self.folder, self.gpu_hours, self._clock, self._calendar = folder / "attempts", gpu_hours, clock, calendar
        self._used = {path.parent.name: _read(path)[0] for path in self.folder.glob("*/gpu_seconds.json")}
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

    def catch_up(self, attempt: str, gpus: int, since: float) -> None:
        """An adopted attempt is found at work: count the time in which nobody watched it.

        Args:
            attempt: its name.
            gpus: that it holds.
            since: when it began to work, in seconds since 1970.
        """
        used, told_at = _read(self._path(attempt))
        unwatched_s = max(0.0, self._calendar() - max(since, told_at))
        self._used[attempt] = max(self._used.get(attempt, 0.0), used + unwatched_s * gpus)

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
        path = self._path(attempt)
        if not path.parent.is_dir():  # another run that waited for the same job has cleared up
            return
        used = max(self._used.get(attempt, 0.0), _read(path)[0])  # another step may have watched it for longer
        self._used[attempt] = used
        try:
            write_atomic(path, json.dumps({"seconds": round(used, 1), "at": self._calendar()}).encode())
        except StorageError:
            pass  # a full disk is told by the training itself

    def _path(self, attempt: str) -> Path:
        return self.folder / attempt / "gpu_seconds.json"


def _read(path: Path) -> tuple[float, float]:
    """GPU-seconds that were told, and when; nothing and never where there is no such file."""
    try:
        told = json.loads(path.read_text())
        return float(told["seconds"]), float(told["at"])
    except (OSError, ValueError, TypeError, KeyError):
        return 0.0, 0.0
