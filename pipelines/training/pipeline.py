"""The pipeline `training`: a registered dataset version in, an evaluated image-to-video model out."""

from kfp import dsl

from svdflow.evaluation.component import evaluate
from svdflow.pipelines.tasks import named
from svdflow.pipelines.train.pipeline import training_data
from svdflow.report.component import report
from svdflow.training.train.component import train


@dsl.pipeline(
    name="training",
    description="A dataset version to an evaluated image-to-video model: image, video, image to video.",
)
def training(
    workdir: str,
    dataset: str = "",
    init: str = "",
    profile: str = "local",
    overrides: dict = {},  # noqa: B006 - kfp records the default in the IR
):
    """The chain of stages.

    Args:
        workdir: a directory that all steps see; it holds registry, data root, reports and the models trained.
        dataset: a registered version, as name@v1.2.3; the newest of all when empty.
        init: an image model to start from; when empty the image stage starts as its settings say.
        profile: a shipped profile (paper, local, test) or a YAML file that every step can read.
        overrides: dotted setting to value.
    """
    run_id = dsl.PIPELINE_JOB_ID_PLACEHOLDER
    common = {"workdir": workdir, "run_id": run_id, "profile": profile, "overrides": overrides}
    told = named(report(pipeline="training", **common), "report")
    with dsl.ExitHandler(told, name="run"):
        data = training_data(dataset, common)
        given = {"samples": data.samples, "dataset": data.dataset, "mixed": data.mixed, "pictures": data.pictures}
        given |= common
        image = train(stage="image", start=init, **given).after(data.checked)
        video = train(stage="video", init=image.outputs["model"], **given)
        high_quality = train(stage="image_to_video", init=video.outputs["model"], **given)
        evaluated = evaluate(
            model=high_quality.outputs["model"],
            samples=data.samples,
            clips=data.clips,
            annotations=data.annotations,
            selection=data.selection,
            **common,
        )
        for task, name in (
            (image, "train image"),
            (video, "train video"),
            (high_quality, "train image to video"),
            (evaluated, "evaluate"),
        ):
            named(task, name)
