"""The evaluation and gate components."""

from kfp import dsl


@dsl.component(base_image="svdflow/evaluation:0.1.0", install_kfp_package=False)
def evaluate(
    model: dsl.Input[dsl.Model],
    samples: dsl.Input[dsl.Dataset],
    clips: dsl.Input[dsl.Dataset],
    annotations: dsl.Input[dsl.Dataset],
    selection: dsl.Input[dsl.Dataset],
    metrics: dsl.Output[dsl.Artifact],
    generated: dsl.Output[dsl.Artifact],
    workdir: str,
    run_id: str,
    profile: str,
    overrides: dict,
):
    """Generate the held-out clips from their first frames and measure them beside two baselines.

    Args:
        model: Directory of an image-to-video model.
        samples: Samples manifest; its held-out rows are used.
        clips: Clips manifest, for the true frames.
        annotations: Annotations manifest, for the unit of the motion scores.
        selection: Selection manifest, which says what is held out.
        metrics: JSON of figures per metric and column, and the protocol.
        generated: Directory of MP4 files: generated and true clips.
        workdir: Work directory of the run.
        run_id: Name of the run.
        profile: Profile of settings; this step reads the section "evaluate".
        overrides: Dotted settings on top of the profile.
    """
    from pathlib import Path

    from svdflow.common.steps import run_step
    from svdflow.evaluation.evaluate import evaluate_model
    from svdflow.evaluation.settings import EvaluateSettings

    with run_step("evaluate", workdir, run_id, profile, overrides) as step:
        step.finish(
            evaluate_model(
                model=Path(model.path),
                samples=Path(samples.path),
                clips=Path(clips.path),
                annotations=Path(annotations.path),
                selection=Path(selection.path),
                metrics=Path(metrics.path),
                generated=Path(generated.path),
                root=step.root,
                settings=step.settings(EvaluateSettings),
            )
        )
        step.keep("metrics.json", Path(metrics.path))
        step.keep("generated/held_out", Path(generated.path))


@dsl.component(base_image="svdflow/evaluation:0.1.0", install_kfp_package=False)
def measure_interpolation(
    model: dsl.Input[dsl.Model],
    samples: dsl.Input[dsl.Dataset],
    clips: dsl.Input[dsl.Dataset],
    selection: dsl.Input[dsl.Dataset],
    metrics: dsl.Output[dsl.Artifact],
    generated: dsl.Output[dsl.Artifact],
    workdir: str,
    run_id: str,
    profile: str,
    overrides: dict,
):
    """Make the frames between the ends of held-out windows and measure them beside baselines without a model.

    Args:
        model: Directory of an interpolation model.
        samples: Samples manifest; its held-out rows are used.
        clips: Clips manifest, for the true frames.
        selection: Selection manifest, which says what is held out.
        metrics: JSON of figures per metric and column, and the protocol.
        generated: Directory of MP4 files: made and true windows.
        workdir: Work directory of the run.
        run_id: Name of the run.
        profile: Profile of settings; this step reads the section "measure_interpolation".
        overrides: Dotted settings on top of the profile.
    """
    from pathlib import Path

    from svdflow.common.steps import run_step
    from svdflow.evaluation.interpolation import measure_interpolation
    from svdflow.evaluation.settings import InterpolationSettings

    with run_step("measure_interpolation", workdir, run_id, profile, overrides) as step:
        step.finish(
            measure_interpolation(
                model=Path(model.path),
                samples=Path(samples.path),
                clips=Path(clips.path),
                selection=Path(selection.path),
                metrics=Path(metrics.path),
                generated=Path(generated.path),
                root=step.root,
                settings=step.settings(InterpolationSettings),
            )
        )
        step.keep("interpolation.json", Path(metrics.path))
        step.keep("generated/interpolation", Path(generated.path))


@dsl.component(base_image="svdflow/evaluation:0.1.0", install_kfp_package=False)
def gate(
    metrics: dsl.Input[dsl.Artifact],
    verdict: dsl.Output[dsl.Artifact],
    workdir: str,
    run_id: str,
    profile: str,
    overrides: dict,
):
    """Let a model go on to export, or fail with the criteria that it does not meet.

    Args:
        metrics: JSON that the evaluation wrote.
        verdict: The same JSON with the gate's verdict, for the export.
        workdir: Work directory of the run.
        run_id: Name of the run.
        profile: Profile of settings; this step reads the section "gate".
        overrides: Dotted settings on top of the profile.
    """
    from pathlib import Path

    from svdflow.common.steps import run_step
    from svdflow.evaluation.gate import check_gate
    from svdflow.evaluation.settings import GateSettings

    with run_step("gate", workdir, run_id, profile, overrides) as step:
        step.finish(check_gate(Path(metrics.path), step.settings(GateSettings), Path(verdict.path)))
