"""The render and multi-view measurement components."""

from kfp import dsl


@dsl.component(base_image="svdflow/training:0.1.0", install_kfp_package=False)
def render(orbits: dsl.Output[dsl.Dataset], objects: str, workdir: str, run_id: str, profile: str, overrides: dict):
    """Render 3D objects as orbits of views at constant elevation.

    Args:
        orbits: Orbits manifest.
        objects: Folder of GLB and OBJ files; empty for generated objects.
        workdir: Work directory of the run.
        run_id: Name of the run.
        profile: Profile of settings; this step reads the section "render".
        overrides: Dotted settings on top of the profile.
    """
    from pathlib import Path

    from svdflow.common.steps import run_step
    from svdflow.multiview.render import render_orbits
    from svdflow.multiview.settings import RenderSettings

    with run_step("render", workdir, run_id, profile, overrides) as step:
        step.finish(render_orbits(objects, Path(orbits.path), step.root, step.settings(RenderSettings)))
        step.keep("manifests/orbits.parquet", Path(orbits.path))


@dsl.component(base_image="svdflow/evaluation:0.1.0", install_kfp_package=False)
def measure_multiview(
    model: dsl.Input[dsl.Model],
    before: dsl.Input[dsl.Model],
    orbits: dsl.Input[dsl.Dataset],
    workdir: str,
    run_id: str,
    profile: str,
    overrides: dict,
):
    """Generate the orbits of held-out objects from one view and compare them with the rendered ones.

    Args:
        model: Directory of the multi-view model.
        before: Directory of the model that the multi-view training started from.
        orbits: Orbits manifest; its held-out rows are used.
        workdir: Work directory of the run.
        run_id: Name of the run.
        profile: Profile of settings; this step reads the section "multiview".
        overrides: Dotted settings on top of the profile.
    """
    from pathlib import Path

    from svdflow.common.steps import run_step
    from svdflow.multiview.measure import measure_orbits
    from svdflow.multiview.settings import MeasureSettings

    with run_step("measure_multiview", workdir, run_id, profile, overrides) as step:
        settings = step.settings(MeasureSettings, "multiview")
        step.finish(measure_orbits(Path(model.path), Path(before.path), Path(orbits.path), step.root, settings))
