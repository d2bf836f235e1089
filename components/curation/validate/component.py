"""KFP interfaces of the validation: before anything is filtered, and before a selection becomes a dataset version."""

from kfp import dsl


@dsl.component(base_image="svdflow/curation:0.1.0", install_kfp_package=False)
def validate(
    videos: dsl.Input[dsl.Dataset],
    clips: dsl.Input[dsl.Dataset],
    annotations: dsl.Input[dsl.Dataset],
    page: dsl.Output[dsl.HTML],
    workdir: str,
    run_id: str,
    profile: str,
    overrides: dict,
):
    """Hold the manifests against their expectations; a broken one stops the run, with the page written.

    Args:
        videos: manifest of the source videos.
        clips: manifest of the clips.
        annotations: manifest of the annotations.
        page: what was checked, and the rows that broke it.
        workdir: the run's work directory.
        run_id: names the run.
        profile: a shipped profile or a YAML file.
        overrides: dotted setting to value.
    """
    from pathlib import Path

    from svdflow.common.steps import run_step
    from svdflow.curation.validate.settings import ValidateSettings
    from svdflow.curation.validate.validate import check_once, require_valid

    with run_step("validate", workdir, run_id, profile, overrides) as step:
        manifests = {"videos": Path(videos.path), "clips": Path(clips.path), "annotations": Path(annotations.path)}
        report = step.finish(check_once(manifests, Path(page.path), step.root, step.settings(ValidateSettings)))
        step.keep("validation.html", Path(page.path))
        require_valid(report)


@dsl.component(base_image="svdflow/curation:0.1.0", install_kfp_package=False)
def validate_selection(
    videos: dsl.Input[dsl.Dataset],
    clips: dsl.Input[dsl.Dataset],
    annotations: dsl.Input[dsl.Dataset],
    selection: dsl.Input[dsl.Dataset],
    page: dsl.Output[dsl.HTML],
    workdir: str,
    run_id: str,
    profile: str,
    overrides: dict,
):
    """Hold the selection and what it rests on against their expectations; a broken one stops the run.

    Args:
        videos: manifest of the source videos.
        clips: manifest of the clips.
        annotations: manifest of the annotations.
        selection: manifest of what is kept and in which split.
        page: what was checked, and the rows that broke it.
        workdir: the run's work directory.
        run_id: names the run.
        profile: a shipped profile or a YAML file.
        overrides: dotted setting to value.
    """
    from pathlib import Path

    from svdflow.common.steps import run_step
    from svdflow.curation.validate.settings import ValidateSettings
    from svdflow.curation.validate.validate import check_once, require_valid

    with run_step("validate_selection", workdir, run_id, profile, overrides) as step:
        manifests = {
            "videos": Path(videos.path),
            "clips": Path(clips.path),
            "annotations": Path(annotations.path),
            "selection": Path(selection.path),
        }
        settings = step.settings(ValidateSettings, "validate")
        report = step.finish(check_once(manifests, Path(page.path), step.root, settings))
        step.keep("validation_selection.html", Path(page.path))
        require_valid(report)
