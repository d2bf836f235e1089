"""A Prometheus that scrapes a real training, and all that dashboard, alerts and autoscaler ask it (two minutes).

OMP_NUM_THREADS=1 pytest -s tests/benchmarks/test_monitoring.py

The cluster's other sources are a page of made-up series with their labels, so that every query has something to find.
"""

import functools
import http.server
import json
import shutil
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from svdflow.training.train.prometheus_metrics import VARIABLE
from svdflow.training.train.train import train_stage
from tests.monitoring import alerts, autoscaler_queries, dashboard_queries, rules
from tests.ports import free_port
from tests.training_runs import make_autoencoder, make_samples, settings_for

OTHERS = Path(__file__).resolve().parents[1] / "data" / "cluster_metrics.prom"
STEPS, BATCH = 60, 4


class Prometheus:
    """A running server, asked through its API."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def ask(self, path: str, **parameters: Any) -> Any:
        with urllib.request.urlopen(f"{self.url}{path}?{urllib.parse.urlencode(parameters)}", timeout=30) as answer:
            told = json.load(answer)
        assert told["status"] == "success", told
        return told["data"]

    def query(self, expression: str, at: float) -> list[dict[str, Any]]:
        return self.ask("/api/v1/query", query=expression, time=at)["result"]

    def value(self, expression: str, at: float) -> float:
        (found,) = self.query(expression, at)
        return float(found["value"][1])


@contextmanager
def prometheus(folder: Path, training: int, others: int) -> Iterator[Prometheus]:
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not there: apt-get install prometheus")
    pod = {"namespace": "svdflow", "pod": "t-node-0-0-x", "trainjob": "t"}
    server = {"namespace": "svdflow", "pod": "triton-x", "svdflow_track": "stable"}
    targets = {"svdflow/training": (training, pod), "svdflow/triton": (others, server)}
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [
            {
                "job_name": name,
                "honor_labels": True,
                "metrics_path": "/metrics" if name == "svdflow/training" else f"/{OTHERS.name}",
                "static_configs": [{"targets": [f"127.0.0.1:{port}"], "labels": labels}],
            }
            for name, (port, labels) in targets.items()
        ],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    (folder / "rules.yaml").write_text(yaml.safe_dump(alerts()))
    port = free_port()
    command = [program, f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'data'}",
               f"--web.listen-address=127.0.0.1:{port}"]  # fmt: skip
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            found = Prometheus(port)
            deadline = time.monotonic() + 60
            while True:
                try:
                    urllib.request.urlopen(f"{found.url}/-/ready", timeout=5).close()
                    break
                except OSError:
                    assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
                    time.sleep(0.1)
            yield found
        finally:
            process.terminate()
            process.wait(60)


@contextmanager
def other_sources() -> Iterator[int]:
    """Serves the page of the others."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        extensions_map = {".prom": "text/plain; version=0.0.4"}

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(OTHERS.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def test_prometheus_answers_all_that_is_asked_of_it_about_a_real_training(tmp_path, monkeypatch):
    root, samples = make_samples(tmp_path)
    settings = settings_for(make_autoencoder(tmp_path / "vae"), steps=STEPS, checkpoint_every=20, validate_every=20)
    port = free_port()
    monkeypatch.setenv(VARIABLE, str(port))
    with other_sources() as others, prometheus(tmp_path, port, others) as server:
        began = time.time()
        report = train_stage("image", samples, None, tmp_path / "model", root, settings, {})
        told = report.summary["training"]["image"]

        window = f"{int(time.time() - began) + 1}s"
        times = server.query(f'timestamp(svdflow_training_step{{namespace="svdflow"}})[{window}:1s]', time.time())
        at = float(times[0]["values"][-1][1])  # when it was last scraped
        assert server.value("svdflow_training_step", at) > STEPS / 2
        assert server.value("svdflow_training_steps_planned", at) == STEPS
        assert server.value('up{job="svdflow/training"}', at) == 1

        empty = []
        for name, query in {**dashboard_queries(), **autoscaler_queries()}.items():
            found = server.query(query, at)
            print(f"{name}: {[(each['metric'], each['value'][1]) for each in found]}")
            if not found:
                empty.append(name)
        assert empty == ([] if torch.cuda.is_available() else ["GPU memory at its peak A"])

        queries = dashboard_queries()
        a_step = server.value(queries["Seconds a step A"], at)
        print(f"a step: {a_step:.3f} s by Prometheus, {BATCH / told['samples_per_second']:.3f} s by the report")
        assert a_step == pytest.approx(BATCH / told["samples_per_second"], rel=0.5)
        assert 0 < server.value(queries["Throughput A"], at) < 2 * told["samples_per_second"]
        assert server.value(queries["Throughput B"], at) == pytest.approx(told["samples_per_second"], rel=0.5)
        assert 0 <= server.value(queries["Waiting for data A"], at) < 1
        assert 0.5 < server.value(queries["Progress A"], at) <= 1
        assert server.value(queries["Since the last checkpoint A"], at) < at - began

        judged = {rule["name"]: rule for group in server.ask("/api/v1/rules")["groups"] for rule in group["rules"]}
        assert set(judged) == {rule["alert"] for rule in rules(alerts())}
        assert {name: rule.get("lastError") for name, rule in judged.items() if rule["health"] != "ok"} == {}
        came = {name for name, rule in judged.items() if rule["state"] == "firing"}
        assert came == {"OutOfMemory"}, "the page of the others tells of one, and the training is well"
        log = (tmp_path / "log").read_text()
    assert [line for line in log.splitlines() if "level=warn" in line or "level=error" in line] == []
