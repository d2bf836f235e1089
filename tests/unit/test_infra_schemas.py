"""Every manifest against the schemas of Kubernetes and of the custom resources."""

import importlib.util
import json
from typing import Any

import pytest
import yaml

from tests import core_kinds
from tests.rendered import CHECKER, LOADER, Manifest, label


@pytest.fixture(scope="module")
def checker() -> Any:
    """The strict checker, with the CRD schemas beside it."""
    if not CHECKER.is_file():
        pytest.skip(f"{CHECKER} is not there")
    spec = importlib.util.spec_from_file_location("check_manifests", CHECKER)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:  # schemas of 2 MB: the parser in C
        patch.setattr(yaml, "safe_load_all", lambda text: yaml.load_all(text, LOADER))
        module.schemas = module.load_schemas()
    return module


def different(rendered: dict[str, list[Manifest]]) -> dict[str, dict[str, Any]]:
    """Every manifest once, under a name to be found by."""
    return {json.dumps(m, sort_keys=True): {"in": name, "m": m} for name, ms in rendered.items() for m in ms}


def test_custom_resources_hold_their_schemas_strictly(rendered, checker):
    validators = {key: checker.jsonschema.Draft202012Validator(schema) for key, schema in checker.schemas.items()}
    checked = set()
    for entry in different(rendered).values():
        manifest = entry["m"]
        key = (manifest["apiVersion"], manifest["kind"])
        group = key[0].partition("/")[0]
        if key in validators:
            checked.add(key[1])
            errors = [f"{list(e.path)}: {e.message[:200]}" for e in validators[key].iter_errors(manifest)]
            assert errors == [], f"{entry['in']}: {label(manifest)}"
        elif key[1] != "ComputeClass":  # Google publishes no schema of it
            assert "." not in group or group.endswith(".k8s.io") and "x-k8s" not in group, f"no schema for {key}"
    assert {"ClusterTrainingRuntime", "ClusterQueue", "NodePool", "ScaledObject", "InferenceService"} <= checked


def test_core_kinds_hold_their_schemas_strictly(rendered, checker):
    pytest.importorskip("kubernetes_validate", reason="kubernetes-validate (100 MB of schemas) is not installed")
    for entry in different(rendered).values():
        manifest = entry["m"]
        if (manifest["apiVersion"], manifest["kind"]) not in checker.schemas and manifest["kind"] != "ComputeClass":
            assert checker.core_errors(manifest) == [], f"{entry['in']}: {label(manifest)}"


def test_core_kinds_have_no_field_that_kubernetes_lacks_and_lack_none_that_it_asks_for(rendered):
    checked = set()
    for entry in different(rendered).values():
        manifest = entry["m"]
        if core_kinds.is_core(manifest):
            checked.add(manifest["kind"])
            assert core_kinds.errors(manifest) == [], f"{entry['in']}: {label(manifest)}"
    assert {"Deployment", "StatefulSet", "Job", "NetworkPolicy", "Role", "PodDisruptionBudget", "Service"} <= checked
