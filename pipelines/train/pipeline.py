"""The pipeline `train`: one training stage on a registered dataset version."""

from dataclasses import dataclass

from kfp import dsl
from kfp.dsl.pipeline_channel import PipelineChannel

from svdflow.curation.validate.component import validate_samples
from svdflow.curation.version.component import checkout
from svdflow.pipelines.tasks import named
from svdflow.report.component import report
from svdflow.training.encode.component import encode, encode_images, encode_mix
from svdflow.training.train.component import train as train_stage


@dataclass(frozen=True)
class TrainingData:
    """What the tasks before a stage give to it: manifests, the dataset's version, and the check of the samples."""

    clips: PipelineChannel
    annotations: PipelineChannel
    selection: PipelineChannel
    dataset: PipelineChannel
    samples: PipelineChannel
    mixed: PipelineChannel
    pictures: PipelineChannel
    checked: dsl.PipelineTask


def training_data(dataset: PipelineChannel, common: dict[str, PipelineChannel]) -> TrainingData:
    """Add the tasks that make a dataset version ready for training to the pipeline that is being defined.

    Args:
        dataset: ``name@v1.2.3``; ``name`` is its newest version, empty the newest of all.
        common: ``workdir``, ``run_id``, ``profile`` and ``overrides``, which every task takes.
    """
    taken = checkout(version=dataset, **common)
    clips, annotations, selection = (taken.outputs[kind] for kind in ("clips", "annotations", "selection"))
    encoded = encode(clips=clips, annotations=annotations, selection=selection, **common)
    samples = encoded.outputs["samples"]
    checked = validate_samples(selection=selection, samples=samples, **common)
    further = encode_mix(mixed=taken.outputs["mixed"], **common).after(checked)  # refused samples end it before
    pictures = encode_images(**common).after(further)  # needs nothing of it: encoders take a machine's memory
    for task, name in (
        (taken, "check out dataset"),
        (encoded, "encode"),
        (checked, "validate samples"),
        (further, "encode mixed datasets"),
        (pictures, "encode images"),
    ):
        named(task, name)
    return TrainingData(
        clips,
        annotations,
        selection,
        taken.outputs["dataset"],
        samples,
        further.outputs["samples"],
        pictures.outputs["samples"],
        checked,
    )


@dsl.pipeline(
    name="train-stage",  # kfp takes a pipeline that has a component's name for that component when it loads the IR
    description="One training stage on a registered dataset version, with its report.",
)
def train(
    workdir: str,
    stage: str,
    dataset: str = "",
    init: str = "",
    profile: str = "local",
    overrides: dict = {},  # noqa: B006 - kfp records the default in the IR
):
    """One stage.

    Args:
        workdir: a directory that all steps see; it holds registry, data root, reports and the models trained.
        stage: a preset of training/stages.
        dataset: a registered version, as name@v1.2.3; the newest of all when empty.
        init: the model directory to start from; none for the image stages.
        profile: a shipped profile (paper, local, test) or a YAML file that every step can read.
        overrides: dotted setting to value.
    """
    run_id = dsl.PIPELINE_JOB_ID_PLACEHOLDER
    common = {"workdir": workdir, "run_id": run_id, "profile": profile, "overrides": overrides}
    told = named(report(pipeline="train", **common), "report")
    with dsl.ExitHandler(told, name="run"):
        data = training_data(dataset, common)
        given = {"samples": data.samples, "dataset": data.dataset, "mixed": data.mixed, "pictures": data.pictures}
        trained = train_stage(stage=stage, start=init, **given, **common)
        named(trained.after(data.checked), "train")
