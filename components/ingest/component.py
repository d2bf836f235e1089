"""KFP interface of the ingest step."""

from kfp import dsl


@dsl.component(base_image="svdflow/curation:0.1.0", install_kfp_package=False)
def ingest(videos: dsl.Output[dsl.Dataset], source: str, workdir: str, run_id: str, profile: str, overrides: dict):
    """Take raw footage in: bring, name by content, probe and store every video that a source names.

    Args:
        videos: Manifest of the videos, one row per content.
        source: Folder of video files, s3://bucket/prefix, or a list (.csv or .parquet with a column uri); may be empty
            when the profile generates footage.
        workdir: The run's work directory or S3 prefix.
        run_id: The run's identity.
        profile: Name of the settings profile.
        overrides: Settings that replace the profile's, by dotted name.
    """
    from pathlib import Path

    from svdflow.common.steps import run_step
    from svdflow.ingest.ingest import IngestSettings, ingest_videos

    with run_step("ingest", workdir, run_id, profile, overrides) as step:
        step.finish(ingest_videos(source, Path(videos.path), step.root, step.settings(IngestSettings)))
        step.keep("manifests/videos.parquet", Path(videos.path))
