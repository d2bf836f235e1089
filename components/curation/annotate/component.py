"""KFP interface of the annotate step."""

from kfp import dsl


@dsl.component(base_image="svdflow/curation:0.1.0", install_kfp_package=False)
def annotate(
    videos: dsl.Input[dsl.Dataset],
    clips: dsl.Input[dsl.Dataset],
    annotations: dsl.Output[dsl.Dataset],
    workdir: str,
    run_id: str,
    profile: str,
    overrides: dict,
):
    """Measure motion, text, aesthetics and captions of every clip, and how well the captions fit.

    Args:
        videos: manifest of the source videos (for the captions that came with them).
        clips: manifest of the clips.
        annotations: manifest with one row per clip.
        workdir: the run's work directory.
        run_id: names the run.
        profile: a shipped profile or a YAML file.
        overrides: dotted setting to value.
    """
    from pathlib import Path

    from svdflow.common.steps import run_step
    from svdflow.curation.annotate.annotate import annotate_clips
    from svdflow.curation.annotate.settings import AnnotateSettings

    with run_step("annotate", workdir, run_id, profile, overrides) as step:
        settings = step.settings(AnnotateSettings)
        step.finish(annotate_clips(Path(videos.path), Path(clips.path), Path(annotations.path), step.root, settings))
        step.keep("manifests/annotations.parquet", Path(annotations.path))
