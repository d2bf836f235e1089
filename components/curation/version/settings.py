"""Settings of the version step."""

from __future__ import annotations

from pydantic import Field

from ...common.config import Settings

NAME_PATTERN = r"[a-z](?:[a-z0-9-]*[a-z0-9])?"  # what GTO allows as an artifact's name, without folders


class VersionSettings(Settings):
    """How a dataset version is named and where it goes. All ours: the paper is silent on data versions.

    Attributes:
        name: the dataset's name; tags read ``name@v1.2.3``.
        remote: ``s3://bucket/prefix`` that holds the bytes. By default the data root itself when that is on S3 (nothing
            is copied then), else ``datasets`` in the store's bucket.
        origin: git URL or path that versions are pushed to, and that is the truth about them; "" keeps them local. A
            path that does not exist becomes a bare repository.
        registry: the registry's directory; by default ``registry`` in the work directory.
        store: directory of the embedded object store; by default ``store`` in the work directory. Not used when the
            environment names a store (``SVDFLOW_S3_ENDPOINT``).
        uploads: objects copied at the same time.
        mix: further versions, ``name@v1.2.3``, that are checked out beside the one asked for, for stages that mix them.
    """

    name: str = Field("dataset", pattern=f"^{NAME_PATTERN}$")
    remote: str = Field("", pattern=r"^(s3://[^/]+(/.*)?)?$")
    origin: str = ""
    registry: str = ""
    store: str = ""
    uploads: int = Field(4, ge=1, le=64)
    mix: tuple[str, ...] = ()
