"""A data root in a local (or mounted) directory."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import StorageError
from .files import storage_errors
from .storage import DataRoot, Entry


class DirectoryRoot(DataRoot):
    """A data root in a local (or mounted) directory."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = directory.resolve()
        self.location = str(self.directory)
        with storage_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)

    def exists(self, uri: str) -> bool:
        return self._path(uri).is_file()

    def read_range(self, uri: str, offset: int, length: int) -> bytes:
        with storage_errors(self._path(uri)), open(self._path(uri), "rb") as stream:
            stream.seek(offset)
            return stream.read(length)

    def read(self, uri: str) -> bytes:
        with storage_errors(self._path(uri)):
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
        with storage_errors(path):
            try:
                path.unlink()
                return True
            except FileNotFoundError:
                return False

    def scratch(self, *parts: str) -> Path:
        path = self.directory.joinpath("scratch", *parts)
        with storage_errors(path):
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
        with storage_errors(target):
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
