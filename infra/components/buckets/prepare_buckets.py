"""Makes the buckets, with versioning and lifecycle rules; run again, it changes nothing that is already so.

Lifecycle: parts of uploads that were cut off go after a week, replaced or removed versions after 30 days (which is how
long a mistaken removal can be taken back). Current objects never expire: what is no longer needed is for
`svdflow data gc` to say.
"""

import os

from minio.commonconfig import ENABLED, Filter
from minio.lifecycleconfig import AbortIncompleteMultipartUpload, LifecycleConfig, NoncurrentVersionExpiration, Rule
from minio.versioningconfig import VersioningConfig

from svdflow.common.store_endpoint import StoreEndpoint

RULES = LifecycleConfig(
    [
        Rule(
            ENABLED,
            rule_id="cut-off-uploads",
            rule_filter=Filter(prefix=""),
            abort_incomplete_multipart_upload=AbortIncompleteMultipartUpload(days_after_initiation=7),
        ),
        Rule(
            ENABLED,
            rule_id="replaced-versions",
            rule_filter=Filter(prefix=""),
            noncurrent_version_expiration=NoncurrentVersionExpiration(noncurrent_days=30),
        ),
    ]
)


def main() -> None:
    """Prepare the buckets that the environment names."""
    endpoint = StoreEndpoint.from_environment()
    if endpoint is None:
        raise SystemExit("SVDFLOW_S3_ENDPOINT and SVDFLOW_S3_BUCKET are not set: nothing to prepare")
    client = endpoint.minio()
    for bucket in (endpoint.bucket, os.environ["SVDFLOW_RELEASES_BUCKET"]):
        if not client.bucket_exists(bucket_name=bucket):
            client.make_bucket(bucket_name=bucket, location=endpoint.region)
        client.set_bucket_versioning(bucket_name=bucket, config=VersioningConfig(ENABLED))
        client.set_bucket_lifecycle(bucket_name=bucket, config=RULES)
        print(f"{bucket}: versioning and lifecycle are set")


if __name__ == "__main__":
    main()
