"""Bytes from afar into a local file: resumed where they broke off, tried again with growing pauses, bounded.

The one loop for every protocol. A protocol (``fetch_http``, ``fetch_s3``) gives a function that connects at an offset.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ..common.config import Settings
from ..common.errors import StorageError
from ..common.files import write_atomic

_CHUNK_BYTES = 1 << 18
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 8.0


class FetchSettings(Settings):
    """How long and how much; ours, all of it."""

    max_bytes: int = Field(default=64 * 2**30, gt=0)  # of one video; what is larger is set aside
    connect_timeout_s: float = Field(default=10.0, gt=0)
    read_timeout_s: float = Field(default=30.0, gt=0)  # of silence
    patience_s: float = Field(
        default=60.0, ge=0
    )  # a server that fails is tried again for so long; progress starts anew
    total_s: float = Field(default=3600.0, gt=0)  # for one video; what is there by then is kept for the next run
    addresses: Literal["public", "private", "any"] = "public"  # that http(s) may lead to; see fetch_http


class Unfetchable(Exception):
    """A place whose bytes cannot be had, as ``<short name>: <why>``; names no URL."""


class Passing(Exception):
    """A failure that may pass: a connection broke, a server is busy. ``wait_s`` is what the server asked for."""

    def __init__(self, why: str, wait_s: float = 0.0) -> None:
        super().__init__(why)
        self.wait_s = wait_s


@dataclass(frozen=True)
class Body:
    """An answer that is about to be read.

    Attributes:
        start: offset of its first byte: 0 when a server does not resume, or the content is another by now.
        total: bytes of the whole; None when the server does not say.
        validator: with it the same content can be asked for later on; None when nothing names it that surely.
        state: what says that the content is still the same in another run; None when nothing does.
        read: at most so many bytes, b"" at the end; raises Passing.
        close: ends the connection.
    """

    start: int
    total: int | None
    validator: str | None
    state: dict[str, Any] | None
    read: Callable[[int], bytes]
    close: Callable[[], None]


Connect = Callable[[int, str | None], Body]  # offset, and the validator of what is there already


def connect_patiently(part: Path, connect: Connect, settings: FetchSettings, deadline: float) -> Body:
    """The first answer: it goes on with what lies in ``part``, or begins at 0; the server may fail at first.

    Raises:
        Unfetchable: it is not to be had, or not within the patience.
    """
    retries = _Retries(settings, deadline)
    while True:
        offset, note = _left_over(part)
        whole = offset == (note.state or {}).get("bytes")  # from its end on there is nothing to ask for
        try:
            body = connect(0, None) if whole else connect(offset, note.validator)
            return replace(body, state=note.state) if body.start else body  # such an answer need not tell all headers
        except Passing as passing:
            retries.pause(passing)


def begin_anew(close: Callable[[], None]) -> Body:
    """Stands for an answer that goes on with another content than what is there: nothing of either is kept."""

    def read(size: int) -> bytes:
        raise Passing("the content became another while it was read")

    return Body(0, None, None, None, read, close)


def download(
    part: Path, connect: Connect, first: Body, settings: FetchSettings, deadline: float
) -> dict[str, Any] | None:
    """Bring the whole content into ``part``, going on from what an earlier try or an earlier run left there.

    Args:
        part: the file; ``<part>.json`` beside it says of which content it is a part.
        connect: makes a connection.
        first: the first answer, of ``connect_patiently``; closed in any case.
        settings: limits.
        deadline: on the monotonic clock, in s.

    Returns:
        The state of what was brought, as in Body.

    Raises:
        Unfetchable: it is too large, or not to be had within the patience or the time. StorageError: the disk is full.
    """
    retries = _Retries(settings, deadline)
    offset, note = _left_over(part)
    state = first.state
    if not first.start and offset and offset == first.total and note.validator == first.validator:
        first.close()
        return state
    body: Body | None = first
    while True:
        try:
            body = body or connect(offset, note.validator)
            with closing(body):
                if body.total is not None and body.total > settings.max_bytes:
                    raise Unfetchable(f"too large: {body.total} bytes, and {settings.max_bytes} are allowed")
                state = state if body.start else body.state
                offset = _copy(body, part, settings.max_bytes, deadline, retries)
            if body.total is not None and offset != body.total:
                raise Passing(f"the connection ended after {offset} of {body.total} bytes")
            return state
        except Passing as passing:
            body = None
            retries.pause(passing)
            offset, note = _left_over(part)


class _Retries:
    """Growing pauses until the patience is at its end; progress starts it anew."""

    def __init__(self, settings: FetchSettings, deadline: float) -> None:
        self.patience_s, self.deadline = settings.patience_s, deadline
        self.failing_since: float | None = None
        self.pause_s, self.furthest = _FIRST_PAUSE_S, 0

    def reached(self, offset: int) -> None:
        """Bytes that came before are no progress: a server that never resumes may break at the same place for ever."""
        if offset > self.furthest:
            self.failing_since, self.pause_s, self.furthest = None, _FIRST_PAUSE_S, offset

    def pause(self, passing: Passing) -> None:
        """Wait before the next try, or raise Unfetchable."""
        now = time.monotonic()
        self.failing_since = self.failing_since or now
        left_s = self.failing_since + self.patience_s - now
        own_s = min(self.pause_s * random.uniform(0.8, 1.2), left_s)  # the last try is at the end of the patience
        pause_s = max(passing.wait_s, own_s)
        self.pause_s = min(2 * self.pause_s, _LONGEST_PAUSE_S)
        if left_s <= 0 or pause_s > left_s:
            raise Unfetchable(f"unreachable: {passing}, after {self.patience_s:g} s of trying") from None
        if now + pause_s > self.deadline:
            raise Unfetchable(f"timed out: {passing}") from None
        time.sleep(pause_s)


@dataclass(frozen=True)
class _Note:
    """Of which content a part is, written beside it."""

    validator: str | None = None
    state: dict[str, Any] | None = None


def _left_over(part: Path) -> tuple[int, _Note]:
    """How much of which content lies there; nothing when it cannot be named, for then it cannot be gone on with."""
    try:
        note = _Note(**json.loads(part.with_suffix(".json").read_bytes()))
        size = part.stat().st_size
    except (OSError, ValueError, TypeError):
        return 0, _Note()
    return (size, note) if note.validator and size else (0, _Note())


def _copy(body: Body, part: Path, max_bytes: int, deadline: float, retries: _Retries) -> int:
    """Write the body from its start on; returns the size reached."""
    try:
        if body.start == 0:
            part.unlink(missing_ok=True)  # before the note: a part must never be taken for one of another content
            write_atomic(part.with_suffix(".json"), json.dumps(asdict(_Note(body.validator, body.state))).encode())
        with open(part, "r+b" if body.start else "wb") as sink:
            sink.seek(body.start)
            sink.truncate()
            offset = body.start
            while chunk := body.read(_CHUNK_BYTES):
                sink.write(chunk)
                offset += len(chunk)
                retries.reached(offset)
                if offset > max_bytes:
                    raise Unfetchable(f"too large: more than {max_bytes} bytes")
                if time.monotonic() > deadline:
                    raise Unfetchable(f"timed out: {offset} bytes had come by then; the next run goes on from there")
            return offset
    except OSError as error:
        raise StorageError(f"{part}: {error.strerror or error}; work already done is kept") from error
