"""The alerts, the dashboard and the autoscaler's queries of infra, as Prometheus gets to see them."""

import json
from pathlib import Path
from typing import Any

import yaml

INFRA = Path(__file__).resolve().parents[1] / "infra" / "components"
TRACKS = "stable|canary"  # the dashboard's variable, both picked


def alerts(annotations: set[str] | None = None) -> dict[str, Any]:
    """The rule file that the operator makes of the PrometheusRule, with these annotations alone if any are named."""
    spec = yaml.safe_load((INFRA / "monitoring" / "alerts.yaml").read_text())["spec"]
    for rule in rules(spec):
        kept = rule["annotations"]
        rule["annotations"] = {name: kept[name] for name in annotations or kept}
    return spec


def rules(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [rule for group in spec["groups"] for rule in group["rules"]]


def dashboard_queries() -> dict[str, str]:
    """Panel and letter to what it asks for."""
    panels = json.loads((INFRA / "monitoring" / "dashboard.json").read_text())["panels"]
    return {
        f"{panel['title']} {target['refId']}": target["expr"].replace("$track", TRACKS)
        for panel in panels
        for target in panel.get("targets", [])
    }


def autoscaler_queries() -> dict[str, str]:
    """Trigger to what it asks for."""
    scaled = yaml.safe_load((INFRA / "autoscaling" / "scaled-object.yaml").read_text())
    return {trigger["name"]: trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"]}
