"""`svdflow submit`, and the options that all commands for a cluster have. What they do is in ``cluster``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import PIPELINES

if TYPE_CHECKING:
    from .cluster.client import Client
    from .cluster.connect import Connection
    from .cluster.environment import Environment
    from .cluster.stamp import Stamped

Env = Annotated[
    str | None,
    typer.Option(
        "--env", envvar="SVDFLOW_ENV", help="production, airgapped, dev, or a YAML file: endpoint, images, resources."
    ),
]
Endpoint = Annotated[
    str | None, typer.Option(help="URL of the Kubeflow Pipelines API. Default: SVDFLOW_KFP_ENDPOINT, else --env's.")
]
Namespace = Annotated[str | None, typer.Option(help="Of the runs. Default: --env's.")]
TokenFile = Annotated[
    Path | None,
    typer.Option(help="File with a bearer token; or SVDFLOW_KFP_TOKEN. In a pod: the projected token, by itself."),
]
CookieFile = Annotated[
    Path | None, typer.Option(help="File with a cookie, as authservice_session=…; or SVDFLOW_KFP_COOKIE.")
]
CaFile = Annotated[Path | None, typer.Option(help="Certificates to trust; or SVDFLOW_KFP_CA_FILE.")]

Profile = Annotated[str, typer.Option(help="paper, local, test, or a YAML file of your own.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="STEP.SETTING=VALUE", help="Change a setting; repeatable.")
]
Workdir = Annotated[
    str | None, typer.Option("--workdir", "-w", help="On the work volume. Default: /work/runs/PIPELINE.")
]
Source = Annotated[str | None, typer.Option(help="s3:// prefix, https:// list, or a folder on the work volume.")]
Objects = Annotated[str | None, typer.Option(help="svd: folder of GLB and OBJ files on the work volume.")]
Dataset = Annotated[str | None, typer.Option(metavar="NAME@TAG", help="A registered version. Default: the newest.")]
Stage = Annotated[str | None, typer.Option(help="train: the stage.")]
Init = Annotated[str | None, typer.Option(help="train, training, interpolation: a model directory on the work volume.")]
Image = Annotated[
    list[str] | None, typer.Option("--image", metavar="IMAGE=REFERENCE", help="In place of --env's; repeatable.")
]
Images = Annotated[Path | None, typer.Option("--images", help="YAML or JSON file that maps images to references.")]
Experiment = Annotated[str | None, typer.Option(help="Groups runs. Default: --env's.")]


def submit(
    pipeline: Annotated[str, typer.Argument(help=f"{', '.join(PIPELINES)}.")],
    env: Env = None,
    profile: Profile = "paper",
    set_: Set = None,
    workdir: Workdir = None,
    source: Source = None,
    objects: Objects = None,
    dataset: Dataset = None,
    stage: Stage = None,
    init: Init = None,
    image: Image = None,
    images: Images = None,
    experiment: Experiment = None,
    name: Annotated[str | None, typer.Option(help="Begins the run's name. Default: the pipeline's.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Stay until it has ended, and end as it did.")] = False,
    upload_only: Annotated[bool, typer.Option("--upload-only", help="Upload the version; start no run.")] = False,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    token_file: TokenFile = None,
    cookie_file: CookieFile = None,
    ca_file: CaFile = None,
) -> None:
    """Run a pipeline on Kubeflow Pipelines.

    The pipeline is compiled for the environment and uploaded as a version named after its content: once, however often
    it runs. Settings and parameters are checked before anything is sent.
    """
    from .cluster.connect import Connection
    from .cluster.submit import run_name, start_run, upload

    connection = Connection(env, endpoint, namespace, token_file, cookie_file, ca_file)
    given = {"source": source, "objects": objects, "dataset": dataset, "stage": stage, "init": init}
    environment, stamped, arguments = prepare(
        pipeline, connection, images, image, {**given, "workdir": workdir}, profile, set_, only_upload=upload_only
    )
    label = run_name(pipeline, name)
    if stamped.commit.endswith("-dirty"):
        typer.echo(f"note: the source has changes that commit {stamped.commit} does not hold", err=True)
    client = connection.client(environment)
    version = upload(client, stamped)
    print(f"version {version.name}: {'uploaded' if version.uploaded else 'was there'}")
    if upload_only:
        return
    run = start_run(
        client, environment, version, arguments, label, experiment or environment.experiment, stamped.revision
    )
    print(f"run {run.run_id}: {label}")
    if not watch:
        print(f"watch it: svdflow runs watch {run.run_id}" + (f" --env {env}" if env else ""))
        return
    watch_run(client, run.run_id)


def prepare(
    pipeline: str,
    connection: Connection,
    images_file: Path | None,
    images: list[str] | None,
    given: dict[str, str | None],
    profile: str,
    sets: list[str] | None,
    *,
    only_upload: bool = False,
) -> tuple[Environment, Stamped, dict[str, Any]]:
    """What submitting and scheduling do before they ask the server: environment, stamped pipeline, parameters."""
    from svdflow.common.config import parse_override

    from .cluster.connect import environment_of
    from .cluster.stamp import stamp
    from .cluster.submit import run_arguments
    from .registry import compiled_path

    compiled_path(pipeline)  # complains about a name that is none before anything else
    environment = environment_of(connection.env, images_file, images or [])
    overrides = dict(parse_override(text) for text in sets or [])
    arguments = {} if only_upload else run_arguments(pipeline, environment, given, profile, overrides)
    return environment, stamp(pipeline, environment), arguments


def connected(
    env: str | None,
    endpoint: str | None,
    namespace: str | None,
    token_file: Path | None,
    cookie_file: Path | None,
    ca_file: Path | None,
) -> Client:
    """A client of the cluster that a command's options name."""
    from .cluster.connect import Connection

    return Connection(env, endpoint, namespace, token_file, cookie_file, ca_file).client()


def watch_run(client: Client, run_id: str) -> None:
    """Watch a run and end as it did; Ctrl-C ends the watching, not the run."""
    from rich.console import Console

    from .cluster.watch import watch

    try:
        status = watch(client, run_id, Console(stderr=True))
    except KeyboardInterrupt:
        typer.echo(f"the run goes on; stop it with: svdflow runs stop {run_id}", err=True)
        raise typer.Exit(130) from None
    raise typer.Exit(status)
