"""The command `svdflow`. Heavy imports happen inside the commands, so that --help answers at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from svdflow import __version__
from svdflow.common.errors import SvdflowError

from . import PIPELINES
from .cli_cluster import Image, Images, submit
from .cli_data import data
from .cli_evaluate import evaluate
from .cli_generate import generate, interpolate
from .cli_runs import runs
from .cli_schedule import schedule
from .cli_study import study
from .cli_train import train

app = typer.Typer(
    name="svdflow",
    help="Raw footage in, a served video model out: run, inspect and serve Stable-Video-Diffusion-class models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="markdown",  # paragraphs fill the terminal, whatever its width
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data, name="data")
app.add_typer(train, name="train")
app.add_typer(evaluate, name="evaluate")
app.add_typer(study, name="study")
app.add_typer(runs, name="runs")
app.add_typer(schedule, name="schedule")

_PIPELINES_HELP = "; ".join(f"{name} ({what})" for name, (_, what) in PIPELINES.items())
WorkdirOption = Annotated[Path, typer.Option("--workdir", "-w", help="Where the run's data, reports and model lie.")]


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Print the version when asked."""
    if version:
        print(f"svdflow {__version__}")
        raise typer.Exit


@app.command()
def run(
    pipeline: Annotated[str, typer.Argument(help=f"One of: {_PIPELINES_HELP}.")] = "svd",
    profile: Annotated[str, typer.Option(help="paper, local, test, or a YAML file of your own.")] = "local",
    source: Annotated[
        str | None,
        typer.Option(help="Folder of raw videos, s3:// prefix, or list of them. Default: the sample footage."),
    ] = None,
    objects: Annotated[
        Path | None, typer.Option(help="svd: folder of GLB and OBJ files. Default: procedural objects.")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME@TAG",
            help="training, interpolation: a registered version. Default: the newest in WORKDIR.",
        ),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            help="training: an image model to start from; by default as the settings say. interpolation: a "
            "text-to-video model."
        ),
    ] = None,
    workdir: Annotated[
        Path | None,
        typer.Option("--workdir", "-w", help="Where data, reports and results lie. Default: runs/PIPELINE."),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="STEP.SETTING=VALUE", help="Change a setting; repeatable.")
    ] = None,
) -> None:
    """Run a pipeline on this machine.

    A second run in the same work directory finds what the first one did and computes only what changed. Ctrl-C keeps
    all finished work; the same command goes on from there.
    """
    from svdflow.common.config import parse_override
    from svdflow.common.errors import BadInputError, ConfigError
    from svdflow.diffusion.hub import resolve_model

    from .local.outcome import tell
    from .local.run import run_pipeline
    from .registry import STAGE_OF, compiled_path, parameters
    from .samples_directory import samples_directory

    takes = parameters(compiled_path(pipeline))
    if "stage" in takes:
        raise ConfigError(f"the pipeline {pipeline} is run by `svdflow {pipeline} STAGE`")
    workdir = workdir or Path("runs") / pipeline
    if stage := STAGE_OF.get(pipeline):
        from .stage_runs import train_stage

        if source or objects:
            raise ConfigError(f"the pipeline {pipeline} takes no --{'source' if source else 'objects'}; leave it out")
        result, _ = train_stage(stage, workdir, profile, set_ or [], dataset or "", init, pipeline)
        tell(result)
        raise typer.Exit(result.status)
    overrides = dict(parse_override(text) for text in set_ or [])
    arguments: dict[str, str] = {}
    if source is not None or "source" in takes:
        arguments["source"] = str(samples_directory().absolute()) if source is None else _place(source)
    if objects:
        if not objects.is_dir():
            raise BadInputError(f"--objects {objects}: there is no such folder; leave it out for procedural objects")
        arguments["objects"] = str(objects.absolute())
    if init:
        arguments["init"] = str(resolve_model(init))
    if "dataset" in takes:
        from .stage_runs import dataset_to_train_on

        arguments["dataset"], overrides = dataset_to_train_on(workdir, dataset, profile, overrides)
    elif dataset:
        arguments["dataset"] = dataset
    result = run_pipeline(pipeline, workdir, profile, overrides, arguments)
    tell(result)
    raise typer.Exit(result.status)


def _place(source: str) -> str:
    """A source as every step can find it: a URL as it is, a path from the root on.

    Raises:
        BadInputError: there is no such path, or it is empty, as that of a shell's variable that is not set.
    """
    from svdflow.common.errors import BadInputError

    if "://" in source:
        return source
    if not source or not Path(source).exists():
        raise BadInputError(
            f"--source {source!r}: is not there; name a folder of video files, an s3://bucket/prefix, or a list "
            "(.csv or .parquet with a column uri)"
        )
    return str(Path(source).absolute())


@app.command()
def compile(  # noqa: A001 - the command's name
    pipeline: Annotated[str | None, typer.Argument(help=f"{', '.join(PIPELINES)}. Default: all.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File to write the IR of PIPELINE to. Default: those in pipelines/compiled."),
    ] = None,
    env: Annotated[
        str | None,
        typer.Option(help="Write what `submit` sends to this environment, to --out."),
    ] = None,
    image: Image = None,
    images: Images = None,
) -> None:
    """Compile pipelines to IR YAML for a Kubeflow Pipelines backend."""
    from svdflow.common.errors import ConfigError

    from .registry import PIPELINES, compile_pipeline

    if env:
        from .cluster.connect import environment_of
        from .cluster.stamp import stamp

        if not pipeline or not out:
            raise ConfigError("--env: name the pipeline, and a file with --out; what is committed knows no environment")
        out.write_text(stamp(pipeline, environment_of(env, images, image or [])).ir)
        print(out)
        return
    if out and not pipeline:
        raise ConfigError(f"--out {out}: is one file; name the pipeline that goes into it")
    for name in [pipeline] if pipeline else PIPELINES:
        print(compile_pipeline(name, out))


app.command("submit")(submit)


@app.command()
def doctor(
    cluster: Annotated[bool, typer.Option("--cluster", help="Look at the Kubernetes cluster instead.")] = False,
    namespace: Annotated[str | None, typer.Option(help="Of runs. Default: the pod's, or the kubeconfig's.")] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            envvar=["SVDFLOW_KFP_ENDPOINT", "KF_PIPELINES_ENDPOINT"],
            help="URL of the Kubeflow Pipelines API, to be tried.",
        ),
    ] = None,
) -> None:
    """Say what this machine has and lacks, with the remedy for each; or, with --cluster, what a cluster does."""
    if cluster:
        from .cluster_doctor import examine as examine_cluster

        raise typer.Exit(examine_cluster(namespace, endpoint))
    from .doctor import examine

    raise typer.Exit(examine())


@app.command()
def settings(
    profile: Annotated[str, typer.Option(help="paper, local, test, or a YAML file of your own.")] = "local",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="STEP.SETTING=VALUE", help="Change a setting; repeatable.")
    ] = None,
) -> None:
    """Print every step's settings as they would be used, validated."""
    import yaml

    from svdflow.common.config import parse_override

    from .registry import resolve_settings

    print(
        yaml.safe_dump(resolve_settings(profile, dict(parse_override(text) for text in set_ or [])), sort_keys=False),
        end="",
    )


@app.command()
def serve(
    repository: Annotated[
        Path | None, typer.Argument(help="A Triton model repository. Default: WORKDIR/repository.")
    ] = None,
    workdir: WorkdirOption = Path("runs/svd"),
    grpc_port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8001,
    http_port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
) -> None:
    """Serve an exported model with Triton on this machine until Ctrl-C."""
    from svdflow.export.server import serve_repository

    serve_repository(repository or workdir / "repository", grpc_port=grpc_port, http_port=http_port)


app.command("generate")(generate)
app.command("interpolate")(interpolate)


@app.command()
def convert(
    source: Annotated[
        Path,
        typer.Argument(help="Model directory, svdflow's or diffusers', ORG/NAME\\[@REV] of a hub, or a single file."),
    ],
    out: Annotated[Path, typer.Argument(help="Directory to write; or a .safetensors file, in the authors' layout.")],
    frames: Annotated[
        int | None, typer.Option(min=1, help="Of a single file's model: 14 of svd (the default), 25 of svd_xt.")
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Write a single file in 16 bits.")] = False,
) -> None:
    """Bring a model into another form: a model directory (diffusers' format), or the authors' single file."""
    from svdflow.diffusion.convert import convert_model

    convert_model(source, out, frames=frames, half=half)
    print(f"model: {out}")


def main() -> None:
    """Entry point: expected errors are one line."""
    try:
        app()
    except SvdflowError as error:
        print(f"svdflow: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
