"""KFP interfaces of the validation: of each manifest where the pipeline makes it, before anything is built on it."""

from kfp import dsl


@dsl.component(base_image="svdflow/curation:0.1.0", install_kfp_package=False)
def validate(
    videos: dsl.Input[dsl.Dataset],
    clips: dsl.Input[dsl.Dataset],
    annotations: dsl.Input[dsl.Dataset],
    page: dsl.Output[dsl.HTML],
    failing_rows: dsl.Output[dsl.Artifact],
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
        failing_rows: the rows that broke something, as JSON lines.
        workdir: the run's work directory.
        run_id: names the run.
        profile: a shipped profile or a YAML file.
        overrides: dotted setting to value.
    """
    from svdflow.curation.validate.step import validate_step

    manifests = {"videos": videos.path, "clips": clips.path, "annotations": annotations.path}
    validate_step("validate", manifests, page.path, failing_rows.path, workdir, run_id, profile, overrides)


@dsl.component(base_image="svdflow/curation:0.1.0", install_kfp_package=False)
def validate_selection(
    videos: dsl.Input[dsl.Dataset],
    clips: dsl.Input[dsl.Dataset],
    annotations: dsl.Input[dsl.Dataset],
    selection: dsl.Input[dsl.Dataset],
    page: dsl.Output[dsl.HTML],
    failing_rows: dsl.Output[dsl.Artifact],
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
        failing_rows: the rows that broke something, as JSON lines.
        workdir: the run's work directory.
        run_id: names the run.
        profile: a shipped profile or a YAML file.
        overrides: dotted setting to value.
    """
    from svdflow.curation.validate.step import validate_step

    manifests = {
        "videos": videos.path,
        "clips": clips.path,
        "annotations": annotations.path,
        "selection": selection.path,
    }
    validate_step("validate_selection", manifests, page.path, failing_rows.path, workdir, run_id, profile, overrides)


@dsl.component(base_image="svdflow/curation:0.1.0", install_kfp_package=False)
def validate_samples(
    selection: dsl.Input[dsl.Dataset],
    samples: dsl.Input[dsl.Dataset],
    page: dsl.Output[dsl.HTML],
    failing_rows: dsl.Output[dsl.Artifact],
    workdir: str,
    run_id: str,
    profile: str,
    overrides: dict,
):
    """Hold encoded samples of clips against their expectations; a broken one stops the run.

    Args:
        selection: manifest of what is kept and in which split.
        samples: manifest of the training samples.
        page: what was checked, and the rows that broke it.
        failing_rows: the rows that broke something, as JSON lines.
        workdir: the run's work directory.
        run_id: names the run.
        profile: a shipped profile or a YAML file.
        overrides: dotted setting to value.
    """
    from svdflow.curation.validate.step import validate_step

    manifests = {"selection": selection.path, "samples": samples.path}
    validate_step("validate_samples", manifests, page.path, failing_rows.path, workdir, run_id, profile, overrides)


@dsl.component(base_image="svdflow/curation:0.1.0", install_kfp_package=False)
def validate_orbits(
    orbits: dsl.Input[dsl.Dataset],
    samples: dsl.Input[dsl.Dataset],
    page: dsl.Output[dsl.HTML],
    failing_rows: dsl.Output[dsl.Artifact],
    workdir: str,
    run_id: str,
    profile: str,
    overrides: dict,
):
    """Hold rendered orbits and the samples encoded from them against their expectations; a broken one stops the run.

    Args:
        orbits: manifest of the rendered orbits.
        samples: manifest of the training samples made of them.
        page: what was checked, and the rows that broke it.
        failing_rows: the rows that broke something, as JSON lines.
        workdir: the run's work directory.
        run_id: names the run.
        profile: a shipped profile or a YAML file.
        overrides: dotted setting to value.
    """
    from svdflow.curation.validate.step import validate_step

    manifests = {"orbits": orbits.path, "samples": samples.path}
    validate_step("validate_orbits", manifests, page.path, failing_rows.path, workdir, run_id, profile, overrides)
