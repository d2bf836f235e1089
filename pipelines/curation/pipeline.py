"""The pipeline `curation`: raw video in, a versioned dataset out. Its tasks are the first part of `svd` too."""

from dataclasses import dataclass

from kfp import dsl
from kfp.dsl.pipeline_channel import PipelineChannel

from svdflow.curation.annotate.component import annotate
from svdflow.curation.filter.component import filter_clips
from svdflow.curation.split.component import split
from svdflow.curation.validate.component import validate, validate_selection
from svdflow.curation.version.component import version
from svdflow.ingest.component import ingest
from svdflow.pipelines.tasks import named
from svdflow.report.component import report


@dataclass(frozen=True)
class Curated:
    """What the curation tasks give to those after them: manifests, the dataset's version, and the last check."""

    clips: PipelineChannel
    annotations: PipelineChannel
    selection: PipelineChannel
    dataset: PipelineChannel
    checked: dsl.PipelineTask


def curate(source: PipelineChannel, common: dict[str, PipelineChannel]) -> Curated:
    """Add the curation tasks to the pipeline that is being defined.

    Args:
        source: the folder, prefix or list of raw videos.
        common: ``workdir``, ``run_id``, ``profile`` and ``overrides``, which every task takes.
    """
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
    for task, name in (
        (ingested, "ingest"),
        (cut, "split into clips"),
        (annotated, "annotate"),
        (checked, "validate"),
        (filtered, "filter"),
        (checked_selection, "validate selection"),
        (versioned, "version"),
    ):
        named(task, name)
    return Curated(clips, annotations, selection, versioned.outputs["dataset"], checked_selection)


@dsl.pipeline(
    name="curation",
    description="Raw footage to a versioned dataset: cuts, clips, annotations, filters, checks.",
)
def curation(
    workdir: str,
    source: str = "",
    profile: str = "local",
    overrides: dict = {},  # noqa: B006 - kfp records the default in the IR
):
    """Curation alone.

    Args:
        workdir: a directory that all steps see; it holds the data root, the reports and what the run leaves.
        source: the folder of raw videos, an S3 prefix, or a list of them (CSV or Parquet).
        profile: a shipped profile (paper, local, test) or a YAML file that every step can read.
        overrides: dotted setting to value.
    """
    run_id = dsl.PIPELINE_JOB_ID_PLACEHOLDER
    common = {"workdir": workdir, "run_id": run_id, "profile": profile, "overrides": overrides}
    told = named(report(pipeline="curation", **common), "report")
    with dsl.ExitHandler(told, name="run"):
        curate(source, common)
