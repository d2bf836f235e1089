"""What reaches what: network policies, the object store, the overlay without the internet."""

import os
import re
import shutil
import subprocess

import yaml

from tests.rendered import INFRA, LOADER, kubectl, label, pod_templates, reach, selects, strings


def test_nothing_gets_in_or_out_of_any_pod_unless_a_policy_says_so(overlay):
    policies = [m["spec"] for m in overlay if m["kind"] == "NetworkPolicy"]
    denying = [p for p in policies if not p.get("ingress") and not p.get("egress")]
    for name, metadata, _ in pod_templates(overlay):
        closed = {way for p in denying if selects(p["podSelector"], metadata["labels"]) for way in p["policyTypes"]}
        assert closed == {"Ingress", "Egress"}, name
    for policy in policies:
        for rule in policy.get("ingress", []) + policy.get("egress", []):
            assert rule, "an empty rule opens everything"


def test_every_network_policy_tells_why():
    for path in INFRA.rglob("*.yaml"):
        for document in re.split(r"^---\n", path.read_text(), flags=re.M):
            if re.search(r"^kind: NetworkPolicy$", document, re.M):
                assert document.lstrip().startswith("#"), f"{path}: a policy without its reason"


def test_footage_is_decoded_where_only_the_object_store_can_be_reached(rendered):
    fan_out = {"app.kubernetes.io/component": "fan-out"}
    assert reach(rendered["dev"], fan_out) == {8333}
    assert reach(rendered["production"], fan_out) == {443}
    assert reach(rendered["production"], {"app": "unknown"}) == set()


def test_a_server_of_the_cluster_s_own_takes_the_place_of_the_object_store(tmp_path):
    """As an overlay of one's own would have it: dev with MinIO."""
    dev = yaml.safe_load((INFRA / "overlays/dev/kustomization.yaml").read_text())
    up = os.path.relpath(INFRA / "overlays/dev", tmp_path.resolve())
    for kind in ("resources", "components"):
        dev[kind] = [f"{up}/{place}".replace("components/object-store", "components/minio") for place in dev[kind]]
    dev["patches"][0]["path"] = "releases.yaml"
    shutil.copy(INFRA / "overlays/dev/releases.yaml", tmp_path)
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(dev))
    done = subprocess.run([kubectl(), "kustomize", str(tmp_path)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    manifests = {label(m): m for m in yaml.load_all(done.stdout, LOADER) if m}
    told = manifests["ConfigMap/svdflow-object-store"]["data"]
    assert told["SVDFLOW_S3_ENDPOINT"] == "http://minio.minio.svc:9000"
    assert "StatefulSet/object-store" not in manifests and "seaweedfs" not in done.stdout
    for component in ("fan-out", "training", "serving", "console", "storage-job"):
        assert 9000 in reach(list(manifests.values()), {"app.kubernetes.io/component": component}), component
    assert 9000 in reach(list(manifests.values()), {"workflows.argoproj.io/workflow": "run"})
    assert reach(list(manifests.values()), {"app.kubernetes.io/component": "fan-out"}) == {9000}
    assert reach(list(manifests.values()), {"app": "unknown"}) == set()


def test_no_way_out_leads_to_the_nodes_credentials(overlay):
    for manifest in [m for m in overlay if m["kind"] == "NetworkPolicy"]:
        for rule in manifest["spec"].get("egress", []):
            assert rule["to"], label(manifest)
            for block in [peer["ipBlock"] for peer in rule["to"] if "ipBlock" in peer]:
                assert block["cidr"] != "0.0.0.0/0" or "169.254.0.0/16" in block["except"], label(manifest)


def test_triton_is_reached_through_the_gateway_alone(rendered):
    labels = {"app.kubernetes.io/component": "serving", "svdflow/track": "stable"}
    for name in ("dev", "production"):
        policies = [m for m in rendered[name] if m["kind"] == "NetworkPolicy"]
        rules = [r for p in policies if selects(p["spec"]["podSelector"], labels) for r in p["spec"].get("ingress", [])]
        callers = [r for r in rules if any(port["port"] in (8000, 8001) for port in r["ports"])]
        gateway = {"podSelector": {"matchLabels": {"app.kubernetes.io/component": "gateway"}}}
        assert callers == [{"from": [gateway], "ports": [{"port": 8001, "protocol": "TCP"}]}]


def test_the_air_gapped_overlay_names_nothing_outside(rendered):
    addresses = [s for m in rendered["airgapped"] for s in strings(m) if re.match(r"https?://", s)]
    outside = [a for a in addresses if not re.search(r"\.(internal|svc)([:/]|$)", a)]
    assert outside == []
    ranges = [s for m in rendered["airgapped"] if m["kind"] == "NetworkPolicy" for s in strings(m)]
    assert "0.0.0.0/0" not in ranges
