"""Watching a run: our own polling, which knows every end state, bounds each request and outlasts a server's absence."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .client import Client, NoAnswer
from .graph import ENDED, NOT_RUN, STARTING, WAITING, Task, TaskState, states_of, tasks_of
from .runs import get_run, spec_of

INTERVAL_S = 5.0
PATIENCE_S = 600.0
STATUS = {"SUCCEEDED": 0, "SKIPPED": 0, "FAILED": 1, "CANCELED": 130}

_MARKS = {
    "SUCCEEDED": ("✓", "green"),
    "FAILED": ("✗", "bold red"),
    "CANCELED": ("■", "yellow"),
    "CANCELING": ("■", "yellow"),
    "RUNNING": ("▸", "bold cyan"),
    "PENDING": ("▹", "cyan"),
    STARTING: ("▹", "cyan"),
    "SKIPPED": ("·", "dim"),
    NOT_RUN: ("·", "dim"),
    WAITING: ("·", "dim"),
}


def watch(
    client: Client, run_id: str, console: Console, *, interval_s: float = INTERVAL_S, patience_s: float = PATIENCE_S
) -> int:
    """Show a run until it has ended; returns the exit status: 0 succeeded, 1 failed, 130 canceled.

    Raises:
        NoAnswer: the server gave none for ``patience_s``. The run goes on.
        BadInputError: there is no such run.
    """
    run = get_run(client, run_id)
    tasks = tasks_of(spec_of(client, run))
    view = _View(console, tasks, run)
    answered = time.monotonic()
    try:
        while True:
            view.show(run, states_of(tasks, run))
            if run.state in ENDED:
                return STATUS[run.state]
            time.sleep(interval_s)
            try:
                run = client.once(client.runs.run_service_get_run, run_id)
                answered = time.monotonic()
                view.message = ""
            except NoAnswer as error:
                if time.monotonic() - answered > patience_s:
                    raise
                view.say(f"{error}; the run goes on, trying again")
    finally:
        view.close()


class _View:
    """Draws a run: in place on a terminal, else a line per change."""

    def __init__(self, console: Console, tasks: Sequence[Task], run: Any) -> None:
        self.console, self.names = console, {task.key: task.name for task in tasks}
        self.before: dict[str, set[str]] = {}  # all that a task comes after, however far
        for task in tasks:
            self.before[task.key] = set(task.after).union(*(self.before[key] for key in task.after))
        self.message = ""
        self._told: dict[str, str] = {}
        self._said = ""
        self._run, self._states = run, []  # type: ignore[var-annotated]
        self._live = Live(console=console, auto_refresh=False, transient=False) if console.is_terminal else None
        if self._live:
            self._live.start()
        else:
            self._line(f"run {run.run_id}  {run.display_name}")

    def show(self, run: Any, states: Sequence[TaskState]) -> None:
        self._run, self._states = run, list(states)
        if self._live:
            self._live.update(self._draw(), refresh=True)
            return
        for state in states:
            if state.state not in (self._told.get(state.task.key, WAITING), NOT_RUN):
                self._told[state.task.key] = state.state
                self._line(f"{state.task.name}: {self._words(state)}")
        if run.state in ENDED:
            if never := [state.task.name for state in states if state.state == NOT_RUN]:
                self._line(f"not run: {', '.join(never)}")
            self._line(self._outcome())

    def say(self, message: str) -> None:
        self.message = message
        if self._live:
            self._live.update(self._draw(), refresh=True)
        elif message != self._said:  # once, not at every try
            self._line(message)
            self._said = message

    def close(self) -> None:
        if self._live:
            self.message = ""
            self._live.update(self._draw(), refresh=True)
            self._live.stop()

    def _draw(self) -> Table:
        grid = Table.grid(padding=(0, 2))
        for fixed in (True, True, True, False):
            grid.add_column(no_wrap=fixed, overflow="fold")
        for state in self._states:
            mark, style = _MARKS.get(state.state, ("?", "magenta"))
            grid.add_row(Text(mark, style), state.task.name, _clock(state), Text(self._words(state), style))
        done = sum(state.state == "SUCCEEDED" for state in self._states)
        grid.add_row("", Text(f"{done} of {len(self._states)} tasks", "bold"), "", Text(self._outcome(), "bold"))
        if self.message:
            grid.add_row("", "", "", Text(self.message, "yellow"))
        return grid

    def _words(self, state: TaskState) -> str:
        if state.state == WAITING:
            ended = {each.task.key for each in self._states if each.state in ENDED}
            blocking = [key for key in state.task.after if key not in ended]
            last = [key for key in blocking if not any(key in self.before[other] for other in blocking)]
            return f"after {', '.join(self.names[key] for key in last)}" if last else "waiting"
        words = state.state.lower()
        if len(state.pods) > 1:
            words += f", attempt {len(state.pods)}"
        return f"{words}: {' '.join(state.error.split())[:200]}" if state.error else words

    def _outcome(self) -> str:
        run = self._run
        words = (run.state or "PENDING").lower()
        if run.error and run.error.message:
            words += f": {' '.join(run.error.message.split())[:300]}"
        failed = [state.task.name for state in self._states if state.state == "FAILED"]
        if run.state == "FAILED" and failed:
            words += f"; see: svdflow runs logs {run.run_id} '{failed[0]}'"
        return words

    def _line(self, text: str) -> None:
        now = datetime.now(UTC).astimezone().strftime("%H:%M:%S")
        self.console.print(f"{now}  {text}", highlight=False, markup=False, soft_wrap=True)


def _clock(state: TaskState) -> str:
    if state.started is None:
        return ""
    seconds = int(((state.ended or datetime.now(UTC)) - state.started).total_seconds())
    hours, rest = divmod(max(seconds, 0), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60:2d}:{rest % 60:02d}"
