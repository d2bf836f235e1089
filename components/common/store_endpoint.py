"""Where an S3 store is, and how to be let in.

``SVDFLOW_S3_ENDPOINT`` (or ``AWS_ENDPOINT_URL_S3``) names the service, ``SVDFLOW_S3_BUCKET`` the bucket, and the AWS
variables the credentials. With a bucket alone the service is AWS.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .errors import StorageError

if TYPE_CHECKING:
    from minio import Minio

DEFAULT_BUCKET = "svdflow"


@dataclass(frozen=True)
class StoreEndpoint:
    """Where a store is and how to be let in.

    ``endpoint_url`` is empty for AWS itself; the keys are empty where the surroundings provide them (IAM).
    """

    endpoint_url: str
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    bucket: str = DEFAULT_BUCKET
    region: str = "us-east-1"
    session_token: str = field(default="", repr=False)

    @staticmethod
    def from_environment() -> StoreEndpoint | None:
        """The store the environment names, or None when it names none."""
        env = os.environ
        url = env.get("SVDFLOW_S3_ENDPOINT") or env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL") or ""
        bucket = env.get("SVDFLOW_S3_BUCKET", "")
        if not url and not bucket:
            return None
        region = env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or "us-east-1"
        keys = env.get("AWS_ACCESS_KEY_ID", ""), env.get("AWS_SECRET_ACCESS_KEY", "")
        return StoreEndpoint(url.rstrip("/"), *keys, bucket or DEFAULT_BUCKET, region, env.get("AWS_SESSION_TOKEN", ""))

    @staticmethod
    def aws() -> StoreEndpoint:
        """AWS S3, with the credentials of the environment or of the surroundings."""
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        keys = os.environ.get("AWS_ACCESS_KEY_ID", ""), os.environ.get("AWS_SECRET_ACCESS_KEY", "")
        return StoreEndpoint("", *keys, region=region, session_token=os.environ.get("AWS_SESSION_TOKEN", ""))

    def minio(self, tries: int = 5, timeout_s: float = 120.0) -> Minio:
        """A client. Requests are tried ``tries`` times, over a few seconds; none waits longer than ``timeout_s``.

        Raises:
            StorageError: the endpoint is no http(s) URL, or there are no credentials.
        """
        import minio
        import urllib3

        url = urlsplit(self.endpoint_url or f"https://s3.{self.region}.amazonaws.com")
        if url.scheme not in ("http", "https") or not url.netloc or url.path.strip("/"):
            raise StorageError(f"SVDFLOW_S3_ENDPOINT={self.endpoint_url!r}: write it as http(s)://host[:port]")
        retries = urllib3.Retry(total=tries - 1, backoff_factor=0.3, status_forcelist=[500, 502, 503, 504])
        timeout = urllib3.Timeout(connect=min(10.0, timeout_s), read=timeout_s)
        pool = urllib3.PoolManager(timeout=timeout, retries=retries, maxsize=16, cert_reqs="CERT_REQUIRED")
        return minio.Minio(
            url.netloc, secure=url.scheme == "https", region=self.region, http_client=pool, credentials=self._provider()
        )

    def environment(self) -> dict[str, str]:
        """Variables for programs that use the store: boto3, DVC, the AWS command line, and svdflow itself."""
        variables = {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_SESSION_TOKEN": self.session_token,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_ENDPOINT_URL_S3": self.endpoint_url,
            "SVDFLOW_S3_ENDPOINT": self.endpoint_url,
            "SVDFLOW_S3_BUCKET": self.bucket,
        }
        host = urlsplit(self.endpoint_url).hostname
        if host in ("127.0.0.1", "localhost"):
            for name in ("NO_PROXY", "no_proxy"):
                variables[name] = ",".join(filter(None, [os.environ.get(name), host]))
        return {name: value for name, value in variables.items() if value}

    def _provider(self) -> Any:
        from minio import credentials

        if self.access_key and self.secret_key:
            return credentials.StaticProvider(self.access_key, self.secret_key, self.session_token or None)
        ambient = (
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        )
        if any(os.environ.get(name) for name in ambient):
            return credentials.IamAwsProvider()
        if Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials").expanduser().is_file():
            return credentials.AWSConfigProvider()
        where = self.endpoint_url or "AWS S3"
        raise StorageError(f"{where}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
