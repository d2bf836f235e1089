"""A data root below an S3 prefix: the same objects and results as in a directory, under the same names.

Endpoint and credentials come from the environment (see ``store_endpoint``). What has to be a local file is downloaded
into a cache of bounded size; scratch space is local. An S3 put becomes visible whole or not at all.
"""

from __future__ import annotations

import io
import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import StorageError
from .identity import file_md5, identity
from .storage import DataRoot, uri_md5
from .store_endpoint import StoreEndpoint

if TYPE_CHECKING:
    from minio.error import S3Error

_MISSING = ("NoSuchKey", "NoSuchObject", "ResourceNotFound")
_LOCATION = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*))?")
_PART_BYTES = 64 << 20
_RECENT_S = 300.0  # a file handed out this recently is not evicted: its reader may not have opened it yet
DEFAULT_CACHE_GIB = 20.0


class S3Root(DataRoot):
    """A data root at ``s3://bucket/prefix``.

    Args:
        location: bucket and prefix.
        endpoint: the store; by default the one the environment names, or AWS.

    Raises:
        StorageError: the location is malformed, the store does not answer, or there is no such bucket.
    """

    def __init__(self, location: str, endpoint: StoreEndpoint | None = None) -> None:
        super().__init__()
        match = _LOCATION.fullmatch(location.rstrip("/"))
        if not match:
            raise StorageError(f"{location!r} is no S3 location; write it as s3://bucket/prefix")
        self.bucket, self.prefix = match[1], (match[2] or "").strip("/")
        self.location = f"s3://{self.bucket}/{self.prefix}".rstrip("/")
        self.endpoint = endpoint or StoreEndpoint.from_environment() or _aws()
        self._client = self.endpoint.minio()
        base = Path(
            os.environ.get("SVDFLOW_CACHE_DIR") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "svdflow"
        )
        self._local = base.expanduser().resolve() / identity(
            endpoint=self.endpoint.endpoint_url, location=self.location
        )
        self._cache_bytes = int(float(os.environ.get("SVDFLOW_CACHE_GIB") or DEFAULT_CACHE_GIB) * 2**30)
        with self._errors(""):
            if not self._client.bucket_exists(self.bucket):
                raise StorageError(
                    f"{self._where('')}: there is no bucket {self.bucket!r}; create it, or correct the location"
                )

    def exists(self, uri: str) -> bool:
        from minio.error import S3Error

        with self._errors(uri):
            try:
                self._client.stat_object(self.bucket, self._key(uri))
                return True
            except S3Error as error:
                if error.code in _MISSING:
                    return False
                raise

    def read_range(self, uri: str, offset: int, length: int) -> bytes:
        from minio.error import S3Error

        if length == 0:  # to the client zero means "all of it"
            return b"" if self.exists(uri) else self._missing(uri)
        with self._errors(uri):
            try:
                return self._get(uri, offset=offset, length=max(length, 0))
            except S3Error as error:
                if error.code == "InvalidRange":  # from beyond the end: nothing, as with a file
                    return b""
                raise

    def read(self, uri: str) -> bytes:
        with self._errors(uri):
            return self._get(uri)

    def size(self, uri: str) -> int:
        with self._errors(uri):
            return int(self._client.stat_object(self.bucket, self._key(uri)).size or 0)

    def fetch(self, uri: str) -> Path:
        key = self._key(uri)
        path = self._local / "cache" / uri
        is_object = uri.startswith("files/md5/")
        if is_object and path.is_file():  # named by its content: cannot be stale
            os.utime(path)
            return path
        with self._errors(uri):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{path.name}.partial-{uuid.uuid4().hex}")
            try:
                self._client.fget_object(self.bucket, key, str(partial), tmp_file_path=f"{partial}.minio")
                if is_object and (found := file_md5(partial)) != uri_md5(uri).removesuffix(".dir"):
                    raise StorageError(
                        f"{self._where(uri)}: its content has md5 {found}, not the one it is named by; it is damaged"
                    )
                partial.chmod(0o444)
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
                Path(f"{partial}.minio").unlink(missing_ok=True)
        self._evict(keep=path)
        return path

    def list(self, prefix: str) -> Iterator[str]:
        with self._errors(prefix):
            below = self._key(prefix.rstrip("/")) + "/"
            start = len(self.prefix) + 1 if self.prefix else 0
            for item in self._client.list_objects(self.bucket, prefix=below, recursive=True):
                if item.object_name and not item.is_dir:
                    yield item.object_name[start:]

    def scratch(self, *parts: str) -> Path:
        path = self._local.joinpath("scratch", *parts)
        with self._errors(""):
            path.mkdir(parents=True, exist_ok=True)
        return path

    def _write_file(self, uri: str, path: Path) -> None:
        with self._errors(uri):
            self._client.fput_object(self.bucket, self._key(uri), str(path), part_size=_PART_BYTES)

    def _write_bytes(self, uri: str, data: bytes) -> None:
        with self._errors(uri):
            self._client.put_object(self.bucket, self._key(uri), io.BytesIO(data), len(data))

    def _get(self, uri: str, offset: int = 0, length: int = 0) -> bytes:
        response = self._client.get_object(self.bucket, self._key(uri), offset=offset, length=length)
        try:
            return response.read()
        finally:
            response.close()
            response.release_conn()

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
            path.unlink(missing_ok=True)
            excess -= size

    def _missing(self, uri: str) -> bytes:
        raise StorageError(
            f"{self._where(uri)}: the data root has no such object; it was removed, or the manifest is of another root"
        )

    def _where(self, uri: str) -> str:
        at = f" at {self.endpoint.endpoint_url}" if self.endpoint.endpoint_url else ""
        return f"s3://{self.bucket}/{self._key(uri)}".rstrip("/") + at

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


def _aws() -> StoreEndpoint:
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    keys = os.environ.get("AWS_ACCESS_KEY_ID", ""), os.environ.get("AWS_SECRET_ACCESS_KEY", "")
    return StoreEndpoint("", *keys, region=region, session_token=os.environ.get("AWS_SESSION_TOKEN", ""))


def _remedy(error: S3Error) -> str:
    if error.code in ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthorizationHeaderMalformed"):
        return (
            f"the store refuses ({error.code}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy"
        )
    if error.code == "NoSuchBucket":
        return "there is no such bucket; create it, or correct the location"
    return f"{error.code}: {error.message}"
