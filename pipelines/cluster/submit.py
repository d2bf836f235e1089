"""Sending a pipeline to a cluster: its version once, then a run of it."""

from __future__ import annotations

import json
import tempfile
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svdflow.common.config import PROFILES, load_profile, profile_names, read_profile, sendable
from svdflow.common.errors import ConfigError
from svdflow.training.train.presets import load_preset

from ..limits import argument_faults, documents
from ..registry import STAGE_OF, compiled_path, pipeline_spec, require_chain, resolve_settings
from ..stage_runs import resolve_stage
from .client import Client
from .environment import Environment
from .stamp import Stamped

NAME_LENGTH = 128


@dataclass(frozen=True)
class Version:
    """A pipeline version on the server. ``uploaded`` is False when it was there."""

    pipeline_id: str
    version_id: str
    name: str
    uploaded: bool


def upload(client: Client, stamped: Stamped) -> Version:
    """Make sure that the server has the pipeline and this very version of it.

    Raises:
        Refused, NoAnswer: the server said no, or nothing.
    """
    space = client.access.namespace
    pipeline = _pipeline(client, stamped, space)

    def find() -> Any:
        return client.first(
            client.pipelines.pipeline_service_list_pipeline_versions,
            "pipeline_versions",
            stamped.version,
            pipeline_id=pipeline.pipeline_id,
        )

    def make() -> Any:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / f"{stamped.pipeline}.yaml"
            path.write_text(stamped.ir)
            return client.once(
                client.uploads.upload_pipeline_version,
                str(path),
                name=stamped.version,
                display_name=stamped.version,
                pipelineid=pipeline.pipeline_id,
                description=stamped.description,
                tags=json.dumps(stamped.tags),
            )

    found = find()
    version = found or client.create(make, find)
    return Version(pipeline.pipeline_id, version.pipeline_version_id, stamped.version, found is None)


def _pipeline(client: Client, stamped: Stamped, space: str) -> Any:
    import kfp_server_api as api

    name = stamped.pipeline
    service = client.pipelines

    def find() -> Any:
        return client.first(service.pipeline_service_list_pipelines, "pipelines", name, namespace=space)

    spec, _ = documents(stamped.ir)
    body = api.V2beta1Pipeline(
        name=name, display_name=name, namespace=space, description=spec["pipelineInfo"].get("description", "")
    )
    return find() or client.create(lambda: client.once(service.pipeline_service_create_pipeline, body), find)


def experiment_id(client: Client, name: str) -> str:
    """The experiment of a name, made when it is not there: runs are grouped by it, and it carries the namespace."""
    import kfp_server_api as api

    service, space = client.experiments, client.access.namespace

    def find() -> Any:
        return client.first(service.experiment_service_list_experiments, "experiments", name, namespace=space)

    body = api.V2beta1Experiment(display_name=name, namespace=space)
    found = find() or client.create(lambda: client.once(service.experiment_service_create_experiment, body), find)
    return found.experiment_id


def start_run(
    client: Client,
    environment: Environment,
    version: Version,
    arguments: Mapping[str, Any],
    name: str,
    experiment: str,
    revision: str,
) -> Any:
    """Create a run of a version; equal runs are told apart by their names, which are unique.

    Raises:
        NoAnswer: it is not known whether the run was created.
    """
    import kfp_server_api as api

    body = api.V2beta1Run(
        display_name=name,
        description=f"svdflow {revision}, version {version.name}, environment {environment.name}",
        experiment_id=experiment_id(client, experiment),
        pipeline_version_reference=api.V2beta1PipelineVersionReference(
            pipeline_id=version.pipeline_id, pipeline_version_id=version.version_id
        ),
        runtime_config=runtime_config(environment, arguments),
        service_account=environment.service_account,
    )
    service, space = client.runs, client.access.namespace
    return client.create(
        lambda: client.once(service.run_service_create_run, body),
        lambda: client.first(service.run_service_list_runs, "runs", name, namespace=space),
    )


def runtime_config(environment: Environment, arguments: Mapping[str, Any]) -> Any:
    """The parameters of a run or of a schedule's runs, and where their artifacts go."""
    import kfp_server_api as api

    return api.V2beta1RuntimeConfig(parameters=dict(arguments), pipeline_root=environment.pipeline_root or None)


def run_name(pipeline: str, wanted: str | None = None) -> str:
    """A run's name; one of its own even when many are started with the same wish.

    Raises:
        ConfigError: it is too long.
    """
    name = f"{wanted or pipeline} {time.strftime('%Y-%m-%d %H.%M.%S')} {uuid.uuid4().hex[:6]}"
    if len(name) > NAME_LENGTH:
        raise ConfigError(f"--name {wanted!r}: a run's name has {NAME_LENGTH} characters at most, date included")
    return name


def run_arguments(
    pipeline: str,
    environment: Environment,
    given: Mapping[str, str | None],
    profile: str,
    overrides: Mapping[str, Any],
) -> dict[str, Any]:
    """The parameters of a run, checked before anything is sent.

    Args:
        pipeline: its name.
        environment: where it will run.
        given: parameters by name; None and empty ones are left to their defaults.
        profile: a shipped profile, a file on the work volume, or a file of this machine that extends a shipped one: its
            values travel as overrides, since the cluster does not see the file.
        overrides: dotted setting to value.

    Raises:
        ConfigError: a parameter is unknown or missing, a setting is wrong, or all together are too long for KFP.
    """
    declared = pipeline_spec(compiled_path(pipeline))["root"]["inputDefinitions"]["parameters"]
    arguments: dict[str, Any] = {name: value for name, value in given.items() if value}
    arguments.setdefault("workdir", f"{environment.work}/runs/{pipeline}")
    if unknown := sorted(set(arguments) - set(declared)):
        raise ConfigError(f"the pipeline {pipeline} takes no --{unknown[0]}; leave it out")
    missing = [name for name, what in declared.items() if not what.get("isOptional") and name not in arguments]
    if missing:
        raise ConfigError(f"the pipeline {pipeline} needs --{missing[0]}")
    for name in ("workdir", "source", "objects", "init"):
        _require_seen(name, arguments.get(name, ""), environment)
    stage = STAGE_OF.get(pipeline) or arguments.get("stage")
    if stage:
        _require_start(stage, arguments.get("init", ""))
    if not profile.startswith(f"{environment.work}/"):  # a file there can be read on the cluster alone
        profile, overrides = _portable(profile, overrides)
        if stage:
            _, overrides = resolve_stage(load_preset(stage), profile, list(overrides.items()), None)
        require_chain(pipeline, resolve_settings(profile, overrides))
    elif stage:
        raise ConfigError(f"--profile {profile}: a stage's sample size follows from it; name a file of this machine")
    arguments |= {"profile": profile, "overrides": sendable(overrides)}
    if found := argument_faults(arguments):
        raise ConfigError("; ".join(found))
    return arguments


def _require_start(stage: str, init: str) -> None:
    kind = load_preset(stage).kind
    if kind == "multi_view":
        raise ConfigError(f"the stage {stage} trains on rendered orbits: the pipeline svd renders and trains them")
    if kind != "image" and not init:
        raise ConfigError(f"--init: the stage {stage} starts from a model; name its directory on the work volume")


def _require_seen(name: str, value: str, environment: Environment) -> None:
    """A path has to be one that the pods see."""
    inside = value.startswith(f"{environment.work}/") and ".." not in value.split("/")
    if value and "://" not in value and not inside:
        raise ConfigError(
            f"--{name} {value}: tasks on the cluster see s3:// and https:// addresses and what lies below "
            f"{environment.work}, not the paths of this machine"
        )
    if name == "workdir" and not inside:
        raise ConfigError(f"--workdir {value}: a run's work directory lies on the work volume, {environment.work}")


def _portable(profile: str, overrides: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A shipped profile and overrides that together say what a profile file of this machine says."""
    if (PROFILES / f"{profile}.yaml").is_file():
        return profile, dict(overrides)
    whole = load_profile(profile)  # complains about a file that is none
    base = profile
    while not (PROFILES / f"{base}.yaml").is_file():
        base = read_profile(base)[1] or ""
        if not base:
            raise ConfigError(
                f"profile {profile}: the cluster does not see this file; let it extend a shipped profile "
                f"({', '.join(profile_names())}), so that what differs can be sent along, or put it on the work volume"
            )
    shipped = load_profile(base)
    differing: dict[str, Any] = {}
    for step, settings in whole.items():
        known = shipped.get(step) or {}
        differing |= {f"{step}.{key}": value for key, value in (settings or {}).items() if known.get(key) != value}
    return base, differing | dict(overrides)
