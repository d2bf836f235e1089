"""What is seen: monitors, dashboard, alerts and the figures that they ask for."""

import json
import re
from collections.abc import Iterator

import pytest

from tests.rendered import CHECKER, FIRST, INFRA, Manifest, label, selects


def expressions(manifests: list[Manifest]) -> Iterator[str]:
    for manifest in manifests:
        if manifest["kind"] == "PrometheusRule":
            yield from (rule["expr"] for group in manifest["spec"]["groups"] for rule in group["rules"])
        elif manifest["kind"] == "ScaledObject":
            yield from (trigger["metadata"]["query"] for trigger in manifest["spec"]["triggers"])
        elif manifest["metadata"].get("labels", {}).get("grafana_dashboard"):
            for text in manifest["data"].values():
                panels = json.loads(text)["panels"]
                yield from (target["expr"] for panel in panels for target in panel.get("targets", []))


def test_what_dashboard_alerts_and_autoscaler_ask_for_has_a_known_source(rendered):
    table = (INFRA / "components/monitoring/README.md").read_text()
    known = tuple(name.rstrip("*") for name in re.findall(r"`([A-Za-z_]+\*?)`", table))
    asked = list(expressions(rendered["production"]))
    assert len(asked) > 30
    for expression in asked:
        assert expression.count("(") == expression.count(")") and expression.count("{") == expression.count("}")
        for metric in re.findall(r"([A-Za-z_:][\w:]*)\{", expression):
            assert metric.startswith(known), metric


def test_the_gateways_monitor_keeps_the_metrics_that_are_asked_for(rendered):
    monitor = next(m for m in rendered["production"] if label(m) == "PodMonitor/gateway")
    kept = monitor["spec"]["podMetricsEndpoints"][0]["metricRelabelings"][0]["regex"]
    asked = {m for e in expressions(rendered["production"]) for m in re.findall(r"(envoy_\w+)\{", e)}
    assert asked and [metric for metric in asked if not re.fullmatch(kept, metric)] == []


def test_of_a_training_prometheus_reaches_the_pod_of_rank_0_and_no_other_port(rendered):
    manifests = rendered["production"]
    monitor = next(m for m in manifests if label(m) == "PodMonitor/training")["spec"]
    (endpoint,) = monitor["podMetricsEndpoints"]
    listening = {}
    for runtime in ("svdflow-torch", "svdflow-mpi"):
        spec = next(m for m in manifests if label(m) == f"ClusterTrainingRuntime/{runtime}")["spec"]
        for job in spec["template"]["spec"]["replicatedJobs"]:
            template = job["template"]["spec"]["template"]
            (container,) = template["spec"]["containers"]
            ports = [p["containerPort"] for p in container.get("ports", []) if p["name"] == endpoint["port"]]
            listening[runtime, job["name"]] = ports
            variables = {v["name"]: v["value"] for v in container["env"]}
            assert not ports or ports == [int(variables["SVDFLOW_METRICS_PORT"])]
            assert not selects(monitor["selector"], template["metadata"]["labels"]), "without a number from its job"
            assert selects(monitor["selector"], template["metadata"]["labels"] | FIRST)
            other = {key: "1" for key in FIRST}
            assert not selects(monitor["selector"], template["metadata"]["labels"] | other), "it is closed there"
    at = [9464]
    assert listening == {
        ("svdflow-torch", "node"): at, ("svdflow-mpi", "launcher"): at, ("svdflow-mpi", "node"): []
    }  # fmt: skip
    training = {"app.kubernetes.io/component": "training"}
    policies = [m["spec"] for m in manifests if m["kind"] == "NetworkPolicy"]
    rules = [r for p in policies if selects(p["podSelector"], training) for r in p.get("ingress", [])]
    outside = [r for r in rules if any("podSelector" not in peer for peer in r["from"])]
    namespace = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    assert outside == [{"from": [namespace], "ports": [{"protocol": "TCP", "port": at[0]}]}]


def test_the_labels_that_find_rank_0_are_those_of_real_pods():
    recording = CHECKER.parents[1] / "transcripts" / "trainjob_complete.jsonl"
    if not recording.is_file():
        pytest.skip(f"{recording} is not there")
    events = [json.loads(line).get("event") for line in recording.read_text().splitlines()]
    pods = [e["object"] for e in events if e and e["object"].get("kind") == "Pod"]
    node_ranks = {}
    for pod in pods:
        labels = pod["metadata"]["labels"]
        assert labels["jobset.sigs.k8s.io/jobset-name"] == "svd-a", "the TrainJob's name"
        node_ranks[pod["metadata"]["name"]] = labels[next(iter(FIRST))]
        (rank,) = [v for v in pod["spec"]["containers"][0]["env"] if v["name"] == "PET_NODE_RANK"]
        assert next(iter(FIRST)) in rank["valueFrom"]["fieldRef"]["fieldPath"], (
            "torchrun's node 0 is the pod of index 0"
        )
    assert sorted(node_ranks.values()) == ["0", "1"]


def test_the_dashboards_panels_lie_side_by_side():
    panels = json.loads((INFRA / "components/monitoring/dashboard.json").read_text())["panels"]
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)
