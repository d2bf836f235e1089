"""Votes: read from and appended to a file of lines; one that was acknowledged is on the disk."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from ...common.errors import BadInputError
from ...common.files import storage_error

_LONGEST = 4096  # bytes of a line


@dataclass(frozen=True)
class Vote:
    """One answer.

    Attributes:
        task: its name, or that of an attention check.
        left: contestant (or side of a check: 0 the good, 1 the ruined one) that was shown on the left.
        right: likewise.
        chosen: which of the two.
        rater: a random name that a browser was given.
        at: when, s since 1970.
        took_s: from the page to the answer.
    """

    task: str
    left: int
    right: int
    chosen: int
    rater: str
    at: float
    took_s: float

    @property
    def rejected(self) -> int:
        return self.right if self.chosen == self.left else self.left


CHECK = "check-"  # begins the name of an attention check


def is_trusted(passed: list[bool], share: float) -> bool:
    """Whether the votes count of a rater who passed these attention checks and failed those."""
    return sum(passed) >= share * len(passed)


def read_votes(path: Path) -> Iterator[Vote]:
    """All votes, in order; the half of a line that a crash left at the end is none.

    Raises:
        BadInputError: a line in the middle cannot be read, which no crash can have done.
    """
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.endswith(b"\n"):
                return
            yield _vote(line, path, number)


@contextmanager
def alone_with(path: Path) -> Iterator[None]:
    """A study's votes, for one server or takedown at a time.

    Raises:
        BadInputError: another has them.
        StorageError: they cannot be opened.
    """
    try:
        held = path.open("rb")
    except OSError as error:
        raise storage_error(path, error) from error
    with held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInputError(f"{path.parent}: another server is taking this study's votes; stop that one") from None
        yield


class VoteLog:
    """The file, open for appending; its end is mended first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as stream:
            self._end = sum(len(line) for line in stream if line.endswith(b"\n"))
        self._file = os.open(path, os.O_RDWR)
        os.ftruncate(self._file, self._end)

    def append(self, vote: Vote) -> None:
        """On the disk when this returns; as if nothing had been when it raises.

        Raises:
            StorageError: it cannot be written.
        """
        line = json.dumps(asdict(vote)).encode() + b"\n"
        try:
            written = os.pwrite(self._file, line, self._end)
            if written < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, self._end)
            raise storage_error(self.path, error) from error
        self._end += len(line)

    def close(self) -> None:
        os.close(self._file)


def _vote(line: bytes, path: Path, number: int) -> Vote:
    try:
        if len(line) > _LONGEST:
            raise ValueError("too long")
        vote = Vote(**json.loads(line))
        if vote.chosen not in (vote.left, vote.right):
            raise ValueError("chosen is neither side")
        return vote
    except (ValueError, TypeError) as error:
        raise BadInputError(f"{path}, line {number}: no vote ({error}); mend or remove the line") from error


def now() -> float:
    """Wall clock, to the millisecond."""
    return round(time.time(), 3)
