"""The pipeline `svd`: raw video in, served video model out."""

from kfp import dsl

from svdflow.curation.annotate.component import annotate
from svdflow.curation.filter.component import filter_clips
from svdflow.curation.split.component import split
from svdflow.curation.validate.component import validate, validate_selection
from svdflow.curation.version.component import version
from svdflow.evaluation.component import evaluate, gate
from svdflow.export.component import export, serve
from svdflow.ingest.component import ingest
from svdflow.multiview.component import measure_multiview, render
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
        source: the folder of raw videos.
        objects: a folder of GLB and OBJ files for multi-view training; procedural objects when empty.
        profile: a shipped profile (paper, local, test) or a YAML file that every step can read.
        overrides: dotted setting to value.
    """
    run_id = dsl.PIPELINE_JOB_ID_PLACEHOLDER
    common = {"workdir": workdir, "run_id": run_id, "profile": profile, "overrides": overrides}
    told = report(**common).set_display_name("report").set_caching_options(False)
    with dsl.ExitHandler(told, name="run"):
        # Reuse comes from identities in the data root: KFP's cache sees neither a folder's content nor our package.
        ingested = ingest(source=source, **common)
        videos = ingested.outputs["videos"]
        cut = split(videos=videos, **common)
        clips = cut.outputs["clips"]
        annotated = annotate(videos=videos, clips=clips, **common)
        annotations = annotated.outputs["annotations"]
        checked = validate(videos=videos, clips=clips, annotations=annotations, **common)
        filtered = filter_clips(videos=videos, clips=clips, annotations=annotations, **common).after(checked)
        selection = filtered.outputs["selection"]
        checked_selection = validate_selection(
            videos=videos, clips=clips, annotations=annotations, selection=selection, **common
        )
        versioned = version(videos=videos, clips=clips, annotations=annotations, selection=selection, **common)
        versioned.after(checked_selection)
        encoded = encode(clips=clips, annotations=annotations, selection=selection, **common).after(checked_selection)
        samples = encoded.outputs["samples"]

        image = train(stage="image", samples=samples, dataset=versioned.outputs["dataset"], **common)
        video = train(
            stage="video", samples=samples, dataset=versioned.outputs["dataset"], init=image.outputs["model"], **common
        )
        high_quality = train(
            stage="image_to_video",
            samples=samples,
            dataset=versioned.outputs["dataset"],
            init=video.outputs["model"],
            **common,
        )
        model = high_quality.outputs["model"]

        rendered = render(objects=objects, **common).after(encoded)  # needs nothing of it: for a readable order
        orbits = rendered.outputs["orbits"]
        encoded_orbits = encode_orbits(orbits=orbits, **common)
        multi_view = train(stage="multi_view", samples=encoded_orbits.outputs["samples"], init=model, **common)
        measured = measure_multiview(model=multi_view.outputs["model"], before=model, orbits=orbits, **common)

        evaluated = evaluate(
            model=model, samples=samples, clips=clips, annotations=annotations, selection=selection, **common
        )
        passed = gate(metrics=evaluated.outputs["metrics"], **common)
        exported = export(model=model, metrics=passed.outputs["verdict"], **common)
        served = serve(repository=exported.outputs["repository"], clips=clips, selection=selection, **common)
        for task, name in (
            (ingested, "ingest"),
            (cut, "split into clips"),
            (annotated, "annotate"),
            (checked, "validate"),
            (filtered, "filter"),
            (checked_selection, "validate selection"),
            (versioned, "version"),
            (encoded, "encode"),
            (image, "train image"),
            (video, "train video"),
            (high_quality, "train image to video"),
            (rendered, "render orbits"),
            (encoded_orbits, "encode orbits"),
            (multi_view, "train multi-view"),
            (measured, "measure multi-view"),
            (evaluated, "evaluate"),
            (passed, "gate"),
            (exported, "export"),
            (served, "serve"),
        ):
            task.set_display_name(name).set_caching_options(False)
