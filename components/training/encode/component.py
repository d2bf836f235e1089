"""KFP interfaces of the encode steps."""

from kfp import dsl


@dsl.component(base_image="svdflow/training:0.1.0", install_kfp_package=False)
def encode(
    clips: dsl.Input[dsl.Dataset],
    annotations: dsl.Input[dsl.Dataset],
    selection: dsl.Input[dsl.Dataset],
    samples: dsl.Output[dsl.Dataset],
    workdir: str,
    run_id: str,
    profile: str,
    overrides: dict,
):
    """Encode the kept clips of a selection into training samples.

    Args:
        clips: clips manifest.
        annotations: annotations manifest.
        selection: selection manifest.
        samples: samples manifest, written.
        workdir: work directory of the run.
        run_id: names the run's reports.
        profile: settings profile; its section is ``encode``.
        overrides: dotted settings to values.
    """
    from pathlib import Path

    from svdflow.common.steps import run_step
    from svdflow.training.encode.encode import encode_clips
    from svdflow.training.encode.settings import EncodeSettings

    with run_step("encode", workdir, run_id, profile, overrides) as step:
        settings = step.settings(EncodeSettings)
        inputs = (Path(clips.path), Path(annotations.path), Path(selection.path))
        step.finish(encode_clips(*inputs, Path(samples.path), step.root, settings))


@dsl.component(base_image="svdflow/training:0.1.0", install_kfp_package=False)
def encode_orbits(
    orbits: dsl.Input[dsl.Dataset],
    samples: dsl.Output[dsl.Dataset],
    workdir: str,
    run_id: str,
    profile: str,
    overrides: dict,
):
    """Encode rendered orbits into training samples for the multi-view stage.

    Args:
        orbits: orbits manifest.
        samples: samples manifest, written.
        workdir: work directory of the run.
        run_id: names the run's reports.
        profile: settings profile; its section is ``encode_orbits``.
        overrides: dotted settings to values.
    """
    from pathlib import Path

    from svdflow.common.steps import run_step
    from svdflow.training.encode.orbits import encode_orbits
    from svdflow.training.encode.settings import EncodeSettings

    with run_step("encode_orbits", workdir, run_id, profile, overrides) as step:
        settings = step.settings(EncodeSettings)
        step.finish(encode_orbits(Path(orbits.path), Path(samples.path), step.root, settings))


@dsl.component(base_image="svdflow/training:0.1.0", install_kfp_package=False)
def encode_mix(
    mixed: dsl.Input[dsl.Dataset],
    samples: dsl.Output[dsl.Dataset],
    workdir: str,
    run_id: str,
    profile: str,
    overrides: dict,
):
    """Encode further dataset versions into training samples, to be mixed in.

    Args:
        mixed: folder with a folder of manifests for each version, called by its tag.
        samples: folder with a samples manifest for each version, written.
        workdir: work directory of the run.
        run_id: names the run's reports.
        profile: settings profile; its section is ``encode``.
        overrides: dotted settings to values.
    """
    from pathlib import Path

    from svdflow.common.steps import run_step
    from svdflow.training.encode.encode import encode_mix
    from svdflow.training.encode.settings import EncodeSettings

    with run_step("encode_mix", workdir, run_id, profile, overrides) as step:
        settings = step.settings(EncodeSettings, "encode")
        step.finish(encode_mix(Path(mixed.path), Path(samples.path), step.root, settings))


@dsl.component(base_image="svdflow/training:0.1.0", install_kfp_package=False)
def encode_images(
    samples: dsl.Output[dsl.Dataset],
    workdir: str,
    run_id: str,
    profile: str,
    overrides: dict,
):
    """Encode a folder of pictures into training samples of one frame, to be mixed in.

    Args:
        samples: samples manifest, written; it holds none where the settings name no folder.
        workdir: work directory of the run.
        run_id: names the run's reports.
        profile: settings profile; its section is ``encode_images`` on top of ``encode``, and ``source`` the folder.
        overrides: dotted settings to values.
    """
    from pathlib import Path

    from svdflow.common.config import load_profile, validate_settings
    from svdflow.common.steps import run_step
    from svdflow.training.encode.images import encode_images
    from svdflow.training.encode.settings import EncodeImagesSettings, with_image_section

    with run_step("encode_images", workdir, run_id, profile, overrides) as step:
        sections = with_image_section(load_profile(step.profile, step.overrides))
        settings = validate_settings(EncodeImagesSettings, "encode_images", sections["encode_images"])
        source = Path(settings.source) if settings.source else None
        step.finish(encode_images(source, Path(samples.path), step.root, settings))
