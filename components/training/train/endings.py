"""How training can end, whichever backend ran it."""

from __future__ import annotations

from pathlib import Path

from ...common.errors import SvdflowError

INTERRUPTED = 75  # exit status of a worker that was told to stop and wrote a checkpoint (EX_TEMPFAIL: run it again)


class TrainingFailed(SvdflowError):
    """Training ended before its work was done, or could not begin."""


class TrainingInterrupted(SvdflowError):
    """Training was told to stop; a checkpoint is kept and the next run goes on from it."""


def error_line(folder: Path, echoes: bool = True) -> str | None:
    """The line of the process that failed first, as far as that can be told; None where no process left one.

    Args:
        folder: with the workers' lines.
        echoes: whether an error of the network counts, which most often is the echo of another process's end: the
            worker names such files so that they come last.
    """
    for path in sorted(folder.glob("error-*.txt")):
        if echoes or not path.name.startswith("error-z"):
            return path.read_text().strip()
    return None


def last_line(log: Path) -> str:
    """The last line of a log that says something."""
    text = log.read_text(errors="replace") if log.is_file() else ""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no output")
