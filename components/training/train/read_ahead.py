"""Reads the samples of coming steps while this one is computed.

What is read is a function of what is asked for, and it is handed out in the order asked for: how many readers there
are changes neither order nor bytes, and nothing of it has to be kept for a run to go on.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

AskedT = TypeVar("AskedT")
ReadT = TypeVar("ReadT")
_AHEAD = 2  # of each reader: one in its hands, one ready


class ReadAhead(Generic[AskedT, ReadT]):
    """Readers on threads: reading is input, unpacking and random numbers, which hold no interpreter lock for long.

    Args:
        asked: what is to be read, in order; gone through in the thread that takes.
        read: reads one of them; several readers call it at the same time.
        readers: how many; without any, reading is done when its turn comes.

    Attributes:
        waited_s: time that ``take`` has spent so far.
    """

    def __init__(self, asked: Iterator[AskedT], read: Callable[[AskedT], ReadT], readers: int) -> None:
        self._asked, self._read = asked, read
        self._pool = ThreadPoolExecutor(readers, "read-ahead") if readers else None
        self._pending: deque[Future[ReadT]] = deque()
        self._ahead = readers * _AHEAD
        self.waited_s = 0.0

    def take(self) -> ReadT:
        """The next one.

        Raises:
            StopIteration: nothing is left.
            Exception: what the reading of this one has raised.
        """
        began = time.perf_counter()
        try:
            if self._pool is None:
                return self._read(next(self._asked))
            self._fill()
            if not self._pending:
                raise StopIteration
            taken = self._pending.popleft().result()
            self._fill()
            return taken
        finally:
            self.waited_s += time.perf_counter() - began

    def close(self) -> None:
        """Begin no other reading, and wait for those in hand."""
        if self._pool:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _fill(self) -> None:
        assert self._pool
        while len(self._pending) < self._ahead:
            try:
                asked = next(self._asked)
            except StopIteration:
                return
            self._pending.append(self._pool.submit(self._read, asked))
