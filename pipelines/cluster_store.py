"""The object store as `svdflow doctor --cluster` sees it: from where its address and a key are, as at the console."""

from __future__ import annotations

import os
from collections.abc import Iterator

from svdflow.common.errors import StorageError
from svdflow.common.store_endpoint import StoreEndpoint

_TIMEOUT_S = 10.0
_MAKE = "kubectl apply -k infra/overlays/… (components/buckets)"


def buckets() -> Iterator[tuple[str, bool | None, str, str]]:
    """What is asked, whether it is so (None: it cannot be told here), what was seen, the remedy. Nothing is written."""
    from minio.error import MinioException, S3Error
    from urllib3.exceptions import HTTPError

    endpoint = StoreEndpoint.from_environment()
    if endpoint is None:
        yield "object store", None, "no address here", "run this at the console, or set SVDFLOW_S3_ENDPOINT and a key"
        return
    where = endpoint.endpoint_url or "AWS S3"
    for name in dict.fromkeys((endpoint.bucket, os.environ.get("SVDFLOW_RELEASES_BUCKET") or endpoint.bucket)):
        what = f"bucket {name}"
        try:
            client = endpoint.minio(tries=1, timeout_s=_TIMEOUT_S)
            if not client.bucket_exists(bucket_name=name):
                yield what, False, f"not at {where}", _MAKE
                continue
            versions = client.get_bucket_versioning(bucket_name=name).status
            yield what, versions == "Enabled", f"{where}, versioning {str(versions or 'off').lower()}", _MAKE
        except S3Error as error:
            if error.code in ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
                yield (
                    what,
                    False,
                    f"{where}: {error.code}",
                    "let the key in the secret svdflow-object-store in, or correct it",
                )
            else:
                yield what, False, f"{where}: {error.code}", "see the store's own log"
        except (MinioException, StorageError, HTTPError, OSError, ValueError) as error:
            told = str(error) if isinstance(error, StorageError) else f"{where}: no answer ({type(error).__name__})"
            yield what, False, told, "see SVDFLOW_S3_ENDPOINT in ConfigMap svdflow-object-store, and the policies"
