"""KFP interfaces of dataset versions: to register one, and to take one for training."""

from kfp import dsl


@dsl.component(base_image="svdflow/curation:0.1.0", install_kfp_package=False)
def version(
    videos: dsl.Input[dsl.Dataset],
    clips: dsl.Input[dsl.Dataset],
    annotations: dsl.Input[dsl.Dataset],
    selection: dsl.Input[dsl.Dataset],
    dataset: dsl.Output[dsl.Dataset],
    workdir: str,
    run_id: str,
    profile: str,
    overrides: dict,
):
    """Register the selected clips as a dataset version: a tagged commit that plain DVC can pull.

    Args:
        videos: The videos manifest.
        clips: The clips manifest.
        annotations: The annotations manifest.
        selection: The selection manifest.
        dataset: JSON with name, tag, revision, remote and counts of the version.
        workdir: The run's work directory.
        run_id: The run's name.
        profile: Profile of settings.
        overrides: Dotted setting to value.
    """
    from pathlib import Path

    from svdflow.common.steps import run_step
    from svdflow.curation.version.register import register_dataset
    from svdflow.curation.version.settings import VersionSettings

    with run_step("version", workdir, run_id, profile, overrides) as step:
        settings = step.settings(VersionSettings)
        manifests = [Path(each.path) for each in (videos, clips, annotations, selection)]
        registry = Path(settings.registry or f"{workdir}/registry")
        store = Path(settings.store or f"{workdir}/store")
        source = f"run {step.run_id}"
        step.finish(register_dataset(*manifests, Path(dataset.path), step.root, registry, store, settings, source))


@dsl.component(base_image="svdflow/curation:0.1.0", install_kfp_package=False)
def checkout(
    videos: dsl.Output[dsl.Dataset],
    clips: dsl.Output[dsl.Dataset],
    annotations: dsl.Output[dsl.Dataset],
    selection: dsl.Output[dsl.Dataset],
    dataset: dsl.Output[dsl.Dataset],
    mixed: dsl.Output[dsl.Dataset],
    version: str,
    workdir: str,
    run_id: str,
    profile: str,
    overrides: dict,
):
    """Take a registered dataset version: its manifests, with its shards in the data root.

    Args:
        videos: The videos manifest, written.
        clips: The clips manifest, written.
        annotations: The annotations manifest, written.
        selection: The selection manifest, written.
        dataset: JSON with name, tag, revision, remote and counts of the version.
        mixed: Folder with a folder for each version of the setting ``mix``, called by its tag: its manifests.
        version: ``name@v1.2.3``; ``name`` is its newest version, empty the newest of all.
        workdir: The run's work directory.
        run_id: The run's name.
        profile: Profile of settings; the section ``version`` tells registry, store and origin.
        overrides: Dotted setting to value.
    """
    from pathlib import Path

    from svdflow.common.steps import run_step
    from svdflow.curation.version.checkout import check_out_mix, check_out_version
    from svdflow.curation.version.settings import VersionSettings

    with run_step("checkout", workdir, run_id, profile, overrides) as step:
        settings = step.settings(VersionSettings, "version")
        outputs = {"videos": videos, "clips": clips, "annotations": annotations, "selection": selection}
        manifests = {kind: Path(artifact.path) for kind, artifact in outputs.items()}
        places = Path(settings.registry or f"{workdir}/registry"), Path(settings.store or f"{workdir}/store")
        report = check_out_version(version, manifests, Path(dataset.path), step.root, *places, settings)
        check_out_mix(Path(mixed.path), step.root, *places, settings, report)
        step.finish(report)
