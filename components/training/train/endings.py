"""How training can end, whichever backend ran it."""

from __future__ import annotations

import traceback
from pathlib import Path

from ...common.errors import SvdflowError

_LINE, _TAIL_BYTES = 2000, 1 << 16  # characters of an error that are told, and of a log's end that is looked at
INTERRUPTED = 75  # exit status of a worker that was told to stop and wrote a checkpoint (EX_TEMPFAIL: run it again)


class TrainingFailed(SvdflowError):
    """Training ended before its work was done, or could not begin."""


class TrainingInterrupted(SvdflowError):
    """Training was told to stop; a checkpoint is kept and the next run goes on from it."""


def line_of(error: Exception, stage: str = "") -> str:
    """What a worker tells of an error that is not of the family that tells its own remedy: one line, with the place.

    Args:
        error: as it was raised.
        stage: names the settings.
    """
    last = traceback.extract_tb(error.__traceback__)[-1]
    told = " ".join(f"{type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})".split())
    if type(error).__name__ != "OutOfMemoryError":  # torch's, which nothing here needs to load
        return told
    section = f"train_{stage}." if stage else ""
    return (
        f"the GPU's memory is full: raise {section}accumulation or {section}zero_stage, or set "
        f"{section}gradient_checkpointing=true (`svdflow train … --dry-run` says what fits); {told}"
    )


def error_line(folder: Path, echoes: bool = True) -> str | None:
    """The line of the process that failed first, as far as that can be told; None where no process left one.

    Args:
        folder: with the workers' lines.
        echoes: whether an error of the network counts, which most often is the echo of another process's end: the
            worker names such files so that they come last.
    """
    for path in sorted(folder.glob("error-*.txt")):
        if echoes or not path.name.startswith("error-z"):
            told = " ".join(path.read_text(errors="replace").split())
            return told if len(told) <= _LINE else f"{told[:_LINE]} …"
    return None


def last_line(log: Path) -> str:
    """The last line of a log that says something."""
    if not log.is_file():
        return "no output"
    with open(log, "rb") as file:
        file.seek(max(0, file.seek(0, 2) - _TAIL_BYTES))
        text = file.read().decode(errors="replace")
    return next((line.strip()[-_LINE:] for line in reversed(text.splitlines()) if line.strip()), "no output")
