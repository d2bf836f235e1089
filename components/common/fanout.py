"""Work on many independent units, over processes: a unit that crashes or hangs costs itself alone.

The local backend. ``function`` and the units must be picklable (module-level functions, plain values).
"""

from __future__ import annotations

import multiprocessing as mp
import os
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from .errors import StorageError, SvdflowError
from .processes import die_with_parent
from .progress import Progress

UnitT = TypeVar("UnitT")
ValueT = TypeVar("ValueT")


@dataclass(frozen=True)
class Outcome(Generic[UnitT, ValueT]):
    """What became of one unit: a value, or the reason why there is none."""

    unit: UnitT
    value: ValueT | None
    error: str | None
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether there is a value."""
        return self.error is None


def default_workers() -> int:
    """Processes to use on this machine: the cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_units(
    function: Callable[[UnitT], ValueT],
    units: Sequence[UnitT],
    what: str,
    workers: int | None = None,
    timeout_s: float = 600.0,
    tries: int = 2,
) -> Iterator[Outcome[UnitT, ValueT]]:
    """Apply ``function`` to each unit in worker processes; outcomes come as they are ready, in no order.

    Args:
        function: raises SvdflowError for a unit that cannot be used (not tried again); anything else is a fault.
        units: the work, handed out one at a time.
        what: what a unit is, for the progress display.
        workers: processes; all cores by default.
        timeout_s: a unit that takes longer is killed.
        tries: how often a unit that crashed or hung is tried before it is given up.

    Raises:
        StorageError: a unit met one: a full disk or an absent store is no fault of a unit, and ends the work.
    """
    workers = max(1, min(workers or default_workers(), len(units)))
    context = mp.get_context("spawn")
    queue = deque((index, 1) for index in range(len(units)))
    running: list[_Worker] = [_Worker(context, function) for _ in range(workers if units else 0)]
    try:
        with Progress(what, len(units)) as progress:
            busy: list[_Worker] = []
            while queue or busy:
                for worker in running:
                    if queue and worker.unit < 0:
                        worker.start(*queue.popleft(), units)
                        busy.append(worker)
                ready = wait([w.pipe for w in busy], timeout=0.2)
                for worker in list(busy):
                    late = time.monotonic() - worker.started_at > timeout_s
                    if worker.pipe not in ready and not late:
                        continue
                    index, attempt, seconds = worker.unit, worker.attempt, time.monotonic() - worker.started_at
                    busy.remove(worker)
                    outcome, healthy = worker.collect(units[index], seconds, timeout_s)
                    if not healthy:
                        running[running.index(worker)] = _Worker(context, function)
                        if attempt < tries:
                            queue.append((index, attempt + 1))
                            continue
                    progress.advance()
                    yield outcome
    finally:
        for worker in running:
            worker.stop()


class _Worker:
    unit = -1  # index of the unit at work, or -1
    attempt = 0
    started_at = 0.0

    def __init__(self, context: Any, function: Callable[..., Any]) -> None:
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, function), daemon=True)
        self.process.start()
        theirs.close()

    def start(self, index: int, attempt: int, units: Sequence[Any]) -> None:
        self.unit, self.attempt, self.started_at = index, attempt, time.monotonic()
        try:
            self.pipe.send(units[index])
        except OSError:
            pass  # the worker is gone: collect() says so

    def collect(self, unit: Any, seconds: float, timeout_s: float) -> tuple[Outcome, bool]:
        self.unit = -1
        if not self.pipe.poll():
            self.stop()
            return Outcome(unit, None, f"took longer than {timeout_s:g} s and was stopped", seconds), False
        try:
            value, error = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(5)
            self.stop()
            return Outcome(unit, None, f"its worker process died (exit code {self.process.exitcode})", seconds), False
        if isinstance(error, StorageError):
            raise error
        return Outcome(unit, value, error, seconds), True

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _serve(pipe: Connection, function: Callable[[Any], Any]) -> None:
    die_with_parent()
    while True:
        try:
            unit = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((function(unit), None))
        except StorageError as error:  # says nothing of the unit: the work cannot go on
            pipe.send((None, error))
        except SvdflowError as error:
            pipe.send((None, str(error)))
        except Exception as error:  # a fault of ours: the unit is set aside with the place it happened
            last = traceback.extract_tb(error.__traceback__)[-1]
            pipe.send((None, f"{type(error).__name__}: {error} ({os.path.basename(last.filename)}:{last.lineno})"))
