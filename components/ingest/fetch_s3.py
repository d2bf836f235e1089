"""Videos in S3, through the minio SDK. Endpoint and credentials are the data root's: those of the environment."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.errors import BadInputError, StorageError
from ..common.store_endpoint import StoreEndpoint
from .fetch import Body, Connect, FetchSettings, Passing, Unfetchable, begin_anew, connect_patiently, download

if TYPE_CHECKING:
    from minio import Minio

_MISSING = ("NoSuchKey", "NoSuchObject", "NoSuchBucket", "ResourceNotFound")
_BUSY = ("SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "OperationAborted")
_CHANGED = ("PreconditionFailed", "InvalidRange")
_PATIENT_TRIES = 8  # of listings and other small requests: with the client's pauses over half a minute
_MAX_LIST_BYTES = 2**30


def connect_s3(bucket: str, key: str, settings: FetchSettings) -> Connect:
    """The connecting function of one object."""
    import urllib3
    from minio.error import MinioException, S3Error

    endpoint = source_endpoint()
    client = _client(endpoint, 1, settings.read_timeout_s)

    def connect(offset: int, validator: str | None) -> Body:
        condition: Any = {"If-Match": validator} if offset and validator else None
        try:
            response: Any = client.get_object(bucket, key, offset=offset, request_headers=condition)
        except S3Error as error:
            if error.code in _MISSING:
                raise Unfetchable(f"not found: S3 answers {error.code}") from None
            if error.code in _BUSY:
                raise Passing(f"S3 answers {error.code}") from None
            if error.code in _CHANGED and offset:
                return begin_anew(lambda: None)
            raise Unfetchable(f"refused: S3 answers {error.code}") from None
        except (urllib3.exceptions.HTTPError, MinioException, OSError):
            raise Passing("the object store does not answer") from None

        def close() -> None:
            response.close()
            response.release_conn()

        etag = response.headers.get("ETag")
        if offset and etag != validator:
            return begin_anew(close)
        length = response.headers.get("Content-Length", "")
        total = offset + int(length) if length.isdecimal() else None
        state = {"etag": etag, "bytes": total, "endpoint": endpoint.endpoint_url} if etag else None

        def read(size: int) -> bytes:
            try:
                return response.read(size)
            except (urllib3.exceptions.HTTPError, OSError):
                raise Passing("the connection to the object store broke") from None

        return Body(offset, total, etag, state, read, close)

    return connect


def keys_below(bucket: str, prefix: str) -> list[str]:
    """Keys below a prefix (without it), in their order.

    Raises:
        BadInputError: there is no such bucket, or it may not be read. StorageError: S3 does not answer.
    """
    with _errors(f"s3://{bucket}/{prefix}"):
        found = _patient().list_objects(bucket, prefix=prefix, recursive=True)
        return sorted(item.object_name[len(prefix) :] for item in found if item.object_name and not item.is_dir)


def size_of(bucket: str, key: str) -> int | None:
    """Bytes of an object, None when there is none."""
    from minio.error import S3Error

    with _errors(f"s3://{bucket}/{key}"):
        try:
            return int(_patient().stat_object(bucket, key).size or 0)
        except S3Error as error:
            if error.code in _MISSING:
                return None
            raise


def read_start(bucket: str, key: str, length: int) -> bytes:
    """The first bytes of an object, fewer when it is shorter."""
    with _errors(f"s3://{bucket}/{key}"):
        response: Any = _patient().get_object(bucket, key)
        try:
            return response.read(length)
        finally:
            response.close()
            response.release_conn()


@contextmanager
def local_copy(bucket: str, key: str) -> Iterator[Path]:
    """An object as a local file for the time of a block.

    Raises:
        BadInputError: there is no such object, it is larger than a list may be, or S3 does not answer.
    """
    settings = FetchSettings(max_bytes=_MAX_LIST_BYTES)
    deadline = time.monotonic() + settings.total_s
    connect = connect_s3(bucket, key, settings)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "list"
        try:
            download(path, connect, connect_patiently(path, connect, settings, deadline), settings, deadline)
        except Unfetchable as error:
            raise BadInputError(f"s3://{bucket}/{key}: {error}") from None
        yield path


def source_endpoint() -> StoreEndpoint:
    """The store that ``s3://`` means: the environment's, or AWS."""
    return StoreEndpoint.from_environment() or StoreEndpoint.aws()


def _patient() -> Minio:
    return _client(source_endpoint(), _PATIENT_TRIES, 60.0)


@lru_cache(maxsize=8)
def _client(endpoint: StoreEndpoint, tries: int, timeout_s: float) -> Minio:
    return endpoint.minio(tries=tries, timeout_s=timeout_s)


@contextmanager
def _errors(place: str) -> Iterator[None]:
    import urllib3
    from minio.error import MinioException, S3Error

    try:
        yield
    except S3Error as error:
        raise BadInputError(f"{place}: cannot be read, S3 answers {error.code}; check the place and the keys") from None
    except (urllib3.exceptions.HTTPError, MinioException) as error:
        raise StorageError(
            f"{place}: the object store does not answer ({type(error).__name__}); check SVDFLOW_S3_ENDPOINT"
        ) from None
