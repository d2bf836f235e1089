"""One place taken in: its bytes brought, named by their content, probed and stored. Runs in worker processes.

Where footage is probed in pods of its own, a step brings the bytes alone (``Errand.probe_later``), and pods, which
reach nothing but the data root, probe what was brought (``verdict.probe_brought``).

Three things are kept, and found again: under a place and its state (ETag, size, times) which content it has; under the
content what it is; and under the place what of it was fetched before the work broke off.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..common.errors import BadInputError, StorageError
from ..common.fanout import in_pods
from ..common.files import write_atomic
from ..common.identity import CHUNK_BYTES, identity
from ..common.storage import DataRoot
from .examine import ProbeSettings
from .fetch import FetchSettings, Unfetchable, connect_patiently, download
from .fetch_http import connect_http
from .fetch_s3 import connect_s3
from .sources import is_remote
from .uris import same_place, scheme_of, split_s3
from .verdict import Content, examine_bounded, find_verdict, keep

VERSION = "1"
_SETTLED_S = 2.0  # a file changed this recently may change again without its time showing it
_ABANDONED_S = 7 * 86_400.0  # what was fetched of a place that nobody asked for since


@dataclass(frozen=True)
class Errand:
    """A place for a worker to take in.

    Attributes:
        usable: whether a licence lets its bytes be kept.
        probe_later: bring the bytes into the data root and decode nothing of them.
    """

    place: str = field(repr=False)
    usable: bool
    root: str
    fetch: FetchSettings
    probe: ProbeSettings
    timeout_s: float
    probe_later: bool = False


@dataclass(frozen=True)
class Taken:
    """What became of a place: a fault (``<short name>: <why>``), or a content and, if it is usable, the verdict on it.

    ``fetched`` is the number of bytes that were brought over the network's or the folder's border in this run.
    ``brought`` is the URI of bytes that are still to be probed; ``written`` whether they were not there before.
    """

    fault: str | None = None
    content: Content | None = None
    verdict: dict[str, Any] | None = None
    fetched: int = 0
    examined: bool = False
    brought: str | None = None
    written: bool = False

    @staticmethod
    def from_plain(values: dict[str, Any]) -> Taken:
        """Inverse of ``dataclasses.asdict``."""
        content = values["content"]
        return Taken(**{**values, "content": Content(**content) if content else None})


@in_pods
def take(errand: Errand) -> Taken:
    """Take one place in.

    Raises:
        StorageError: the data root cannot be written. BadInputError: a fault of ours, told without the place.
    """
    root = DataRoot.open(errand.root)
    try:
        if not is_remote(errand.place):
            return _take_file(Path(errand.place), root, errand)
        with _locked_scratch(root, errand.place) as scratch:
            return _take_remote(scratch, root, errand)
    except Unfetchable as error:
        return Taken(fault=str(error))
    except (StorageError, BadInputError):
        raise
    except Exception as error:  # the message of a library may hold the URL and what signs it
        if is_remote(errand.place):
            raise BadInputError(f"{type(error).__name__} while it was taken in") from None
        raise


def find_known_file(path: str, root: DataRoot, probe: ProbeSettings, usable: bool = True) -> Taken | None:
    """What is known of a local file that has not changed since, without reading it."""
    state = _file_state(Path(path))
    found = state and root.find("fetch", _place_key(path, state))
    if not found:
        return None
    content = Content(**found)
    verdict = find_verdict(root, content, probe) if usable else None
    return None if usable and verdict is None else Taken(content=content, verdict=verdict)


def content_after_crash(place: str, root: DataRoot) -> Content | None:
    """The content of a place whose worker died while it probed it."""
    try:
        if not is_remote(place):
            return _content_of(Path(place))
        return Content(**json.loads((_scratch(root, place) / "content.json").read_bytes()))
    except (OSError, ValueError, TypeError, Unfetchable):
        return None


def sweep_abandoned(root: DataRoot) -> None:
    """Remove what was fetched in part long ago, of places that were not asked for since."""
    for path in root.scratch("ingest").iterdir():
        try:
            if time.time() - path.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError:
            continue  # another run was faster


# local files


def _take_file(path: Path, root: DataRoot, errand: Errand) -> Taken:
    state = _file_state(path)
    found = state and root.find("fetch", _place_key(str(path), state))
    content = Content(**found) if found else _content_of(path, errand.fetch.max_bytes)
    if state and not found and time.time() - path.stat().st_mtime > _SETTLED_S and state == _file_state(path):
        root.record("fetch", _place_key(str(path), state), asdict(content))
    verdict = find_verdict(root, content, errand.probe)
    if verdict or not errand.usable:
        return Taken(content=content, verdict=verdict if errand.usable else None, fetched=0 if found else content.bytes)
    found_out = {} if errand.probe_later else examine_bounded(path, errand.probe, errand.timeout_s)
    if "error" in found_out and _content_of(path) != content:
        raise Unfetchable("changed: the file became another while it was read")
    copy = None
    if "error" not in found_out:
        copy = root.scratch("ingest") / f"copy-{uuid.uuid4().hex}"
    try:
        if copy and _copy(path, copy) != content:
            raise Unfetchable("changed: the file became another while it was read")
        if errand.probe_later:
            assert copy is not None
            return _brought(copy, content, content.bytes, root)
        verdict = keep(found_out, content, copy, root, errand.probe)
    finally:
        if copy:
            copy.unlink(missing_ok=True)
    return Taken(content=content, verdict=verdict, fetched=content.bytes, examined=True)


def _file_state(path: Path) -> dict[str, Any] | None:
    """What says that a file is unchanged; None when it cannot be read at all."""
    try:
        status = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return {
        "bytes": status.st_size,
        "changed": [status.st_mtime_ns, status.st_ctime_ns],
        "file": [status.st_dev, status.st_ino],
    }


def _content_of(path: Path, max_bytes: int | None = None) -> Content:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for, a device has no end
            raise Unfetchable("unreadable: no regular file")
        if max_bytes is not None and status.st_size > max_bytes:
            raise Unfetchable(f"too large: {status.st_size} bytes, and {max_bytes} are allowed")
        return _read(path, None)
    except OSError as error:
        raise Unfetchable(f"unreadable: {error.strerror or error}") from None


def _copy(path: Path, copy: Path) -> Content:
    try:
        sink = open(copy, "xb")
    except OSError as error:
        raise StorageError(f"{copy}: {error.strerror or error}") from error
    with sink:
        try:
            return _read(path, sink)
        except _WriteError as error:
            raise StorageError(f"{copy}: {error}; free some space and run again, work already done is kept") from error
        except OSError as error:
            raise Unfetchable(f"unreadable: {error.strerror or error}") from None


class _WriteError(Exception):
    pass


def _read(path: Path, sink: Any) -> Content:
    """Read a file once: its hashes, and a copy of it if there is a sink."""
    sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    with open(path, "rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            sha256.update(chunk)
            md5.update(chunk)
            size += len(chunk)
            if sink is not None:
                try:
                    sink.write(chunk)
                except OSError as error:
                    raise _WriteError(error.strerror or str(error)) from error
    return Content(sha256.hexdigest(), md5.hexdigest(), size)


# places afar


def _take_remote(scratch: Path, root: DataRoot, errand: Errand) -> Taken:
    deadline = time.monotonic() + errand.fetch.total_s
    located = split_s3(errand.place) if scheme_of(errand.place) == "s3" else None
    connect = connect_s3(*located, errand.fetch) if located else connect_http(errand.place, errand.fetch)
    part = scratch / "part"
    first = connect_patiently(part, connect, errand.fetch, deadline)
    try:
        found = first.state and root.find("fetch", _place_key(errand.place, first.state))
        content = Content(**found) if found else None
        verdict = content and find_verdict(root, content, errand.probe)
    except BaseException:
        first.close()
        raise
    if verdict:
        first.close()
        shutil.rmtree(scratch)
        return Taken(content=content, verdict=verdict)
    before = part.stat().st_size if part.is_file() else 0
    state = download(part, connect, first, errand.fetch, deadline)
    content = _read(part, None)
    if state:
        root.record("fetch", _place_key(errand.place, state), asdict(content))
    write_atomic(scratch / "content.json", json.dumps(asdict(content)).encode())
    verdict = find_verdict(root, content, errand.probe)
    examined, fetched = verdict is None, max(content.bytes - before, 0)
    if verdict is None and errand.probe_later:
        brought = _brought(part, content, fetched, root)
        shutil.rmtree(scratch)
        return brought
    if verdict is None:
        verdict = keep(examine_bounded(part, errand.probe, errand.timeout_s), content, part, root, errand.probe)
    shutil.rmtree(scratch)
    return Taken(content=content, verdict=verdict, fetched=fetched, examined=examined)


def _scratch(root: DataRoot, place: str) -> Path:
    return root.scratch("ingest", identity(place=same_place(place)))


@contextmanager
def _locked_scratch(root: DataRoot, place: str) -> Iterator[Path]:
    """The folder of a place, held by this process alone: two runs may share a data root."""
    scratch, handle = _locked_folder(root, place)
    try:
        yield scratch
    finally:
        os.close(handle)


def _locked_folder(root: DataRoot, place: str) -> tuple[Path, int]:
    while True:
        scratch = _scratch(root, place)
        try:
            handle = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # its last holder removed it in this moment
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if os.fstat(handle).st_ino == scratch.stat().st_ino:  # else that was the folder of its last holder
                os.utime(scratch)
                return scratch, handle
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


# any content


def _place_key(place: str, state: dict[str, Any]) -> str:
    return identity(place=same_place(place), state=state, version=VERSION)


def _brought(own: Path, content: Content, fetched: int, root: DataRoot) -> Taken:
    before = root.writes
    uri = root.adopt_file(own, content.md5)
    return Taken(content=content, fetched=fetched, brought=uri, written=root.writes > before)
