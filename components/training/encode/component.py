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
