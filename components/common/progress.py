"""Progress of long work: an event file that a supervising process draws, or a bar on the terminal.

With ``SVDFLOW_EVENTS`` set to a path, lines of JSON ``{"step", "what", "done", "total", "time"}`` are appended there, a
few a second at most. Otherwise a bar is drawn when standard error is a terminal.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
_INTERVAL_S = 0.2


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield the items and show how many are done; ``what`` says what an item is ("clips", "steps")."""
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]
    with Progress(what, total) as progress:
        for item in items:
            yield item
            progress.advance()


class Progress:
    """A counter that is shown. Use as a context manager; call ``advance``.

    With ``shown`` false it is not: of several processes at one piece of work, one tells.
    """

    def __init__(self, what: str, total: int | None = None, shown: bool = True) -> None:
        self.what, self.total, self.shown, self.done = what, total, shown, 0
        self._shown_at = 0.0
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if self.shown and not os.environ.get("SVDFLOW_EVENTS") and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._bar.add_task(self.what, total=self.total)
        self._show(force=True)
        return self

    def __exit__(self, *exc: object) -> None:
        self._show(force=True)
        if self._bar:
            self._bar.stop()

    def advance(self, n: int = 1, note: str = "") -> None:
        """Count ``n`` more; ``note`` is a short live figure, such as the loss."""
        self.done += n
        self._show(note=note)

    def _show(self, force: bool = False, note: str = "") -> None:
        now = time.monotonic()
        if not self.shown or (not force and now - self._shown_at < _INTERVAL_S):
            return
        self._shown_at = now
        if self._bar:
            self._bar.update(0, completed=self.done)
        emit(what=self.what, done=self.done, total=self.total, note=note)


def emit(**event: Any) -> None:
    """Append one event to the event file, if there is one."""
    path = os.environ.get("SVDFLOW_EVENTS")
    if not path:
        return
    line = json.dumps({"step": os.environ.get("SVDFLOW_STEP", ""), "time": time.time(), **event}) + "\n"
    try:
        with open(path, "a") as stream:  # one short write in append mode: lines of several processes do not mix
            stream.write(line)
    except OSError:
        pass  # progress is a courtesy: a full disk is reported by the work itself
