"""The commands `svdflow runs …`. What they do is in ``cluster``, imported when a command runs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .cli_cluster import CaFile, CookieFile, Endpoint, Env, Namespace, TokenFile, connected, watch_run

runs = typer.Typer(help="Runs on Kubeflow Pipelines: list, watch, read, stop, try again.", no_args_is_help=True)

Run = Annotated[str, typer.Argument(help="A run's id or its beginning, its name, or latest.")]


@runs.command("list")
def list_(
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many, newest first.")] = 20,
    experiment: Annotated[str | None, typer.Option(help="Of one experiment only.")] = None,
    env: Env = None,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    token_file: TokenFile = None,
    cookie_file: CookieFile = None,
    ca_file: CaFile = None,
) -> None:
    """List the newest runs: id, state, start, time, name."""
    from .cluster.run_table import print_runs
    from .cluster.runs import list_runs

    client = connected(env, endpoint, namespace, token_file, cookie_file, ca_file)
    print_runs(list_runs(client, count, experiment))


@runs.command("watch")
def watch(
    run: Run = "latest",
    env: Env = None,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    token_file: TokenFile = None,
    cookie_file: CookieFile = None,
    ca_file: CaFile = None,
) -> None:
    """Show a run's tasks with their states until it has ended.

    Ends with 0 when the run succeeded, 1 when it failed, 130 when it was canceled. Ctrl-C ends only the watching.
    """
    from .cluster.runs import find_run

    client = connected(env, endpoint, namespace, token_file, cookie_file, ca_file)
    watch_run(client, find_run(client, run).run_id)


@runs.command("logs")
def logs(
    run: Run,
    task: Annotated[
        str | None, typer.Argument(help="As `runs watch` names it. Default: the one that failed, or is at work.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the task has ended.")] = False,
    attempt: Annotated[int | None, typer.Option(min=1, help="Of a task that was retried. Default: the last.")] = None,
    env: Env = None,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    token_file: TokenFile = None,
    cookie_file: CookieFile = None,
    ca_file: CaFile = None,
) -> None:
    """Print the log of a task."""
    from svdflow.common.errors import BadInputError

    from .cluster.runs import choose_task, find_run, follow_log, read_log, task_states

    client = connected(env, endpoint, namespace, token_file, cookie_file, ca_file)
    found = find_run(client, run)
    state = choose_task(task_states(client, found), task)
    if attempt and attempt > len(state.pods):
        raise BadInputError(f"--attempt {attempt}: {state.task.name} has had {len(state.pods)}")
    if follow:
        pieces = follow_log(client, found.run_id, state.task.key)
    else:
        pieces = read_log(client, found.run_id, state.pods[(attempt or len(state.pods)) - 1])
    for piece in pieces:
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()


@runs.command("stop")
def stop(
    run: Run,
    env: Env = None,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    token_file: TokenFile = None,
    cookie_file: CookieFile = None,
    ca_file: CaFile = None,
) -> None:
    """End a run. Jobs that it started end with it, unless another run has adopted them; finished work is kept."""
    from .cluster.graph import ENDED
    from .cluster.runs import find_run
    from .cluster.runs import stop as stop_run

    client = connected(env, endpoint, namespace, token_file, cookie_file, ca_file)
    run_id = find_run(client, run).run_id
    state, released = stop_run(client, run_id)
    for line in released:
        print(line)
    print(f"run {run_id}: {state.lower()}")
    if state not in ENDED:
        typer.echo("it was told to end and has not yet; `svdflow runs watch` shows when it has", err=True)
        raise typer.Exit(1)


@runs.command("retry")
def retry(
    run: Run,
    watch: Annotated[bool, typer.Option("--watch", help="Stay until it has ended, and end as it did.")] = False,
    env: Env = None,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    token_file: TokenFile = None,
    cookie_file: CookieFile = None,
    ca_file: CaFile = None,
) -> None:
    """Run again what failed in a run; tasks that succeeded are kept, and steps find their finished work."""
    from .cluster.runs import find_run
    from .cluster.runs import retry as retry_run

    client = connected(env, endpoint, namespace, token_file, cookie_file, ca_file)
    run_id = find_run(client, run).run_id
    retry_run(client, run_id)
    print(f"run {run_id}: tried again")
    if watch:
        watch_run(client, run_id)
