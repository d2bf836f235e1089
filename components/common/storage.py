"""The data root: one place where the bytes of a project lie, a local directory or an S3 prefix.

Two kinds of entries, both written once and atomically:

* objects, named by the md5 of their content under ``files/md5/ab/cdef…`` (DVC's own layout, so that a dataset version
  can point at them without a copy); a directory is a ``.dir`` object that lists its files, as DVC does it;
* results, ``results/<kind>/ab/<key>.json``: what was made from the inputs that the key names. A step that finds its
  result does not compute it again.

URIs in manifests are relative to the root, so a root can be moved.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import md5
from pathlib import Path
from typing import IO, Any

from .errors import StorageError
from .identity import file_md5

DISK_FULL = "the disk is full: free some space and run again, work already done is kept"
_STORAGE_FAULTS = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENOENT, errno.EACCES, errno.EPERM, errno.EMFILE,
    errno.ENFILE, errno.EBADF, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.EFBIG,
)  # fmt: skip
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


class DirectoryRoot(DataRoot):
    """A data root in a local (or mounted) directory."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = directory.resolve()
        self.location = str(self.directory)
        with _storage_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)

    def exists(self, uri: str) -> bool:
        return self._path(uri).is_file()

    def read_range(self, uri: str, offset: int, length: int) -> bytes:
        with _storage_errors(self._path(uri)), open(self._path(uri), "rb") as stream:
            stream.seek(offset)
            return stream.read(length)

    def read(self, uri: str) -> bytes:
        with _storage_errors(self._path(uri)):
            return self._path(uri).read_bytes()

    def size(self, uri: str) -> int:
        return self.fetch(uri).stat().st_size

    def fetch(self, uri: str) -> Path:
        path = self._path(uri)
        if not path.is_file():
            raise StorageError(
                f"{path}: the data root has no such object; it was removed, or the manifest is of another root"
            )
        return path

    def list(self, prefix: str) -> Iterator[str]:
        for path in (self.directory / prefix).rglob("*"):
            if path.is_file() and ".partial-" not in path.name:
                yield path.relative_to(self.directory).as_posix()

    def entries(self, prefix: str) -> Iterator[Entry]:
        for uri in self.list(prefix):
            try:
                status = self._path(uri).stat()
            except FileNotFoundError:  # removed meanwhile
                continue
            yield Entry(uri, status.st_size, status.st_mtime)

    def remove(self, uri: str) -> bool:
        path = self._path(uri)
        with _storage_errors(path):
            try:
                path.unlink()
                return True
            except FileNotFoundError:
                return False

    def scratch(self, *parts: str) -> Path:
        path = self.directory.joinpath("scratch", *parts)
        with _storage_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        return path

    def _write_file(self, uri: str, path: Path) -> None:
        with self._writing(uri) as partial:
            shutil.copyfile(path, partial)

    def _move_file(self, uri: str, path: Path) -> None:
        with self._writing(uri) as partial:
            shutil.move(path, partial)  # a rename: scratch lies below the same directory

    def _write_bytes(self, uri: str, data: bytes) -> None:
        with self._writing(uri) as partial:
            partial.write_bytes(data)

    @contextmanager
    def _writing(self, uri: str) -> Iterator[Path]:
        target = self._path(uri)
        with _storage_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f"{target.name}.partial-{uuid.uuid4().hex}")
            try:
                yield partial
                if uri.startswith("files/"):
                    partial.chmod(0o444)  # objects are linked into many places: nobody may change one in place
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)

    def _path(self, uri: str) -> Path:
        if uri.startswith("/") or ".." in uri.split("/"):
            raise StorageError(f"{uri!r} is no URI of a data root")
        return self.directory / uri


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


def write_atomic(path: Path, data: bytes) -> None:
    """Write a plain file so that readers see the old or the new content, never a part."""
    with atomic_file(path) as stream:
        stream.write(data)


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A stream to write a plain file with; it takes its name when all is well, and is gone otherwise.

    Raises:
        StorageError: the disk is full or not writable.
    """
    with _storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                yield stream
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it where the file system does not allow that."""
    try:
        os.link(source, target)
    except FileExistsError:
        return
    except OSError:
        shutil.copyfile(source, target)


def link_tree(tree: Path, out: Path) -> None:
    """Make ``out`` a directory with the files of ``tree``, hard links where that is possible."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for path in sorted(p for p in tree.rglob("*") if p.is_file()):
        target = out / path.relative_to(tree)
        target.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(path, target)


def _result_uri(kind: str, key: str) -> str:
    return f"results/{kind}/{key[:2]}/{key}.json"


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise storage_error(path, error) from error


def storage_error(path: Path | str, error: OSError) -> StorageError:
    """An error of the operating system as one line with its remedy."""
    remedies = {
        errno.ENOSPC: DISK_FULL,
        errno.EDQUOT: DISK_FULL,
        errno.EROFS: "the file system is read-only: choose another --workdir",
        errno.EACCES: "no permission: choose another --workdir or change its owner",
        errno.EPERM: "no permission: choose another --workdir or change its owner",
    }
    return StorageError(f"{path}: {remedies.get(error.errno or 0, error.strerror or str(error))}")


def is_storage_fault(error: BaseException) -> bool:
    """Whether an error tells of disk, permissions or descriptors, whoever met it, and so nothing of what was read."""
    return isinstance(error, OSError) and error.errno in _STORAGE_FAULTS


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that there is no space left, whoever met it (Arrow's own errors keep only the text)."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or os.strerror(errno.ENOSPC) in str(error)
