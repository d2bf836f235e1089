"""KFP interface of the train step."""

from kfp import dsl


@dsl.component(base_image="svdflow/training:0.1.0", install_kfp_package=False)
def train(
    samples: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    stage: str,
    workdir: str,
    run_id: str,
    profile: str,
    overrides: dict,
    dataset: dsl.Input[dsl.Dataset] = None,
    init: dsl.Input[dsl.Model] = None,
):
    """Train one stage of the model.

    Args:
        samples: samples manifest.
        model: model directory, written.
        stage: image, video, image_to_video or multi_view.
        workdir: work directory of the run.
        run_id: names the run's reports.
        profile: settings profile; its section is ``train_<stage>``, on top of the paper's numbers of the stage.
        overrides: dotted settings to values.
        dataset: JSON that registering the dataset version wrote, for the model's card; none for what is not registered.
        init: model directory to start from; none for the image stage.
    """
    import json
    from pathlib import Path

    from svdflow.common.steps import run_step
    from svdflow.training.train.settings import load_stage_settings
    from svdflow.training.train.train import train_stage

    with run_step(f"train_{stage}", workdir, run_id, profile, overrides) as step:
        settings = load_stage_settings(stage, step.profile, step.overrides)
        start = Path(init.path) if init is not None else None
        version = json.loads(Path(dataset.path).read_text()) if dataset is not None else {}
        step.finish(train_stage(stage, Path(samples.path), start, Path(model.path), step.root, settings, version))
