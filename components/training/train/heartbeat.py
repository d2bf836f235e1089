"""Signs of life of the training processes: each writes a small file, the launcher reads them all.

A file's bytes are overwritten in place, so a full disk does not silence anybody. Nothing here imports torch: the first
sign is given before anything heavy is loaded. A file holds the process's number, a count of the beats (from a thread of
its own: a stopped process does not beat), a count of the work done (from the main thread: one that waits for ever does
not move) and what the main thread is at.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_INTERVAL_S = 0.5
_BYTES = 160
_START_S = 300.0  # from the launch to a process's first beat: an interpreter starts, on a busy machine
_LOOKS = 8  # at least, before anybody counts as hanging


@dataclass(frozen=True)
class Beat:
    """What a process's file says."""

    pid: int
    beats: int
    moves: int
    doing: str


class Heartbeat:
    """This process's signs of life. Call ``at`` whenever the main thread has got something done."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._handle = os.open(beat_path(folder, rank), os.O_WRONLY | os.O_CREAT, 0o644)
        self._beats, self._moves, self._doing = 0, 0, "starting"
        self._write()
        threading.Thread(target=self._beat, daemon=True).start()

    def at(self, doing: str) -> None:
        """Say what the main thread turns to now."""
        self._moves, self._doing = self._moves + 1, doing

    def _beat(self) -> None:
        while True:
            time.sleep(_INTERVAL_S)
            self._write()

    def _write(self) -> None:
        self._beats += 1
        line = f"{os.getpid()} {self._beats} {self._moves} {self._doing}"[: _BYTES - 1]
        try:
            os.pwrite(self._handle, line.ljust(_BYTES - 1).encode("ascii", "replace") + b"\n", 0)
        except OSError:
            pass  # the work itself will tell


class Watch:
    """The launcher's eye on ``processes`` files of signs of life.

    Only time in which it looks counts: a machine or a container that stood still for a while stood still with all that
    was on it, and nobody in it hangs.

    Args:
        folder: where they lie.
        processes: how many there are to be.
        timeout_s: without a beat, or without a move of the main threads, for so long a process counts as hanging.
        clock: seconds, rising.
    """

    def __init__(
        self, folder: Path, processes: int, timeout_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.folder, self.processes, self.timeout_s, self._clock = folder, processes, timeout_s, clock
        self._looked_at, self._watched_s = clock(), 0.0
        self._beaten: dict[int, tuple[int, float]] = {}
        self._moved: tuple[int, float] = (-1, 0.0)

    def hanging(self) -> str | None:
        """One line that names the process that hangs, or None while all is well."""
        now, beats = self._seconds_watched(), read_beats(self.folder, self.processes)
        for rank in range(self.processes):
            beat = beats.get(rank)
            if beat is None:
                if now > max(self.timeout_s, _START_S):
                    return f"training process {rank} has given no sign of life since it was started"
                continue
            before = self._beaten.get(rank)
            if before is None or before[0] != beat.beats:
                self._beaten[rank] = (beat.beats, now)
            elif now - before[1] > self.timeout_s:
                return _line(rank, beat, f"has given no sign of life for {self.timeout_s:g} s")
        moves = sum(beat.moves for beat in beats.values())
        if moves != self._moved[0] or len(beats) < self.processes or not all(beat.moves for beat in beats.values()):
            self._moved = (moves, now)
        elif now - self._moved[1] > self.timeout_s:  # those that wait for others have got further than the others
            rank = min(beats, key=lambda place: beats[place].moves)
            return _line(rank, beats[rank], f"has got nothing done for {self.timeout_s:g} s")
        return None

    def _seconds_watched(self) -> float:
        now = self._clock()
        self._watched_s += min(now - self._looked_at, self.timeout_s / _LOOKS)
        self._looked_at = now
        return self._watched_s


def beat_path(folder: Path, rank: int) -> Path:
    """Where a process's signs of life lie."""
    return folder / f"beat-{rank}.txt"


def read_beats(folder: Path, processes: int) -> dict[int, Beat]:
    """What the processes' files say, by rank; those without a file, or with half a line, are left out."""
    found = {}
    for rank in range(processes):
        try:
            pid, beats, moves, doing = beat_path(folder, rank).read_text().split(maxsplit=3)
            found[rank] = Beat(int(pid), int(beats), int(moves), doing.strip())
        except (OSError, ValueError):
            continue
    return found


def _line(rank: int, beat: Beat, what: str) -> str:
    return f"training process {rank} (pid {beat.pid}) {what}; it was {beat.doing}"
