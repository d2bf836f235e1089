"""The commands `svdflow schedule …`. What they do is in ``cluster/schedules.py``, imported when a command runs."""

from __future__ import annotations

from typing import Annotated

import typer

from . import PIPELINES
from .cli_cluster import (
    CaFile,
    CookieFile,
    Dataset,
    Endpoint,
    Env,
    Experiment,
    Image,
    Images,
    Init,
    Namespace,
    Objects,
    Profile,
    Set,
    Source,
    Stage,
    TokenFile,
    Workdir,
    connected,
    prepare,
)

schedule = typer.Typer(help="Runs by the clock, on Kubeflow Pipelines.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The schedule's name or id.")]


@schedule.command("create")
def create(
    name: Annotated[str, typer.Argument(help="The schedule's name.")],
    pipeline: Annotated[str, typer.Argument(help=f"{', '.join(PIPELINES)}.")],
    cron: Annotated[
        str | None,
        typer.Option(help="As '0 2 * * *', or six fields, seconds first; in the server's zone (UTC)."),
    ] = None,
    every: Annotated[str | None, typer.Option(metavar="6h", help="Between two starts: 30m, 6h, 1d.")] = None,
    start: Annotated[str | None, typer.Option(metavar="TIME", help="Not before: 2030-01-31T02:00:00+00:00.")] = None,
    end: Annotated[str | None, typer.Option(metavar="TIME", help="Not after.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=10, help="Runs at work at once.")] = 1,
    catch_up: Annotated[bool, typer.Option("--catch-up", help="Make up for runs that were missed.")] = False,
    paused: Annotated[bool, typer.Option("--paused", help="Wait for `schedule resume`.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="In place of the one of this name.")] = False,
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
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    token_file: TokenFile = None,
    cookie_file: CookieFile = None,
    ca_file: CaFile = None,
) -> None:
    """Run a pipeline by the clock.

    Each run runs the version that is uploaded now; change the pipeline and create the schedule anew with --replace.
    """
    from .cluster import schedules
    from .cluster.connect import Connection
    from .cluster.submit import upload

    when = schedules.timing(cron, every, start, end)
    connection = Connection(env, endpoint, namespace, token_file, cookie_file, ca_file)
    given = {"source": source, "objects": objects, "dataset": dataset, "stage": stage, "init": init}
    environment, stamped, arguments = prepare(
        pipeline, connection, images, image, {**given, "workdir": workdir}, profile, set_
    )
    client = connection.client(environment)
    version = upload(client, stamped)
    made = schedules.create(
        client,
        environment,
        version,
        name,
        when,
        arguments,
        experiment or environment.experiment,
        stamped.revision,
        concurrency=concurrency,
        catch_up=catch_up,
        paused=paused,
        replace=replace,
    )
    print(f"schedule {made.recurring_run_id}: {name}, {schedules.told(made)}, version {version.name}")


@schedule.command("list")
def list_(
    env: Env = None,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    token_file: TokenFile = None,
    cookie_file: CookieFile = None,
    ca_file: CaFile = None,
) -> None:
    """List schedules: name, state, when, how many at once, what they run."""
    from .cluster.run_table import print_schedules
    from .cluster.schedules import list_schedules

    print_schedules(list_schedules(connected(env, endpoint, namespace, token_file, cookie_file, ca_file)))


@schedule.command("pause")
def pause(
    name: Name,
    env: Env = None,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    token_file: TokenFile = None,
    cookie_file: CookieFile = None,
    ca_file: CaFile = None,
) -> None:
    """Start no more runs until `schedule resume`; those at work go on."""
    from .cluster import schedules

    found = schedules.pause(connected(env, endpoint, namespace, token_file, cookie_file, ca_file), name)
    print(f"schedule {found.display_name}: paused")


@schedule.command("resume")
def resume(
    name: Name,
    env: Env = None,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    token_file: TokenFile = None,
    cookie_file: CookieFile = None,
    ca_file: CaFile = None,
) -> None:
    """Start runs again."""
    from .cluster import schedules

    found = schedules.resume(connected(env, endpoint, namespace, token_file, cookie_file, ca_file), name)
    print(f"schedule {found.display_name}: resumed")


@schedule.command("delete")
def delete(
    name: Name,
    env: Env = None,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    token_file: TokenFile = None,
    cookie_file: CookieFile = None,
    ca_file: CaFile = None,
) -> None:
    """Remove a schedule; its runs stay."""
    from .cluster import schedules

    found = schedules.delete(connected(env, endpoint, namespace, token_file, cookie_file, ca_file), name)
    print(f"schedule {found.display_name}: deleted")
