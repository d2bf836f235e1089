"""KFP interface of the split step."""

from kfp import dsl


@dsl.component(base_image="svdflow/curation:0.1.0", install_kfp_package=False)
def split(
    videos: dsl.Input[dsl.Dataset],
    clips: dsl.Output[dsl.Dataset],
    workdir: str,
    run_id: str,
    profile: str,
    overrides: dict,
):
    """Find the shots of all videos and cut clips out of them by stream copy.

    Args:
        videos: Manifest of the videos.
        clips: Manifest of the clips, one row per clip.
        workdir: The run's work directory or S3 prefix.
        run_id: The run's identity.
        profile: Name of the settings profile.
        overrides: Settings that replace the profile's, by dotted name.
    """
    from pathlib import Path

    from svdflow.common.steps import run_step
    from svdflow.curation.split.settings import SplitSettings
    from svdflow.curation.split.split import split_videos

    with run_step("split", workdir, run_id, profile, overrides) as step:
        step.finish(split_videos(Path(videos.path), Path(clips.path), step.root, step.settings(SplitSettings)))
        step.keep("manifests/clips.parquet", Path(clips.path))
