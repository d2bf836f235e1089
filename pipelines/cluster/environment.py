"""An environment: one YAML file that says where runs are sent, with which images, and what each task gets there.

A file has the keys of ``Environment``; ``extends`` names another environment to lie on. What a task gets is merged from
``defaults``, from ``tasks`` under its component's name (``train``) and under its own (``train_video``), the last wins.
Mappings merge, lists are replaced, and ``null`` takes an inherited entry away.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, model_validator

from svdflow.common.config import Settings, merge, settings_of_text, validate_settings
from svdflow.common.errors import ConfigError
from svdflow.common.fanout_manifest import FanoutSettings
from svdflow.training.train.trainjob.settings import TrainJobSettings

from .. import PIPELINES
from .quantities import AbsolutePath, Cpu, DnsName, EnvironmentName, LabelKey, LabelValue, Size, size_bytes

ENVIRONMENTS = Path(__file__).resolve().parent.parent / "environments"
DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")
LAUNCHERS: dict[str, type[Settings]] = {"SVDFLOW_TRAINJOB": TrainJobSettings, "SVDFLOW_FANOUT": FanoutSettings}
IMAGES = ("pipeline", "curation", "training", "evaluation", "triton")


class Accelerator(Settings):
    """What KFP can ask for: one type a task."""

    type: LabelKey = "nvidia.com/gpu"
    count: int = Field(ge=1, le=64)


class Toleration(Settings):
    """Of a taint on nodes."""

    key: LabelKey | None = None
    operator: Literal["Equal", "Exists"] = "Equal"
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    seconds: int | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _whole(self) -> Toleration:
        if self.operator == "Exists" and self.value is not None:
            raise ValueError("operator Exists takes no value")
        if self.operator == "Equal" and self.key is None:
            raise ValueError("operator Equal needs a key")
        return self


class Expression(Settings):
    """A demand on a node's labels."""

    key: LabelKey
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"] = "In"
    values: list[str] = []


class Affinity(Settings):
    """Nodes that are required, or preferred when there is a weight. Required terms are alternatives."""

    match: list[Expression] = Field(min_length=1)
    weight: int | None = Field(None, ge=1, le=100)


class SecurityContext(Settings):
    """Who a task runs as. KFP sets no user, and PodSecurity ``restricted`` refuses a pod that may be root."""

    user: int = Field(1000, ge=1)
    group: int = Field(1000, ge=1)


class Keys(Settings):
    """Keys of a secret or a ConfigMap that become variables. An optional one may be missing."""

    keys: dict[str, EnvironmentName] = Field(min_length=1)
    optional: bool = False


class Volume(Settings):
    """A claim to mount."""

    claim: DnsName
    sub_path: str = ""


class Retries(Settings):
    """How often a failed task is tried again. KFP does not retry evictions and lost nodes."""

    count: int = Field(ge=0, le=10)
    backoff_s: int = Field(60, ge=0)
    factor: float = Field(2.0, ge=1)
    longest_s: int = Field(3600, ge=0)


def _no_queue(labels: dict[str, str]) -> dict[str, str]:
    if queue := next((key for key in labels if key.startswith("kueue.x-k8s.io/")), None):
        raise ValueError(f"{queue} belongs on the jobs that a task starts: on its own pod Kueue holds the run up")
    return labels


def _no_secret(values: dict[str, str]) -> dict[str, str]:
    if found := [name for name in values if re.search("SECRET|PASSWORD|TOKEN|ACCESS_KEY|CREDENTIAL", name)]:
        raise ValueError(f"{found[0]}: a secret does not stand in a file that is uploaded; take it from secrets")
    return values


def _launchers_can_read(values: dict[str, str]) -> dict[str, str]:
    """Told now, and not by a step that has waited for its turn."""
    for variable, model in LAUNCHERS.items():
        if told := values.get(variable, "").strip():
            try:
                settings_of_text(model, variable, told, "{queue: research}")
            except ConfigError as error:
                raise ValueError(str(error)) from None
    return values


class TaskResources(Settings):
    """What a task's pod gets."""

    cpu: Cpu
    memory: Size
    cpu_limit: Cpu | None = None
    memory_limit: Size | None = None  # ``memory`` when None: a pod above its request is the first to be evicted
    accelerator: Accelerator | None = None
    shared_memory: Size | None = None  # /dev/shm; counts towards the memory limit
    node_selector: dict[LabelKey, LabelValue] = {}
    tolerations: list[Toleration] = []
    affinity: list[Affinity] = []
    security_context: SecurityContext = SecurityContext()
    env: Annotated[dict[EnvironmentName, str], AfterValidator(_no_secret), AfterValidator(_launchers_can_read)] = {}
    fields: dict[EnvironmentName, str] = {}  # of the pod itself, by the downward API
    config_maps: dict[DnsName, Keys] = {}
    secrets: dict[DnsName, Keys] = {}
    volumes: dict[AbsolutePath, Volume] = {}
    image_pull_secrets: list[DnsName] = []
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    timeout_s: int = Field(ge=1)  # of each attempt, the pull of the image included
    retries: Retries
    labels: Annotated[dict[LabelKey, LabelValue], AfterValidator(_no_queue)] = {}
    annotations: dict[LabelKey, str] = {}

    @model_validator(mode="after")
    def _consistent(self) -> TaskResources:
        names = [*self.env, *self.fields]
        for source in (*self.config_maps.values(), *self.secrets.values()):
            names += source.keys.values()
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)}: set from more than one place")
        limit = size_bytes(self.memory_limit or self.memory)
        if limit < size_bytes(self.memory):
            raise ValueError("memory_limit is less than memory")
        if self.shared_memory and size_bytes(self.shared_memory) >= limit:
            raise ValueError("shared_memory is part of the memory limit and has to be less")
        if "/dev/shm" in self.volumes:
            raise ValueError("/dev/shm is what shared_memory mounts")
        return self


class Environment(Settings):
    """A cluster as runs see it. Who may call it is not here: see ``access.py``."""

    name: str
    endpoint: str = Field(pattern=r"^https?://[^/\s?#@]+(/[^\s?#@]*)?$")
    namespace: DnsName
    service_account: DnsName  # one for all tasks of a run
    experiment: str = Field("svdflow", min_length=1, max_length=128)
    pipeline_root: str = ""  # where KFP keeps artifacts; its own default when empty
    work: AbsolutePath = "/work"  # where the work volume is mounted
    require_digests: bool = True
    images: dict[Literal["pipeline", "curation", "training", "evaluation", "triton"], str]
    defaults: TaskResources
    tasks: dict[str, TaskResources]  # each whole: defaults merged in

    def resources(self, component: str, task: str) -> TaskResources:
        """What a task gets: ``train`` and ``train_video`` for the component and the task's own name."""
        return self.tasks.get(task) or self.tasks.get(component) or self.defaults


def environment_names() -> list[str]:
    """Names of the environments that ship with svdflow."""
    return sorted(path.stem for path in ENVIRONMENTS.glob("*.yaml"))


def load_environment(name: str, images: Mapping[str, str] | None = None) -> Environment:
    """An environment, validated.

    Args:
        name: a shipped one, or the path of a YAML file.
        images: component image to reference, on top of the file's.

    Raises:
        ConfigError: there is no such file, or something in it is unknown or wrong; all faults are named.
    """
    values = merge(_raw(name), {"images": dict(images or {})} if images else {})
    label = Path(name).stem
    defaults, tasks = values.get("defaults") or {}, values.pop("tasks", None) or {}
    if not isinstance(defaults, dict) or not isinstance(tasks, dict):
        raise ConfigError(f"environment {label}: defaults and tasks are mappings")
    known = task_names()
    merged, faults = {}, []
    for task, own in tasks.items():
        if task not in known:
            faults.append(f"tasks.{task}: no pipeline has such a task; tasks are {', '.join(sorted(known))}")
        elif not isinstance(own or {}, dict):
            faults.append(f"tasks.{task}: is no mapping")
        else:
            base = tasks.get(known[task]) if task != known[task] else None
            base = base if isinstance(base, dict) else {}
            merged[task] = _without_nulls(merge(merge(defaults, base), own or {}))
    whole = _without_nulls(values) | {"name": label, "tasks": merged}
    try:
        environment = validate_settings(Environment, "", whole)
    except ConfigError as error:
        faults += [fault.lstrip(".") for fault in str(error).split("; ")]
    if faults:
        raise ConfigError("; ".join(f"environment {label}: {fault}" for fault in faults))
    return environment


def task_key(name: str) -> str:
    """A task's or component's name as an environment writes it: ``train multi-view`` is ``train_multi_view``."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower())


@cache
def task_names() -> dict[str, str]:
    """Every task of every pipeline, and every component, to the component: ``train_video`` to ``train``."""
    from ..registry import compiled_path, pipeline_spec

    names: dict[str, str] = {}
    for pipeline in PIPELINES:
        spec = pipeline_spec(compiled_path(pipeline))
        for component in [spec["root"], *spec["components"].values()]:
            for key, task in component.get("dag", {}).get("tasks", {}).items():
                reference = task["componentRef"]["name"]
                if "dag" in spec["components"][reference]:
                    continue
                base = task_key(re.sub(r"-\d+$", "", key))
                names[base] = base
                names[task_key(task["taskInfo"]["name"])] = base
    return names


def _raw(name: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    path = ENVIRONMENTS / f"{name}.yaml"
    if not path.is_file():
        path = Path(name)
        if path.suffix not in (".yaml", ".yml") or not path.is_file():
            raise ConfigError(
                f"environment {name!r} is neither a shipped one ({', '.join(environment_names())}) nor a YAML file"
            )
    if str(path) in seen:
        raise ConfigError(f"{path}: extends itself")
    try:
        loaded = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: an environment is a mapping")
    base = loaded.pop("extends", None)
    return merge(_raw(base, (*seen, str(path))), loaded) if base else loaded


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return value
