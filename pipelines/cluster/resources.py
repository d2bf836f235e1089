"""What an environment gives a task, applied to it with kfp and kfp-kubernetes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from svdflow.common.errors import ConfigError

from ..tasks import Placement
from .environment import DIGEST, Environment, TaskResources, task_key

if TYPE_CHECKING:
    from kfp import dsl

SHARED_MEMORY = "shared-memory"
_IMAGE = re.compile(r"\$\{image:([^}]*)\}")


def placement(environment: Environment) -> Placement:
    """A function that places tasks in the environment, for ``svdflow.pipelines.tasks.placing``."""

    def place(task: dsl.PipelineTask, name: str) -> None:
        component = task_key(task.component_spec.name)
        task.set_container_image(image_of(task.container_spec.image, environment))
        given = environment.resources(component, task_key(name))
        apply(task, given.model_copy(update={"env": with_images(given.env, environment)}))

    return place


def with_images(variables: Mapping[str, str], environment: Environment) -> dict[str, str]:
    """Variables with ``${image:curation}`` replaced: what a step starts runs the images that the run is stamped with.

    Raises:
        ConfigError: the environment has no such image, or has it without the digest that it asks for.
    """

    def image(found: re.Match[str]) -> str:
        kind = found[1]
        require_digests({kind}, environment)
        return image_of(kind, environment)

    return {name: _IMAGE.sub(image, value) for name, value in variables.items()}


def image_of(declared: str, environment: Environment) -> str:
    """The environment's image for the one that a component names.

    Raises:
        ConfigError: the environment has none.
    """
    kind = image_kind(declared)
    image = environment.images.get(kind)  # type: ignore[call-overload]
    if not image:
        raise ConfigError(f"environment {environment.name}: images.{kind}: there is none, and tasks need it")
    return image


def require_digests(kinds: Iterable[str], environment: Environment) -> None:
    """Refuse images that a tag names: what it points to changes, and KFP's records would not show it.

    Raises:
        ConfigError: names all of them.
    """
    images = {kind: environment.images.get(kind, "") for kind in kinds}  # type: ignore[call-overload]
    lacking = [f"{kind} ({image})" for kind, image in sorted(images.items()) if image and not DIGEST.search(image)]
    if lacking and environment.require_digests:
        raise ConfigError(
            f"environment {environment.name}: images {', '.join(lacking)} have no digest, and what a tag points to "
            "changes: write NAME@sha256:… as the registry told when they were pushed, in the environment, in a file "
            "for --images, or with --image; or set require_digests: false"
        )


def image_kind(declared: str) -> str:
    """What a component's image is called in an environment: ``svdflow/training:0.1.0`` is ``training``."""
    return declared.rpartition("/")[2].partition(":")[0]


def apply(task: dsl.PipelineTask, given: TaskResources) -> None:
    """Set everything of ``given`` on a task."""
    from kfp import kubernetes

    task.set_cpu_request(given.cpu).set_memory_request(given.memory)
    task.set_memory_limit(given.memory_limit or given.memory)
    if given.cpu_limit:
        task.set_cpu_limit(given.cpu_limit)
    if given.accelerator:
        task.set_accelerator_type(given.accelerator.type).set_accelerator_limit(given.accelerator.count)
    retries = given.retries
    task.set_retry(retries.count, f"{retries.backoff_s}s", retries.factor, f"{retries.longest_s}s")
    for name, value in given.env.items():
        task.set_env_variable(name, value)

    kubernetes.set_timeout(task, given.timeout_s)
    who = given.security_context
    kubernetes.set_security_context(task, run_as_user=who.user, run_as_group=who.group, run_as_non_root=True)
    for name, path in given.fields.items():
        kubernetes.use_field_path_as_env(task, name, path)
    for name, config in given.config_maps.items():
        kubernetes.use_config_map_as_env(task, name, config.keys, optional=config.optional)
    for name, secret in given.secrets.items():
        kubernetes.use_secret_as_env(task, name, secret.keys, optional=secret.optional)
    for path, volume in given.volumes.items():
        kubernetes.mount_pvc(task, volume.claim, path, volume.sub_path)
    if given.shared_memory:
        kubernetes.empty_dir_mount(task, SHARED_MEMORY, "/dev/shm", "Memory", given.shared_memory)
    if given.image_pull_secrets:
        kubernetes.set_image_pull_secrets(task, given.image_pull_secrets)
    if given.image_pull_policy:
        kubernetes.set_image_pull_policy(task, given.image_pull_policy)
    for key, value in given.labels.items():
        kubernetes.add_pod_label(task, key, value)
    for key, value in given.annotations.items():
        kubernetes.add_pod_annotation(task, key, value)
    _schedule(task, given)


def _schedule(task: dsl.PipelineTask, given: TaskResources) -> None:
    """Which nodes the task may or should run on."""
    from kfp import kubernetes

    for key, value in given.node_selector.items():
        kubernetes.add_node_selector(task, key, value)
    for taint in given.tolerations:
        kubernetes.add_toleration(
            task,
            key=taint.key,
            operator=taint.operator,
            value=taint.value,
            effect=taint.effect,
            toleration_seconds=taint.seconds,
        )
    for term in given.affinity:
        kubernetes.add_node_affinity(task, [expression.model_dump() for expression in term.match], weight=term.weight)
