"""What a training run tells Prometheus, and that neither a port nor a scraper can disturb it."""

import http.client
import re
import shutil
import socket
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics

from svdflow.training.train import prometheus_metrics
from svdflow.training.train.prometheus_metrics import VARIABLE, RunCollector, served
from tests.monitoring import alerts, dashboard_queries, rules
from tests.ports import free_port
from tests.scraping import complaints, get, parsed, scrape, training
from tests.waiting import wait_for


def a_run(rank: int = 0, **values) -> SimpleNamespace:
    """A run of eight steps, four of them done, two by this process."""
    state = {"loss": [4.0, 3.0, 2.5, 2.25], "gradient_norm": [9.0, 8.0, 7.0, 6.0], "parameter_norm": [50.0] * 4,
             "validation": [{"step": 2, "mean": 1.5, "loss": [1.0, 2.0]}], "before": {"mean": 3.5},
             "trained_s": 12.0, "waited_s": 3.0}  # fmt: skip
    made = {
        "rank": rank, "processes": 2, "job": SimpleNamespace(stage="image_to_video"), "state": state, "started_at": 2,
        "settings": SimpleNamespace(batch=16, steps=8), "store": SimpleNamespace(sent=3, failures=1), "saved": 2,
        "stepped_time": 0.0, "saved_time": 0.0, "peak_memory": [], "telling": threading.Lock(),
        "engine": SimpleNamespace(
            masters=SimpleNamespace(optimizer=SimpleNamespace(param_groups=[{"lr": 1e-4, "params": []}]))
        ),
    }  # fmt: skip
    return SimpleNamespace(**(made | values))


STEP = "svdflow_training_step"


class SlowFigures(dict):
    """A run's figures, at each of which the trainer gets its turn."""

    def __getitem__(self, name):
        time.sleep(0.001)
        return super().__getitem__(name)


def test_figures_of_one_scrape_are_of_one_step():
    run = a_run(started_at=0, saved=4, processes=1)
    run.state = SlowFigures(run.state)
    over = threading.Event()

    def train():
        curves = [dict.__getitem__(run.state, name) for name in ("loss", "gradient_norm", "parameter_norm")]
        while not over.wait(0.0005):
            with run.telling:
                for curve in curves:
                    curve.append(float(len(curve)))
                run.saved += 1

    thread = threading.Thread(target=train)
    thread.start()
    try:
        until, scrapes = time.monotonic() + 120, []
        while len(scrapes) < 20 or (len({told[STEP] for told in scrapes}) < 3 and time.monotonic() < until):
            scrapes.append({m.name: m.samples[0].value for m in RunCollector(run).collect()})
            time.sleep(0)  # the trainer's turn
    finally:
        over.set()
        thread.join()
    assert len({told[STEP] for told in scrapes}) > 2
    for told in scrapes[1:]:
        shown = [told[f"svdflow_training_{n}"] for n in ("steps", "checkpoints_written", "loss", "parameter_norm")]
        step = told[STEP]
        assert shown == [step, step, step - 1, step - 1]


@pytest.fixture
def port(monkeypatch) -> int:
    found = free_port()
    monkeypatch.setenv(VARIABLE, str(found))
    return found


def test_without_the_variable_and_on_other_processes_nothing_listens(monkeypatch, port, capsys):
    monkeypatch.setattr(prometheus_metrics, "_listen", lambda _: pytest.fail("listens"))
    with served(a_run(rank=1)):
        pass
    monkeypatch.delenv(VARIABLE)
    with served(a_run()):
        pass
    assert capsys.readouterr().out == ""


def test_figures_are_what_the_run_holds_when_it_is_asked_and_counters_begin_with_the_process(port):
    run = a_run()
    with served(run):
        before = training(scrape(port))
        run.state["loss"].append(2.0)
        run.state["trained_s"], run.state["waited_s"], run.peak_memory = 18.0, 3.5, [2e9, 3e9]
        after = training(scrape(port))
    assert (before["step"], before["steps_total"], before["samples_total"]) == (4, 2, 32)
    assert (before["step_seconds_total"], before["data_wait_seconds_total"], before["loss"]) == (0, 0, 2.25)
    assert (after["step"], after["steps_total"], after["samples_total"]) == (5, 3, 48)
    assert (after["step_seconds_total"], after["data_wait_seconds_total"], after["loss"]) == (6, 0.5, 2)
    assert (after["gpu_memory_peak_bytes[0]"], after["gpu_memory_peak_bytes[1]"]) == (2e9, 3e9)
    assert not [name for name in before if "gpu" in name]
    assert (after["held_out_loss"], after["steps_planned"], after["processes"]) == (1.5, 8, 2)
    assert (after["checkpoints_written_total"], after["checkpoint_copies_total"]) == (2, 3)
    assert after["checkpoint_copy_failures_total"] == 1 and after["learning_rate"] == 1e-4


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_it_listens_on_both_families_of_addresses_or_on_the_one_there_is(port, monkeypatch, address):
    both = socket.has_dualstack_ipv6()
    if ":" in address and not both:
        pytest.skip("this machine has no IPv6")
    with served(a_run()), socket.create_connection((address, port), 20):
        pass
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    with served(a_run()):
        assert training(scrape(port))["step"] == 4


def test_what_there_is_not_yet_is_left_out_and_not_told_as_zero(port):
    state = a_run().state | {"loss": [], "gradient_norm": [], "parameter_norm": [], "validation": [], "before": None}
    with served(a_run(state=state, started_at=0, store=None)):
        found = training(scrape(port))
    assert found["step"] == found["steps_total"] == 0
    missing = {"loss", "gradient_norm", "parameter_norm", "learning_rate", "held_out_loss", "checkpoint_copies_total"}
    assert not missing & set(found)


def test_the_exposition_holds_prometheus_conventions_and_openmetrics(port):
    with served(a_run(peak_memory=[1e9])):
        text = scrape(port)
        status, kind, other = get(port, Accept="application/openmetrics-text;version=1.0.0")
    assert status == 200 and kind.startswith("application/openmetrics-text")
    theirs = {(s.name, tuple(sorted(s.labels.items()))) for f in openmetrics(other) for s in f.samples}
    assert set(parsed(text)) == theirs
    assert ("process_resident_memory_bytes", ()) in theirs
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not there: apt-get install prometheus")
    assert complaints(text, promtool) == ""
    assert "no help text" in complaints("wrong_name_total_things 1\n", promtool)


def test_dashboard_and_alerts_ask_for_figures_that_are_told(port):
    with served(a_run(peak_memory=[1e9])):
        told = {name for name, _ in parsed(scrape(port))}
    queries = [*dashboard_queries().values(), *(rule["expr"] for rule in rules(alerts()))]
    asked = {name for query in queries for name in re.findall(r"svdflow_training_\w+", query)}
    assert len(asked) > 10 and asked <= told


def test_get_of_metrics_is_all_that_is_answered(port):
    with served(a_run()):
        assert get(port, "/")[0] == get(port, "/metrics/")[0] == get(port, "/favicon.ico")[0] == 404
        assert {get(port, method=method)[0] for method in ("POST", "PUT", "DELETE", "OPTIONS", "HEAD")} == {405}
        assert get(port, "/metrics?name%5B%5D=svdflow_training_step")[0] == 200


@pytest.mark.parametrize("told", ["metrics", "0", "65536", "-1", "tcp://10.0.0.1:9464", "9464 ", "\u0664"])
def test_what_is_no_port_costs_a_line(monkeypatch, capsys, told):
    monkeypatch.setenv(VARIABLE, told)
    with served(a_run()):
        pass
    (line,) = capsys.readouterr().out.splitlines()
    assert VARIABLE in line and "no port" in line and "training goes on" in line


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::"])
def test_a_port_that_is_taken_costs_a_line_and_its_holder_keeps_it(port, capsys, host):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if family == socket.AF_INET6 and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    with socket.socket(family) as taken:
        taken.bind((host, port))
        taken.listen()
        with served(a_run()):
            pass
    (line,) = capsys.readouterr().out.splitlines()
    assert f"port {port} cannot be had" in line and "in use" in line and "training goes on" in line


def test_the_port_is_free_again_when_the_run_has_ended(port, capsys):
    for _ in range(2):
        with served(a_run()):
            scrape(port)
    with pytest.raises(ConnectionRefusedError):
        scrape(port)
    assert "cannot" not in capsys.readouterr().out


def answered(port: int) -> bool:
    """A scraper that is turned away comes again."""
    try:
        return training(scrape(port))["step"] == 4
    except (OSError, http.client.HTTPException):
        return False


def test_scrapers_that_hang_do_not_pile_up_and_let_go_in_time(port, monkeypatch, capsys):
    with served(a_run()):
        scrape(port)
        monkeypatch.setattr(prometheus_metrics._Handler, "timeout", 0.3)  # short for those who mean to answer, too
        before = threading.active_count()
        hanging = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
        for connection in hanging[::2]:
            connection.sendall(b"GET /metr")
        for connection in hanging:
            connection.settimeout(120)
            try:
                assert connection.recv(100) == b"", "nobody is answered"
            except ConnectionResetError:
                pass
            assert threading.active_count() <= before + prometheus_metrics._SCRAPES
            connection.close()
        assert wait_for(lambda: answered(port), 120), "whoever comes later is let in"
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if "a scrape of the metrics failed" in line]) <= 1 and len(lines) <= 2


def test_without_the_library_a_run_trains_and_says_so(port, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with served(a_run()):
        pass
    assert "prometheus-client is not installed" in capsys.readouterr().out
