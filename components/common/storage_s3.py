"""A data root below an S3 prefix: the same objects and results as in a directory, under the same names.

Endpoint and credentials come from the environment (see ``store_endpoint``). What has to be a local file is downloaded
into a cache of bounded size; scratch space is local. An S3 put becomes visible whole or not at all. A store that does
not answer is waited for, ``SVDFLOW_S3_PATIENCE_S`` seconds at most: every request can be made twice without harm.
"""

from __future__ import annotations

import fcntl
import io
import os
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from .errors import StorageError
from .identity import file_md5, identity
from .storage import DataRoot, Entry, uri_md5
from .store_endpoint import StoreEndpoint

if TYPE_CHECKING:
    from minio.error import S3Error

_MISSING = ("NoSuchKey", "NoSuchObject", "ResourceNotFound")
_LOCATION = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*))?")
_PART_BYTES = 64 << 20
_RECENT_S = 300.0  # a file handed out this recently is not evicted: its reader may not have opened it yet
DEFAULT_CACHE_GIB = 20.0
DEFAULT_PATIENCE_S = 180.0  # a server that restarts, a node that is drained
_PAUSE_S = 2.0
_PAGE = 1000
_PASSING = ("SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "OperationTimedOut")

T = TypeVar("T")


class S3Root(DataRoot):
    """A data root at ``s3://bucket/prefix``.

    Args:
        location: bucket and prefix.
        endpoint: the store; by default the one the environment names, or AWS.
        patience_s: how long a store that does not answer is waited for; SVDFLOW_S3_PATIENCE_S or 180 by default.

    Raises:
        StorageError: the location is malformed, the store does not answer, or there is no such bucket.
    """

    def __init__(self, location: str, endpoint: StoreEndpoint | None = None, patience_s: float | None = None) -> None:
        super().__init__()
        match = _LOCATION.fullmatch(location.rstrip("/"))
        if not match:
            raise StorageError(f"{location!r} is no S3 location; write it as s3://bucket/prefix")
        self.bucket, self.prefix = match[1], (match[2] or "").strip("/")
        self.location = f"s3://{self.bucket}/{self.prefix}".rstrip("/")
        self.endpoint = endpoint or StoreEndpoint.from_environment() or StoreEndpoint.aws()
        self._client = self.endpoint.minio()
        base = Path(
            os.environ.get("SVDFLOW_CACHE_DIR") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "svdflow"
        )
        self._local = base.expanduser().resolve() / identity(
            endpoint=self.endpoint.endpoint_url, location=self.location
        )
        self._cache_bytes = int(float(os.environ.get("SVDFLOW_CACHE_GIB") or DEFAULT_CACHE_GIB) * 2**30)
        if patience_s is None:
            patience_s = float(os.environ.get("SVDFLOW_S3_PATIENCE_S") or DEFAULT_PATIENCE_S)
        self._patience_s = patience_s
        self._versioned: bool | None = None
        if not self._ask("", lambda: self._client.bucket_exists(self.bucket)):
            raise StorageError(
                f"{self._where('')}: there is no bucket {self.bucket!r}; create it, or correct the location"
            )

    def exists(self, uri: str) -> bool:
        from minio.error import S3Error

        def there() -> bool:
            try:
                self._client.stat_object(self.bucket, self._key(uri))
                return True
            except S3Error as error:
                if error.code in _MISSING:
                    return False
                raise

        return self._ask(uri, there)

    def read_range(self, uri: str, offset: int, length: int) -> bytes:
        from minio.error import S3Error

        if length == 0:  # to the client zero means "all of it"
            return b"" if self.exists(uri) else self._missing(uri)

        def some() -> bytes:
            try:
                return self._get(uri, offset=offset, length=max(length, 0))
            except S3Error as error:
                if error.code == "InvalidRange":  # from beyond the end: nothing, as with a file
                    return b""
                raise

        return self._ask(uri, some)

    def read(self, uri: str) -> bytes:
        return self._ask(uri, lambda: self._get(uri))

    def size(self, uri: str) -> int:
        return self._ask(uri, lambda: int(self._client.stat_object(self.bucket, self._key(uri)).size or 0))

    def fetch(self, uri: str) -> Path:
        key = self._key(uri)
        path = self._local / "cache" / uri
        is_object = uri.startswith("files/md5/")
        if is_object and path.is_file():  # named by its content: cannot be stale
            os.utime(path)
            return path

        def download() -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            begun = path.with_name(f"{path.name}.partial-{uuid.uuid4().hex}")
            try:
                self._client.fget_object(self.bucket, key, str(begun), tmp_file_path=f"{begun}.minio")
                if is_object and (found := file_md5(begun)) != uri_md5(uri).removesuffix(".dir"):
                    raise StorageError(
                        f"{self._where(uri)}: its content has md5 {found}, not the one it is named by; it is damaged"
                    )
                begun.chmod(0o444)
                begun.replace(path)
            finally:
                begun.unlink(missing_ok=True)
                Path(f"{begun}.minio").unlink(missing_ok=True)

        self._ask(uri, download)
        self._evict(keep=path)
        return path

    @contextmanager
    def held(self, uri: str) -> Iterator[Path]:
        with self._locked(uri) as stream:
            yield Path(stream.name)

    def _locked(self, uri: str) -> IO[bytes]:
        """The cached file, open and locked against eviction. The lock goes with its holder, however that ends."""
        while True:
            path = self.fetch(uri)
            try:
                stream = open(path, "rb")
                fcntl.flock(stream, fcntl.LOCK_SH)
                if os.fstat(stream.fileno()).st_ino == path.stat().st_ino:
                    return stream
                stream.close()
            except FileNotFoundError:  # evicted in this moment
                continue

    def list(self, prefix: str) -> Iterator[str]:
        return (entry.uri for entry in self.entries(prefix))

    def entries(self, prefix: str) -> Iterator[Entry]:
        below = self._key(prefix.rstrip("/")) + "/"
        start = len(self.prefix) + 1 if self.prefix else 0
        last: str | None = None
        while page := self._ask(prefix, partial(self._page, below, last)):
            yield from (Entry(name[start:], size, written_at) for name, size, written_at in page)
            last = page[-1][0]

    def remove(self, uri: str) -> bool:
        there = self.exists(uri)
        (self._local / "cache" / uri).unlink(missing_ok=True)
        self._ask(uri, lambda: self._remove_versions(self._key(uri)))
        return there

    def scratch(self, *parts: str) -> Path:
        path = self._local.joinpath("scratch", *parts)
        with self._errors(""):
            path.mkdir(parents=True, exist_ok=True)
        return path

    def _write_file(self, uri: str, path: Path) -> None:
        self._ask(uri, lambda: self._client.fput_object(self.bucket, self._key(uri), str(path), part_size=_PART_BYTES))

    def _write_bytes(self, uri: str, data: bytes) -> None:
        self._ask(uri, lambda: self._client.put_object(self.bucket, self._key(uri), io.BytesIO(data), len(data)))

    def _get(self, uri: str, offset: int = 0, length: int = 0) -> bytes:
        response = self._client.get_object(self.bucket, self._key(uri), offset=offset, length=length)
        try:
            return response.read()
        finally:
            response.close()
            response.release_conn()

    def _page(self, below: str, after: str | None) -> Any:
        """Up to 1000 objects below a prefix that come after another in the store's order: name, bytes, time."""
        items = islice(self._client.list_objects(self.bucket, prefix=below, recursive=True, start_after=after), _PAGE)
        return [(i.object_name, i.size or 0, i.last_modified.timestamp()) for i in items if not i.is_dir]

    def _remove_versions(self, key: str) -> None:
        """Remove an object; in a bucket that keeps old versions, all of them and the marks of earlier removals."""
        if self._versioned is None:
            self._versioned = self._client.get_bucket_versioning(self.bucket).status in ("Enabled", "Suspended")
        if self._versioned:
            for item in self._client.list_objects(self.bucket, prefix=key, include_version=True):
                if item.object_name == key:
                    self._client.remove_object(self.bucket, key, version_id=item.version_id)
        else:
            self._client.remove_object(self.bucket, key)

    def _key(self, uri: str) -> str:
        if uri.startswith("/") or ".." in uri.split("/"):
            raise StorageError(f"{uri!r} is no URI of a data root")
        return f"{self.prefix}/{uri}" if self.prefix else uri

    def _evict(self, keep: Path) -> None:
        """Remove the files used longest ago until the cache is within its bound."""
        entries = []
        for path in (self._local / "cache").rglob("*"):
            try:
                status = path.stat()
            except OSError:  # evicted by another process
                continue
            if path.is_file() and path != keep:
                entries.append((status.st_mtime, status.st_size, path))
        excess = sum(size for _, size, _ in entries) + keep.stat().st_size - self._cache_bytes
        for used_at, size, path in sorted(entries):
            if excess <= 0 or time.time() - used_at < _RECENT_S:
                return
            if _unlinked_unless_held(path):
                excess -= size

    def _missing(self, uri: str) -> bytes:
        raise StorageError(
            f"{self._where(uri)}: the data root has no such object; it was removed, or the manifest is of another root"
        )

    def _where(self, uri: str) -> str:
        at = f" at {self.endpoint.endpoint_url}" if self.endpoint.endpoint_url else ""
        return f"s3://{self.bucket}/{self._key(uri)}".rstrip("/") + at

    def _ask(self, uri: str, request: Callable[[], T]) -> T:
        """Make a request; while the store does not answer, make it again."""
        import urllib3
        from minio.error import MinioException

        since = time.monotonic()
        told = False
        with self._errors(uri):
            while True:
                try:
                    return request()
                except (urllib3.exceptions.HTTPError, MinioException, ConnectionError) as error:
                    if not _passes(error) or time.monotonic() - since + _PAUSE_S > self._patience_s:
                        raise
                if not told:
                    print(f"svdflow: {self._where(uri)}: the object store does not answer; waiting", file=sys.stderr)
                    told = True
                time.sleep(_PAUSE_S)

    @contextmanager
    def _errors(self, uri: str) -> Iterator[None]:
        import urllib3
        from minio.error import MinioException, S3Error

        try:
            yield
        except S3Error as error:
            if error.code in _MISSING:
                self._missing(uri)
            raise StorageError(f"{self._where(uri)}: {_remedy(error)}") from error
        except urllib3.exceptions.HTTPError as error:
            reason = getattr(error, "reason", None) or error
            raise StorageError(
                f"{self._where(uri)}: the object store does not answer ({type(reason).__name__}); check that it runs "
                "and that SVDFLOW_S3_ENDPOINT is right, then run again: work already done is kept"
            ) from error
        except (MinioException, OSError, ValueError) as error:
            raise StorageError(f"{self._where(uri)}: {error}") from error


def _unlinked_unless_held(path: Path) -> bool:
    """Remove a cached file that no process holds; returns whether it is gone."""
    try:
        with open(path, "rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _passes(error: Exception) -> bool:
    """Whether a failure may be over in a while: nobody answers, or the store says that it is not well."""
    import urllib3
    from minio.error import InvalidResponseError, S3Error, ServerError

    if isinstance(error, S3Error):
        return error.code in _PASSING or error.response.status >= 500
    if isinstance(error, ServerError):
        return True
    if isinstance(error, InvalidResponseError):
        return error._code >= 500
    reason = getattr(error, "reason", None) or error
    return not isinstance(reason, (urllib3.exceptions.SSLError, urllib3.exceptions.LocationValueError))


def _remedy(error: S3Error) -> str:
    if error.code in ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthorizationHeaderMalformed"):
        return (
            f"the store refuses ({error.code}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy"
        )
    if error.code == "NoSuchBucket":
        return "there is no such bucket; create it, or correct the location"
    return f"{error.code}: {error.message}"
