"""The pipeline `svd`: raw video in, served video model out."""

from kfp import dsl

from svdflow.curation.validate.component import validate_orbits, validate_samples
from svdflow.evaluation.component import evaluate, gate
from svdflow.export.component import export, serve
from svdflow.multiview.component import measure_multiview, render
from svdflow.pipelines.curation.pipeline import curate
from svdflow.pipelines.tasks import named
from svdflow.report.component import report
from svdflow.training.encode.component import encode, encode_orbits
from svdflow.training.train.component import train


@dsl.pipeline(
    name="svd",
    description="Raw footage to a served video model: curation, three training stages, multi-view, gate, Triton.",
)
def svd(
    workdir: str,
    source: str = "",
    objects: str = "",
    profile: str = "local",
    overrides: dict = {},  # noqa: B006 - kfp records the default in the IR
):
    """The whole chain.

    Args:
        workdir: a directory that all steps see; it holds the data root, the reports and what the run leaves.
        source: the folder of raw videos, an S3 prefix, or a list of them (CSV or Parquet).
        objects: a folder of GLB and OBJ files for multi-view training; procedural objects when empty.
        profile: a shipped profile (paper, local, test) or a YAML file that every step can read.
        overrides: dotted setting to value.
    """
    run_id = dsl.PIPELINE_JOB_ID_PLACEHOLDER
    common = {"workdir": workdir, "run_id": run_id, "profile": profile, "overrides": overrides}
    told = named(report(pipeline="svd", **common), "report")
    with dsl.ExitHandler(told, name="run"):
        curated = curate(source, common)
        clips, annotations, selection = curated.clips, curated.annotations, curated.selection
        encoded = encode(clips=clips, annotations=annotations, selection=selection, **common).after(curated.checked)
        samples = encoded.outputs["samples"]

        checked_samples = validate_samples(selection=selection, samples=samples, **common)

        image = train(stage="image", samples=samples, dataset=curated.dataset, **common).after(checked_samples)
        video = train(stage="video", samples=samples, dataset=curated.dataset, init=image.outputs["model"], **common)
        high_quality = train(
            stage="image_to_video",
            samples=samples,
            dataset=curated.dataset,
            init=video.outputs["model"],
            **common,
        )
        model = high_quality.outputs["model"]

        rendered = render(objects=objects, **common).after(encoded)  # needs nothing of it: for a readable order
        orbits = rendered.outputs["orbits"]
        encoded_orbits = encode_orbits(orbits=orbits, **common)
        views = encoded_orbits.outputs["samples"]
        checked_orbits = validate_orbits(orbits=orbits, samples=views, **common)
        multi_view = train(stage="multi_view", samples=views, init=model, **common).after(checked_orbits)
        measured = measure_multiview(model=multi_view.outputs["model"], before=model, orbits=orbits, **common)

        evaluated = evaluate(
            model=model, samples=samples, clips=clips, annotations=annotations, selection=selection, **common
        )
        passed = gate(metrics=evaluated.outputs["metrics"], **common)
        exported = export(model=model, metrics=passed.outputs["verdict"], **common)
        served = serve(repository=exported.outputs["repository"], clips=clips, selection=selection, **common)
        for task, name in (
            (encoded, "encode"),
            (checked_samples, "validate samples"),
            (image, "train image"),
            (video, "train video"),
            (high_quality, "train image to video"),
            (rendered, "render orbits"),
            (encoded_orbits, "encode orbits"),
            (checked_orbits, "validate orbits"),
            (multi_view, "train multi-view"),
            (measured, "measure multi-view"),
            (evaluated, "evaluate"),
            (passed, "gate"),
            (exported, "export"),
            (served, "serve"),
        ):
            named(task, name)
