"""Export and serving check as pipeline components."""

from kfp import dsl


@dsl.component(base_image="svdflow/triton:0.1.0", install_kfp_package=False)
def export(
    model: dsl.Input[dsl.Model],
    metrics: dsl.Input[dsl.Artifact],
    repository: dsl.Output[dsl.Model],
    workdir: str,
    run_id: str,
    profile: str,
    overrides: dict,
):
    """Write a promoted model as a Triton model repository; refuse a model that the gate did not pass.

    Args:
        model: image-to-video or interpolation model directory.
        metrics: JSON of the evaluation, with the gate's verdict.
        repository: Triton model repository.
        workdir: work directory of the run.
        run_id: name of the run.
        profile: profile name or YAML path.
        overrides: dotted setting to value.
    """
    from pathlib import Path

    from svdflow.common.steps import run_step
    from svdflow.export.repository import export_repository
    from svdflow.export.settings import ExportSettings

    with run_step("export", workdir, run_id, profile, overrides) as step:
        settings = step.settings(ExportSettings)
        export_repository(Path(model.path), Path(metrics.path), Path(repository.path), settings)
        # the work directory's own repository gathers the versions of all its runs
        step.finish(export_repository(Path(model.path), Path(metrics.path), Path(workdir) / "repository", settings))


@dsl.component(base_image="svdflow/triton:0.1.0", install_kfp_package=False)
def serve(
    repository: dsl.Input[dsl.Model],
    clips: dsl.Input[dsl.Dataset],
    selection: dsl.Input[dsl.Dataset],
    generated: dsl.Output[dsl.Artifact],
    workdir: str,
    run_id: str,
    profile: str,
    overrides: dict,
):
    """Serve a model repository with Triton, send it images and check what comes back.

    Args:
        repository: Triton model repository.
        clips: manifest of clips, whose first frames are sent.
        selection: manifest of what was kept; held-out clips are sent first.
        generated: directory with served.mp4.
        workdir: work directory of the run.
        run_id: name of the run.
        profile: profile name or YAML path.
        overrides: dotted setting to value.
    """
    from pathlib import Path

    from svdflow.common.steps import run_step
    from svdflow.export.serve_check import check_serving
    from svdflow.export.settings import ServeSettings

    with run_step("serve", workdir, run_id, profile, overrides) as step:
        step.finish(
            check_serving(
                Path(repository.path),
                Path(clips.path),
                Path(selection.path),
                Path(generated.path),
                step.root,
                step.settings(ServeSettings),
            )
        )
        step.keep("generated/served.mp4", Path(generated.path) / "served.mp4")
