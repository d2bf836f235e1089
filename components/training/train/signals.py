"""What signals ask of a training process and of its launcher: SIGTERM to checkpoint and end, SIGUSR1 to checkpoint."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Interrupted(Exception):
    """The processes have agreed to stop; all of them raise it at the same place."""


class Asked:
    """Notes signals; the processes agree on them at the end of each step."""

    def __init__(self) -> None:
        self.to_stop = False
        self._save = False
        self._told_at = math.inf
        self._grace_s = 30.0
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGUSR2, self._stop)  # from mpi.py: mpirun hands this one on, to all at once
        signal.signal(signal.SIGUSR1, self._checkpoint)

    def within(self, grace_s: float) -> None:
        """Say how long ending may take: after that the process ends, whatever it waits for."""
        self._grace_s = grace_s

    def take_save(self) -> bool:
        """Whether a checkpoint was asked for since the last time."""
        asked, self._save = self._save, False
        return asked

    def seconds_left(self, grace_s: float) -> float:
        """Of the grace, since this process was told to end."""
        return grace_s - max(0.0, time.monotonic() - self._told_at)

    def _stop(self, *_: Any) -> None:
        if not self.to_stop:
            self._told_at = time.monotonic()
            signal.alarm(math.ceil(self._grace_s))  # a collective that never ends must not hold this process for ever
        self.to_stop = True

    def _checkpoint(self, *_: Any) -> None:
        self._save = True


@contextmanager
def on_signals(told: list[str], checkpoint: Callable[[], None]) -> Iterator[None]:
    """Note SIGTERM and SIGINT instead of ending, so that the workers can be told first. Only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        s: signal.signal(s, lambda number, _: told.append(signal.Signals(number).name))
        for s in (signal.SIGTERM, signal.SIGINT)
    }
    before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, lambda *_: checkpoint())
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
