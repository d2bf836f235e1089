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
    mixed: dsl.Input[dsl.Dataset] = None,
    pictures: dsl.Input[dsl.Dataset] = None,
    init: dsl.Input[dsl.Model] = None,
    start: str = "",
):
    """Train one stage of the model.

    Args:
        samples: samples manifest.
        model: model directory, written.
        stage: a preset (``training/stages``), or the kind of one.
        workdir: work directory of the run.
        run_id: names the run's reports.
        profile: settings profile; its section is ``train_<stage>``, on top of the paper's numbers of the stage.
        overrides: dotted settings to values.
        dataset: JSON that registering the dataset version wrote, for the model's card; none for what is not registered.
        mixed: folder with the samples manifests of further dataset versions, for the setting ``mix``.
        pictures: samples manifest of pictures; stages that take single frames mix it in.
        init: model directory to start from; none for the image stage.
        start: a model directory to start from that no task made, or a repository of a hub; empty when there is none.
    """
    import json
    from pathlib import Path

    from svdflow.common.steps import run_step
    from svdflow.diffusion.hub import resolve_model
    from svdflow.training.train.datasets import resolve_mix
    from svdflow.training.train.presets import kind_of, stage_overrides
    from svdflow.training.train.settings import load_stage_settings
    from svdflow.training.train.train import train_stage

    kind = kind_of(stage)
    with run_step(f"train_{kind}", workdir, run_id, profile, stage_overrides(stage, overrides)) as step:
        further = [Path(given.path) if given is not None else None for given in (mixed, pictures)]
        settings = resolve_mix(kind, load_stage_settings(kind, step.profile, step.overrides), *further)
        begin = Path(init.path) if init is not None else resolve_model(start) if start else None
        version = json.loads(Path(dataset.path).read_text()) if dataset is not None else {}
        step.finish(train_stage(kind, Path(samples.path), begin, Path(model.path), step.root, settings, version))
        step.keep_links(f"models/{stage}", Path(model.path))
