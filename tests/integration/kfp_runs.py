"""What tests of cluster commands share: a client that waits for nobody, an environment, a run that was submitted."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from svdflow.pipelines.cli import app
from svdflow.pipelines.cluster.access import Access, Secret
from svdflow.pipelines.cluster.client import Client
from svdflow.pipelines.cluster.environment import load_environment
from svdflow.pipelines.cluster.stamp import Stamped, stamp
from svdflow.pipelines.cluster.submit import run_name, start_run, upload
from tests.fakes.kfp_api import FakePipelines

TOKEN = "ey.secret.token"


def quick_client(fake: FakePipelines, **options: Any) -> Client:
    """A client of the fake, with its token, that pauses for milliseconds."""
    access = Access(fake.url, "svdflow", Secret("the token in a test", value=fake.token) if fake.token else None)
    return Client(access, **({"patience_s": 120.0, "timeout_s": (120, 120), "pause_s": 0.01} | options))


def hurried_while(fake: FakePipelines, client: Client) -> Client:
    """The client waits for a second for what the fake is not going to answer, and for long for all else."""
    once, patient_s = client.once, client.timeout_s

    def asked(call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        client.timeout_s = (1, 1) if any(fault.times for fault in fake.faults) else patient_s
        return once(call, *arguments, **named)

    client.once = asked  # type: ignore[method-assign]
    return client


def environment_file(directory: Path, fake: FakePipelines, extra: str = "") -> str:
    """An environment whose endpoint is the fake."""
    path = directory / "cluster.yaml"
    path.write_text(f"extends: dev\nendpoint: {fake.url}\n{extra}")
    return str(path)


def svdflow(*arguments: str, **environ: str) -> Result:
    """Run a command as its user does; the token comes from the environment."""
    return CliRunner().invoke(app, list(arguments), env={"SVDFLOW_KFP_TOKEN": TOKEN, "COLUMNS": "200"} | environ)


@cache
def stamped() -> Stamped:
    """The pipeline curation for the environment dev; compiling it takes a while."""
    return stamp("curation", load_environment("dev"))


def started(fake: FakePipelines) -> str:
    """A run of curation, made without the command; its id."""
    client = quick_client(fake)
    version = upload(client, stamped())
    name = run_name("curation")
    arguments = {"workdir": "/work/runs/curation"}
    return start_run(client, load_environment("dev"), version, arguments, name, "svdflow", "0.1.0").run_id


def submitted(env: str, *arguments: str) -> str:
    """Submit the pipeline curation; the run's id."""
    result = svdflow("submit", "curation", "--env", env, "--source", "s3://svdflow/raw", *arguments)
    assert result.exit_code == 0, result.output + str(result.exception)
    return next(line.split()[1].rstrip(":") for line in result.output.splitlines() if line.startswith("run "))
