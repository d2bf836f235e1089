"""Alerts and queries as Prometheus' own tool sees them: each alert comes when it has to, and only then."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.monitoring import alerts, autoscaler_queries, dashboard_queries, rules

CASES = Path(__file__).resolve().parents[1] / "data" / "alerts.test.yaml"


def promtool(*arguments: object, fails: bool = False) -> str:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not there: apt-get install prometheus")
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=600)
    told = done.stdout + done.stderr
    assert bool(done.returncode) == fails, told
    return told


def test_the_alerts_are_rules_that_prometheus_takes(tmp_path):
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(alerts()))
    count = len(rules(alerts()))
    assert f"{count} rules found" in promtool("check", "rules", tmp_path / "rules.yaml")


def test_every_alert_comes_when_it_has_to_and_only_then(tmp_path):
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(alerts({"summary"})))
    shutil.copy(CASES, tmp_path)
    promtool("test", "rules", tmp_path / CASES.name)


def test_every_alert_has_a_case_in_which_it_comes_and_one_in_which_it_does_not():
    looked_at = [case for test in yaml.safe_load(CASES.read_text())["tests"] for case in test["alert_rule_test"]]
    names = {rule["alert"] for rule in rules(alerts())}
    assert {case["alertname"] for case in looked_at if case["exp_alerts"]} == names
    silent = {case["alertname"] for case in looked_at if not case["exp_alerts"]}
    one_of_several = {"RequestsFail"}  # it is silent about the release whose requests do not fail, in the same case
    assert silent | one_of_several == names


def test_every_alert_is_missed_where_its_metrics_have_other_names(tmp_path):
    spoilt = alerts({"summary"})
    for rule in rules(spoilt):
        rule["expr"] = re.sub(r"\b(\w+)\{", r"another_\1{", rule["expr"])
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(spoilt))
    shutil.copy(CASES, tmp_path)
    told = promtool("test", "rules", tmp_path / CASES.name, fails=True)
    assert set(re.findall(r"alertname: (\w+)", told)) == {rule["alert"] for rule in rules(spoilt)}


def test_every_query_of_dashboard_and_autoscaler_is_one(tmp_path):
    asked = [*dashboard_queries().values(), *autoscaler_queries().values()]
    recorded = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(asked)]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": recorded}]}))
    assert f"{len(asked)} rules found" in promtool("check", "rules", tmp_path / "rules.yaml")
    recorded[0]["expr"] += ")"
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": recorded}]}))
    promtool("check", "rules", tmp_path / "rules.yaml", fails=True)


def test_every_alert_says_how_bad_it_is_and_what_to_do():
    for rule in rules(alerts()):
        assert rule["labels"]["severity"] in ("critical", "warning"), rule["alert"]
        assert set(rule["annotations"]) == {"summary", "description"}, rule["alert"]
