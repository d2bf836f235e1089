"""What the terminal shows of a running pipeline: steps done, the one at work with its progress, the time."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

PLAIN_INTERVAL_S = 15.0


@dataclass
class _StepState:
    name: str
    started: float
    ended: float | None = None
    error: str | None = None
    what: str = ""
    done: int = 0
    total: int | None = None
    note: str = ""
    computed: int = 0
    reused: int = 0


class View:
    """Draws a run: in place on a terminal, else a line per event. Call ``update`` often, then ``close``."""

    def __init__(self, console: Console, events: Path, tasks: int) -> None:
        self.console, self.tasks = console, tasks
        self.steps: dict[str, _StepState] = {}
        self.began = time.time()
        self._stream = open(events)
        self._rest, self._said_at, self._message = "", time.monotonic(), ""
        self._live = Live(console=console, auto_refresh=False, transient=False) if console.is_terminal else None
        if self._live:
            self._live.start()

    def update(self) -> None:
        """Take in new events and draw."""
        lines = (self._rest + self._stream.read()).split("\n")
        self._rest = lines.pop()
        for line in lines:
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError):
                continue  # a line torn by a killed process
        if self._live:
            self._live.update(self._draw(), refresh=True)
        elif time.monotonic() - self._said_at > PLAIN_INTERVAL_S:
            for state in self.steps.values():
                if state.ended is None:
                    self._plain(f"  {state.name}: {_progress(state)} {state.note}".rstrip())

    def say(self, message: str) -> None:
        """Show a message of the command's own."""
        self._message = message
        if not self._live:
            self._plain(message)

    def close(self) -> None:
        """Draw a last time and stop."""
        if self._live:
            self._message = ""
            self._live.update(self._draw(), refresh=True)
            self._live.stop()
        self._stream.close()

    def _take(self, event: dict[str, Any]) -> None:
        name = event["step"]
        if event.get("event") == "start":
            self.steps[name] = _StepState(name, event["time"])
            if not self._live:
                self._plain(f"[{len(self.steps)}/{self.tasks}] {name}")
            return
        state = self.steps.get(name)
        if state is None:
            return
        if event.get("event") == "end":
            state.ended, state.error = event["time"], event.get("error")
            state.computed, state.reused = event.get("done", 0), event.get("reused", 0)
            if not self._live:
                self._plain(f"[{len(self.steps)}/{self.tasks}] {name}: {_outcome(state)}")
        elif "what" in event:
            state.what, state.done, state.total, state.note = (
                event["what"],
                event["done"],
                event["total"],
                event.get("note") or state.note,
            )

    def _draw(self) -> Table:
        grid = Table.grid(padding=(0, 2))
        for state in self.steps.values():
            if state.ended is None:
                mark, text = (
                    Text("▸", "bold cyan"),
                    Text(f"{_bar(state)} {_progress(state)} {state.note}".strip(), "cyan"),
                )
            elif state.error:
                mark, text = Text("✗", "bold red"), Text(state.error.splitlines()[0][:150], "red")
            else:
                mark, text = Text("✓", "green"), Text(_outcome(state), "dim")
            grid.add_row(mark, state.name, _clock((state.ended or time.time()) - state.started), text)
        ended = sum(state.ended is not None for state in self.steps.values())
        grid.add_row(
            "",
            Text(f"{ended} of {self.tasks} steps", "bold"),
            _clock(time.time() - self.began),
            Text(self._message, "yellow"),
        )
        return grid

    def _plain(self, line: str) -> None:
        self._said_at = time.monotonic()
        self.console.print(f"{_clock(time.time() - self.began)}  {line}", highlight=False, markup=False, soft_wrap=True)


def _outcome(state: _StepState) -> str:
    if state.error:
        return f"failed: {state.error}"
    if state.reused and not state.computed:
        return f"all {state.reused} found done"
    return f"{state.computed} done" + (f", {state.reused} found done" if state.reused else "")


def _progress(state: _StepState) -> str:
    if not state.what:
        return "starting"
    return f"{state.done}/{state.total} {state.what}" if state.total else f"{state.done} {state.what}"


def _bar(state: _StepState, width: int = 18) -> str:
    if not state.total:
        return ""
    filled = min(width, round(width * state.done / state.total))
    return "━" * filled + "┄" * (width - filled)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60:2d}:{int(seconds) % 60:02d}"
