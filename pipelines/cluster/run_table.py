"""Tables of runs and schedules."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .schedules import told

_STYLES = {"SUCCEEDED": "green", "FAILED": "red", "CANCELED": "yellow", "RUNNING": "cyan"}


def print_runs(runs: Sequence[Any]) -> None:
    """A line a run: id, state, start, duration, name."""
    table = Table("run", "state", "started", "took", "name", box=None, header_style="bold")
    for run in runs:
        state = run.state or "PENDING"
        ended = run.finished_at if run.finished_at and run.finished_at.timestamp() > 0 else None
        took = str((ended or datetime.now(UTC)) - run.created_at).partition(".")[0]
        table.add_row(
            run.run_id,
            Text(state.lower(), _STYLES.get(state, "")),
            run.created_at.astimezone().strftime("%Y-%m-%d %H:%M"),
            took,
            Text(run.display_name or ""),
        )
    _print(table)


def print_schedules(schedules: Sequence[Any]) -> None:
    """A line a schedule: name, state, when, runs at once, what was told of its version."""
    table = Table("schedule", "state", "when", "at once", "catches up", "runs", box=None, header_style="bold")
    for each in schedules:
        table.add_row(
            Text(each.display_name or ""),
            (each.status or "").lower(),
            told(each),
            str(each.max_concurrency or ""),
            "no" if each.no_catchup else "yes",
            Text(each.description or ""),
        )
    _print(table)


def _print(table: Table) -> None:
    Console(width=None if sys.stdout.isatty() else 200).print(table)
