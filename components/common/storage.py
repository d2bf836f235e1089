"""The data root: one place where the bytes of a project lie, a local directory or an S3 prefix.

Two kinds of entries, both written once and atomically:

* objects, named by the md5 of their content under ``files/md5/ab/cdef…`` (DVC's own layout, so that a dataset version
  can point at them without a copy); a directory is a ``.dir`` object that lists its files, as DVC does it;
* results, ``results/<kind>/ab/<key>.json``: what was made from the inputs that the key names. A step that finds its
  result does not compute it again.

URIs in manifests are relative to the root, so a root can be moved.
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import md5
from pathlib import Path
from typing import Any

from .errors import StorageError
from .files import link_or_copy
from .identity import file_md5

_OBJECT = re.compile(r"files/md5/[0-9a-f]{2}/[0-9a-f]{30}(\.dir)?")


@dataclass(frozen=True)
class Entry:
    """What lies in a root: its URI, its size in bytes, and when it was written (s since 1970, by the store's clock)."""

    uri: str
    bytes: int
    written_at: float


class DataRoot(ABC):
    """Content-addressed objects and keyed results. Open one with ``DataRoot.open``."""

    location: str

    def __init__(self) -> None:
        self.writes = 0  # objects and results really written by this instance, for reuse to be seen

    @staticmethod
    def open(location: str | Path) -> DataRoot:
        """Open (and create) the data root at a directory or an ``s3://bucket/prefix``.

        Raises:
            StorageError: the directory cannot be made or written, or the bucket does not answer.
        """
        if str(location).startswith("s3://"):
            from .storage_s3 import S3Root

            return S3Root(str(location))
        from .storage_directory import DirectoryRoot

        return DirectoryRoot(Path(location))

    # what a backend provides

    @abstractmethod
    def exists(self, uri: str) -> bool:
        """Whether the entry is there."""

    @abstractmethod
    def read_range(self, uri: str, offset: int, length: int) -> bytes:
        """``length`` bytes of an entry from ``offset``."""

    @abstractmethod
    def read(self, uri: str) -> bytes:
        """An entry's bytes (for small ones)."""

    @abstractmethod
    def size(self, uri: str) -> int:
        """Bytes of an entry."""

    @abstractmethod
    def fetch(self, uri: str) -> Path:
        """A local file with the entry's content; read-only, not to be moved, to be opened at once (else ``held``)."""

    @contextmanager
    def held(self, uri: str) -> Iterator[Path]:
        """``fetch`` for work that opens the file again and again: it stays in place until the block ends."""
        yield self.fetch(uri)

    @abstractmethod
    def list(self, prefix: str) -> Iterator[str]:
        """URIs below a prefix such as ``results/split/``, in no order."""

    @abstractmethod
    def entries(self, prefix: str) -> Iterator[Entry]:
        """What ``list`` names, with sizes and times."""

    @abstractmethod
    def remove(self, uri: str) -> bool:
        """Remove an entry for good, with this machine's copies of it. Returns whether it was there."""

    @abstractmethod
    def _write_file(self, uri: str, path: Path) -> None: ...

    def _move_file(self, uri: str, path: Path) -> None:
        self._write_file(uri, path)

    @abstractmethod
    def _write_bytes(self, uri: str, data: bytes) -> None: ...

    @abstractmethod
    def scratch(self, *parts: str) -> Path:
        """A local directory for work in progress that outlives the process (checkpoints, downloads)."""

    # objects

    def put_file(self, path: Path) -> str:
        """Store a file by its content; a no-op when its content is there already. Returns its URI."""
        uri = object_uri(file_md5(path))
        if not self.exists(uri):
            self._write_file(uri, path)
            self.writes += 1
        return uri

    def adopt_file(self, path: Path, md5: str) -> str:
        """Store a file of the caller's own below ``scratch``, and remove it there: moved where that can be, not copied.

        Args:
            path: the file.
            md5: of its content, found out by the caller while it was written.

        Returns:
            Its URI.
        """
        uri = object_uri(md5)
        if not self.exists(uri):
            self._move_file(uri, path)
            self.writes += 1
        path.unlink(missing_ok=True)
        return uri

    def put_bytes(self, data: bytes, suffix: str = "") -> str:
        """Store bytes by their content; ``suffix`` is ".dir" for a directory's listing. Returns the URI."""
        uri = object_uri(md5(data, usedforsecurity=False).hexdigest() + suffix)
        if not self.exists(uri):
            self._write_bytes(uri, data)
            self.writes += 1
        return uri

    def put_named(self, uri: str, content: bytes | Path) -> None:
        """Write an entry under a name of the caller's, as a mark for others or an export; replaces what was there."""
        if isinstance(content, Path):
            self._write_file(uri, content)
        else:
            self._write_bytes(uri, content)

    def put_tree(self, directory: Path) -> str:
        """Store a directory: each file as an object, and a ``.dir`` object that lists them. Returns its URI."""
        paths = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}
        entries = [{"md5": uri_md5(self.put_file(paths[name])), "relpath": name} for name in sorted(paths)]
        return self.put_bytes(json.dumps(entries, sort_keys=True).encode(), ".dir")

    def copy_from(self, source: DataRoot, uri: str) -> bool:
        """Take an object over from another root, under the same name. Returns whether it had to be written."""
        if self.exists(uri):
            return False
        self._write_file(uri, source.fetch(uri))
        self.writes += 1
        return True

    def fetch_tree(self, uri: str) -> Path:
        """A local directory with the content of a stored one; read-only, shared between callers."""
        target = self.scratch("trees") / uri_md5(uri)
        if target.is_dir():
            return target
        partial = target.with_name(f"{target.name}.{uuid.uuid4().hex}")
        try:
            partial.mkdir(parents=True)
            for entry in json.loads(self.read(uri)):
                path = partial / entry["relpath"]
                if not path.resolve().is_relative_to(partial.resolve()):
                    raise StorageError(
                        f"{uri}: {entry['relpath']!r} leaves the directory; the listing is not to be trusted"
                    )
                path.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(self.fetch(object_uri(entry["md5"])), path)
            try:
                partial.rename(target)
            except OSError:
                if not target.is_dir():  # else another process was faster
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return target

    # results

    def find(self, kind: str, key: str) -> Any | None:
        """The recorded result, or None."""
        uri = _result_uri(kind, key)
        return json.loads(self.read(uri)) if self.exists(uri) else None

    def record(self, kind: str, key: str, value: Any) -> None:
        """Record a result (plain JSON). Record it last: what it points at must lie in the root already."""
        self._write_bytes(_result_uri(kind, key), json.dumps(value, sort_keys=True).encode())
        self.writes += 1


def object_uri(digest: str) -> str:
    """``files/md5/ab/cdef…`` for an md5 (with ``.dir`` for a directory listing)."""
    return f"files/md5/{digest[:2]}/{digest[2:]}"


def uri_md5(uri: str) -> str:
    """The md5 that an object's URI names, with ``.dir`` for a directory listing.

    Raises:
        StorageError: the URI is no object's.
    """
    if not _OBJECT.fullmatch(uri):
        raise StorageError(f"{uri!r} is not the URI of an object in a data root")
    return uri[len("files/md5/") :].replace("/", "")


def _result_uri(kind: str, key: str) -> str:
    return f"results/{kind}/{key[:2]}/{key}.json"
