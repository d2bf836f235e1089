"""Work for fan-outs over pods in tests: what units do to the pod that they are worked on in."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from svdflow.common.config import Settings
from svdflow.common.errors import BadInputError, StorageError
from svdflow.common.fanout import Limits, Outcome, in_pods


class Taste(Settings):
    """Settings, as steps hand them to their units."""

    sizes: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class Task:
    """A unit with all that units of the steps have."""

    number: int
    name: str
    place: str
    taste: Taste = Taste()
    ratio: float | None = None


@dataclass(frozen=True)
class Done:
    """A value with all that values have."""

    square: int
    data: bytes
    ratio: float | None
    worker: int


@in_pods
def square(task: Task) -> Done:
    """What the name asks for."""
    with open(Path(task.place) / f"{task.number}.tries", "a") as tries:
        tries.write("x")
    if task.name == "refused":
        raise BadInputError(f"{task.number} is refused")
    if task.name == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if task.name == "kill the pod":  # as the kernel does with all of a container's processes
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(600)
    if task.name == "no disk":
        raise StorageError("the disk is full")
    if task.name == "hold":
        time.sleep(600)
    return Done(task.number**2, bytes([0, 255, task.number % 256]), task.ratio, os.getpid())


@in_pods
def squares_together(tasks: Sequence[Task], workers: int | None, limits: Limits) -> Iterator[Outcome]:
    """All in one process, as a process of models would."""
    for task in tasks:
        yield Outcome(task, square(task), None, 0.0)


def unmarked(task: Task) -> int:
    """Not for pods."""
    return task.number
