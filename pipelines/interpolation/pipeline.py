"""The pipeline `interpolation`: a registered dataset version in, a measured and exported interpolation model out."""

from kfp import dsl

from svdflow.evaluation.component import gate, measure_interpolation
from svdflow.export.component import export
from svdflow.pipelines.tasks import named
from svdflow.pipelines.train.pipeline import training_data
from svdflow.report.component import report
from svdflow.training.train.component import train


@dsl.pipeline(
    name="interpolation",
    description="A dataset version and a text-to-video model to an interpolation model: trained, measured, exported.",
)
def interpolation(
    workdir: str,
    init: str,
    dataset: str = "",
    profile: str = "local",
    overrides: dict = {},  # noqa: B006 - kfp records the default in the IR
):
    """The stage and what follows it.

    Args:
        workdir: a directory that all steps see; it holds registry, data root, reports, the model and the repository.
        init: the text-to-video or interpolation model to start from.
        dataset: a registered version, as name@v1.2.3; the newest of all when empty.
        profile: a shipped profile (paper, local, test) or a YAML file that every step can read.
        overrides: dotted setting to value.
    """
    run_id = dsl.PIPELINE_JOB_ID_PLACEHOLDER
    common = {"workdir": workdir, "run_id": run_id, "profile": profile, "overrides": overrides}
    told = named(report(pipeline="interpolation", **common), "report")
    with dsl.ExitHandler(told, name="run"):
        data = training_data(dataset, common)
        given = {"samples": data.samples, "dataset": data.dataset, "mixed": data.mixed, "pictures": data.pictures}
        trained = train(stage="interpolation", start=init, **given, **common).after(data.checked)
        model = trained.outputs["model"]
        measured = measure_interpolation(
            model=model, samples=data.samples, clips=data.clips, selection=data.selection, **common
        )
        passed = gate(metrics=measured.outputs["metrics"], **common)
        exported = export(model=model, metrics=passed.outputs["verdict"], **common)
        for task, name in (
            (trained, "train interpolation"),
            (measured, "measure interpolation"),
            (passed, "gate"),
            (exported, "export"),
        ):
            named(task, name)
