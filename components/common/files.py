"""Plain files on a disk: written whole or not at all, linked where that is possible; and what a disk's errors mean."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from .errors import StorageError

DISK_FULL = "the disk is full: free some space and run again, work already done is kept"
_STORAGE_FAULTS = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENOENT, errno.EACCES, errno.EPERM, errno.EMFILE,
    errno.ENFILE, errno.EBADF, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.EFBIG,
)  # fmt: skip


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
    with storage_errors(path):
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


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Meanwhile an error of the operating system is one line with its remedy, see ``storage_error``."""
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
