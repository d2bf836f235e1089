"""What a Kubeflow Pipelines backend (2.15 to 2.17) takes and what it does badly, checked on a compiled pipeline.

The numbers are the backend's own, or were measured on one; ``faults`` returns every breach with its remedy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from svdflow.common.errors import ConfigError

IR_BYTES = 512 * 1024
ARGUMENT_BYTES = 128 * 1024  # one argument of a process, as which a component's and a task's JSON travel
PARAMETERS_BYTES = 10_000  # all parameters of a run together
# The Workflow must stay under 1 MiB in etcd, compressed or not; 56 flat tasks with secrets and labels made 1.95 MiB.
WORKFLOW_BYTES = 1024 * 1024
TASK_BYTES = 36_500
ITERATIONS = 100
NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
NAME_LENGTH = 128
QUANTITY = re.compile(r"\+?(\d+\.?\d*|\.\d+)([eE][-+]?\d+|[numkMGTPE]|[KMGTPE]i)?")  # as Kubernetes reads one

Spec = Mapping[str, Any]


def require_limits(text: str, what: str) -> None:
    """Refuse a compiled pipeline that a backend would not take or not run well.

    Args:
        text: the IR; a second document, if any, is the platform's.
        what: names it in the message.

    Raises:
        ConfigError: names every fault.
    """
    if found := faults(text):
        raise ConfigError(f"{what}: {'; '.join(found)}")


def faults(text: str) -> list[str]:
    """Every breach of a limit in a compiled pipeline, one sentence each."""
    if len(text.encode()) >= IR_BYTES:
        return [f"the IR has {len(text.encode())} bytes, and {IR_BYTES} are too many: make fewer, bigger tasks"]
    spec, platform = documents(text)
    return [
        *_name_faults(spec),
        *_size_faults(spec, platform),
        *_graph_faults(spec),
        *_cache_faults(spec),
        *_platform_faults(spec, platform),
    ]


def documents(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pipeline and what the platform adds to it (empty when nothing)."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found = [document for document in yaml.load_all(text, Loader=loader) if document]
    return found[0], found[1] if len(found) > 1 else {}


def argument_faults(arguments: Mapping[str, Any]) -> list[str]:
    """What is wrong with a run's parameters as a whole."""
    size = len(json.dumps(arguments).encode())
    if size <= PARAMETERS_BYTES:
        return []
    return [f"the run's parameters have {size} bytes, and KFP takes {PARAMETERS_BYTES}: put settings into a profile"]


def leaf_tasks(spec: Spec) -> Iterator[tuple[str, Spec, Spec]]:
    """Key, task and component of every task that is no DAG, in all DAGs."""
    for component in [spec["root"], *spec["components"].values()]:
        for key, task in component.get("dag", {}).get("tasks", {}).items():
            target = spec["components"][task["componentRef"]["name"]]
            if "dag" not in target:
                yield key, task, target


def executor_of(spec: Spec, component: Spec) -> Spec:
    """The container (or importer) that a component runs."""
    return spec["deploymentSpec"]["executors"][component["executorLabel"]]


def _name_faults(spec: Spec) -> Iterator[str]:
    name = spec["pipelineInfo"]["name"]
    if not NAME.fullmatch(name) or len(name) > NAME_LENGTH:
        yield f"{name}: a pipeline's name has lower-case letters, digits, '-' and '.', {NAME_LENGTH} at most"
    if f"comp-{name}" in spec["components"]:
        yield f"{name}: a component has the pipeline's name, and kfp would load that instead"
    keys = [key for key, _, _ in leaf_tasks(spec)]
    for key in sorted({key for key in keys if keys.count(key) > 1}):
        yield f"{key}: two tasks have this name, and a run's states tell tasks by name"


def _size_faults(spec: Spec, platform: Spec) -> Iterator[str]:
    given = {
        name: parameter.get("defaultValue")
        for name, parameter in spec["root"].get("inputDefinitions", {}).get("parameters", {}).items()
    }
    yield from argument_faults(given)
    parts = {f"component {name}": component for name, component in spec["components"].items()}
    parts |= {f"executor {name}": executor for name, executor in spec["deploymentSpec"]["executors"].items()}
    parts |= {f"platform of {name}": config for name, config in kubernetes_configs(platform).items()}
    parts |= {f"task {key}": task for key, task, _ in leaf_tasks(spec)}
    for what, part in parts.items():
        # a DAG's component is sent without its tasks, which travel one by one
        size = len(json.dumps({k: v for k, v in part.items() if k != "dag"}).encode())
        if size >= ARGUMENT_BYTES:
            yield f"{what} has {size} bytes of JSON, and {ARGUMENT_BYTES} fit: pass lists as artifacts, keep code thin"
    count = sum(1 for _ in leaf_tasks(spec))
    if count * TASK_BYTES > WORKFLOW_BYTES:
        yield f"{count} tasks make a Workflow of more than {WORKFLOW_BYTES} bytes: make fewer, bigger tasks"


def _graph_faults(spec: Spec) -> Iterator[str]:
    yield from _dag_faults(spec, spec["root"], in_loop=False, conditional=False)


def _dag_faults(spec: Spec, component: Spec, *, in_loop: bool, conditional: bool) -> Iterator[str]:
    for key, task in component.get("dag", {}).get("tasks", {}).items():
        target = spec["components"][task["componentRef"]["name"]]
        loops = "parameterIterator" in task or "artifactIterator" in task
        chooses = bool(task.get("triggerPolicy", {}).get("condition"))
        if "artifactIterator" in task:
            yield f"{key}: a loop goes over artifacts, which the backend cannot: pass parameters"
        if loops:
            yield from _loop_faults(key, task, in_loop, conditional or "exit-handler" in key)
        if "dag" not in target and "importer" in executor_of(spec, target):
            if in_loop or loops:
                yield f"{key}: an importer in a loop fails (kubeflow/pipelines 10860)"
            if conditional or chooses:
                yield f"{key}: an importer under a condition fails"
        if "dag" in target:
            yield from _dag_faults(
                spec,
                target,
                in_loop=in_loop or loops,
                conditional=conditional or chooses or key.startswith("exit-handler"),
            )


def _loop_faults(key: str, task: Spec, in_loop: bool, conditional: bool) -> Iterator[str]:
    if in_loop:
        yield f"{key}: a loop in a loop is not bounded by parallelism"
    if not task.get("iteratorPolicy", {}).get("parallelismLimit"):
        yield f"{key}: a loop without parallelism starts everything at once"
    raw = task.get("parameterIterator", {}).get("items", {}).get("raw")
    items = json.loads(raw) if raw else []
    if len(items) > ITERATIONS:
        yield f"{key}: {len(items)} iterations stall (kubeflow/pipelines 12131): fan out in a Job"
    if conditional and any(isinstance(item, dict) for item in items):
        yield f"{key}: mappings as items are mis-scoped under a condition or exit handler (kubeflow/pipelines 13273)"


def _containers(spec: Spec) -> Iterator[tuple[str, Spec, Spec, Spec]]:
    """Key, task, component and container of every task that runs one."""
    for key, task, component in leaf_tasks(spec):
        if container := executor_of(spec, component).get("container"):
            yield key, task, component, container


def _cache_faults(spec: Spec) -> Iterator[str]:
    for key, task, _, container in _containers(spec):
        if task.get("cachingOptions", {}).get("enableCache"):
            yield f"{key}: KFP's cache is on, and it does not see what a folder holds or a package does"
        if "pip install" in " ".join([*container.get("command", []), *container.get("args", [])]):
            yield f"{key}: installs packages when it runs: put them into the image"


def kubernetes_configs(platform: Spec) -> dict[str, Any]:
    """Executor to what Kubernetes adds to it."""
    return platform.get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {}).get("executors", {})


def _platform_faults(spec: Spec, platform: Spec) -> Iterator[str]:
    """What kfp-kubernetes lets through and the backend does not."""
    if not platform:
        return
    configs = kubernetes_configs(platform)
    workspace = json.dumps(platform.get("platforms", {}).get("kubernetes", {}).get("pipelineConfig", {}))
    if "workspace" in workspace and "accessModes" not in workspace:
        yield "a workspace needs accessModes"
    for key, task, component, _ in _containers(spec):
        config = configs.get(component["executorLabel"], {})
        for name in ("secretAsVolume", "secretAsEnv"):
            mounted = [secret.get("secretName") for secret in config.get(name, [])]
            if len(mounted) != len(set(mounted)):
                yield f"{key}: mounts one secret twice"
        sizes = [mount.get("sizeLimit", "1") for mount in config.get("emptyDirMounts", [])]
        sizes += [volume.get("size", "") for volume in config.get("genericEphemeralVolume", [])]
        for size in sizes:
            if not QUANTITY.fullmatch(size):
                yield f"{key}: the size {size!r} makes the driver panic"
        if any(label.startswith("kueue.x-k8s.io/") for label in config.get("podMetadata", {}).get("labels", {})):
            yield f"{key}: a queue label on a step's pod; it belongs on the job that the step starts"
        for passed in component.get("taskConfigPassthroughs", []):
            if not passed.get("applyToTask"):
                yield f"{key}: {passed.get('field')} is passed on and not set on the task's own pod: applyToTask"
        if not config.get("securityContext", {}).get("runAsNonRoot"):
            yield f"{key}: may run as root, and PodSecurity restricted refuses its pod"
        if not int(config.get("activeDeadlineSeconds", 0)):
            yield f"{key}: has no time-out"
        if "retryPolicy" not in task:
            yield f"{key}: does not say how often it is retried"
