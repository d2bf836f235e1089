"""The process that holds the models: it measures units of clips while other processes decode the next ones."""

from __future__ import annotations

import multiprocessing as mp
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

from ...common.errors import StorageError
from ...common.fanout import private_memory_bytes
from ...common.processes import die_with_parent
from .measure import Measured, measure_unit

_WAITING_UNITS = 2  # ready for the models; decoding waits when there are more
_TRIES = 2  # of a clip alone
_MEMORY_POLL_S = 0.05

MeasureUnit = Callable[[Sequence[Measured]], list[Measured]]


class ModelProcess:
    """Takes units of clips and gives them back measured. Use as a context manager.

    A unit that ends or hangs the process, or makes it take too much memory, is measured again clip by clip in a new
    one; a clip that does so alone is given up. Units can be split so, as no clip's result depends on its neighbours.
    """

    def __init__(
        self, axes: Sequence[str], clip_timeout_s: float, memory_bytes: int, function: MeasureUnit = measure_unit
    ) -> None:
        """Start nothing yet.

        Args:
            axes: what is measured here, to be marked as failed for a clip that is given up.
            clip_timeout_s: the time of a unit is this, times its clips.
            memory_bytes: private memory above which the process is stopped, models included.
            function: what the process does with a unit; picklable.
        """
        self.axes, self.clip_timeout_s, self.memory_bytes, self.function = axes, clip_timeout_s, memory_bytes, function
        self._thread = ThreadPoolExecutor(1)  # one for the life of the process: it dies when the thread does
        self._room = threading.BoundedSemaphore(_WAITING_UNITS)
        self._futures: list[Future[list[Measured]]] = []
        self._process: Any = None
        self._pipe: Connection | None = None
        self._ready = False

    def __enter__(self) -> ModelProcess:
        return self

    def __exit__(self, *_: object) -> None:
        for future in self._futures:
            future.cancel()
        if self._process is not None:
            self._process.kill()  # whatever it is doing: what it has measured is kept
        self._thread.shutdown(wait=True)
        self._stop()

    def submit(self, unit: Sequence[Measured]) -> None:
        """Hand a unit over; waits while enough others wait."""
        self._room.acquire()
        self._futures.append(self._thread.submit(self._work, list(unit)))

    def measured(self, wait: bool) -> Iterator[Measured]:
        """Clips that are done; with ``wait``, all that were submitted.

        Raises:
            StorageError: the process met one.
        """
        while self._futures and (wait or self._futures[0].done()):
            yield from self._futures.pop(0).result()

    def _work(self, unit: list[Measured]) -> list[Measured]:
        try:
            answer = self._ask(unit)
            if not isinstance(answer, str):
                return answer
            return [self._alone(measured) for measured in unit]
        finally:
            self._room.release()

    def _alone(self, measured: Measured) -> Measured:
        reason = ""
        for _ in range(_TRIES):
            answer = self._ask([measured])
            if not isinstance(answer, str):
                return answer[0]
            reason = answer
        for axis in self.axes:
            if not measured.result.settled(axis):
                measured.result.failed[axis] = reason
        measured.view = None
        return measured

    def _ask(self, unit: list[Measured]) -> list[Measured] | str:
        """The unit measured, or why not."""
        if self._process is None:
            context = mp.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs, self.function), daemon=True)
            self._process.start()
            theirs.close()
        assert self._pipe is not None
        limit_s = self.clip_timeout_s * len(unit)
        try:
            if not self._ready:
                self._pipe.recv()  # it has started: until then the unit's time does not run
                self._ready = True
            self._pipe.send(unit)
            if excess := self._excess(limit_s):
                self._stop()
                return f"the models took {excess} and were stopped"
            value, error = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(5)
            code = self._process.exitcode
            self._stop()
            return f"the process of the models died (exit code {code})"
        if isinstance(error, StorageError):
            raise error
        return value if error is None else str(error)

    def _excess(self, limit_s: float) -> str:
        """Wait for the answer; returns what there was too much of before it came."""
        assert self._pipe is not None
        until = time.monotonic() + limit_s
        while not self._pipe.poll(_MEMORY_POLL_S):
            if private_memory_bytes(self._process.pid) > self.memory_bytes:
                return f"more than {self.memory_bytes / 1e6:,.0f} MB of memory"
            if time.monotonic() > until:
                return f"longer than {limit_s:g} s"
        return ""

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._pipe is not None:
            self._pipe.close()
        self._process, self._pipe, self._ready = None, None, False


def _serve(pipe: Connection, function: MeasureUnit) -> None:
    die_with_parent()
    pipe.send("ready")
    while True:
        try:
            unit = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((function(unit), None))
        except StorageError as error:
            pipe.send((None, error))
        except Exception as error:
            pipe.send((None, f"{type(error).__name__}: {error}"))
