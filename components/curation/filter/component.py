"""KFP interface of the filter step; its function is not called ``filter``, which is a builtin."""

from kfp import dsl


@dsl.component(base_image="svdflow/curation:0.1.0", install_kfp_package=False)
def filter_clips(
    videos: dsl.Input[dsl.Dataset],
    clips: dsl.Input[dsl.Dataset],
    annotations: dsl.Input[dsl.Dataset],
    selection: dsl.Output[dsl.Dataset],
    workdir: str,
    run_id: str,
    profile: str,
    overrides: dict,
):
    """Drop the clips that fail an axis, and split the rest by source video into train and held out.

    Args:
        videos: manifest of the source videos.
        clips: manifest of the clips.
        annotations: manifest of the annotations; each of the three is a Parquet file or a folder of them.
        selection: manifest with a decision, its reasons and a split for every clip.
        workdir: the run's work directory.
        run_id: names the run.
        profile: a shipped profile or a YAML file.
        overrides: dotted setting to value.
    """
    import json
    from pathlib import Path

    from svdflow.common.files import write_atomic
    from svdflow.common.steps import run_step
    from svdflow.curation.filter.filter import filter_clips as decide
    from svdflow.curation.filter.settings import FilterSettings

    with run_step("filter", workdir, run_id, profile, overrides) as step:
        inputs = Path(videos.path), Path(clips.path), Path(annotations.path)
        report = step.finish(decide(*inputs, Path(selection.path), step.root, step.settings(FilterSettings)))
        step.keep("manifests/selection.parquet", Path(selection.path))
        told = json.dumps(report.summary["selection"], indent=1, sort_keys=True).encode()
        write_atomic(Path(workdir) / "selection.json", told)
