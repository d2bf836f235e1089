"""The figures of a run for Prometheus: its first process serves them where ``SVDFLOW_METRICS_PORT`` names a port.

Nothing is counted for it: a scrape reads what the trainer holds at that moment, on a thread of its own. What ends in
``_total`` counts from this process's start, as Prometheus expects of counters, so that a run that was set back to its
last checkpoint shows no leap; how far the run has come altogether is the gauge ``svdflow_training_step``.

Whatever is wrong with port or scraper costs a line in the log, never a step.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from .trainer import Trainer

VARIABLE = "SVDFLOW_METRICS_PORT"
_PREFIX = "svdflow_training_"
_SCRAPES = 4  # at the same time; whoever comes beyond is turned away
_PATIENCE_S = 10.0  # with a scraper that neither asks nor reads


@contextmanager
def served(run: Trainer) -> Iterator[None]:
    """Meanwhile ``GET /metrics`` answers with the run's figures, where a port is named and this is process 0."""
    server = _server(run) if run.rank == 0 else None
    if server is None:
        yield
        return
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


class RunCollector:
    """Reads a run's figures whenever they are asked for; a collector of ``prometheus_client``.

    Args:
        run: process 0 of a run that is set up, its first step not yet begun.
    """

    def __init__(self, run: Trainer) -> None:
        self.run = run
        self._trained_s, self._waited_s = run.state["trained_s"], run.state["waited_s"]

    def collect(self) -> Iterator[Metric]:
        """All figures that there are by now, with the stage as their only label but for a GPU's process."""
        with self.run.telling:  # all of them are of the same step
            figures = list(self._figures())
        yield from figures

    def _figures(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        stage, done = self.run.job.stage, len(self.run.state["loss"])
        for kind, figures in ((CounterMetricFamily, self._counters(done)), (GaugeMetricFamily, self._gauges(done))):
            for name, meaning, value in figures:
                if value is not None:
                    family = kind(_PREFIX + name, meaning, labels=["stage"])
                    family.add_metric([stage], value)
                    yield family
        if self.run.peak_memory:
            family = GaugeMetricFamily(
                f"{_PREFIX}gpu_memory_peak_bytes", "Most that was allocated on the GPU of a process so far",
                labels=["stage", "rank"],
            )  # fmt: skip
            for rank, peak in enumerate(self.run.peak_memory):
                family.add_metric([stage, str(rank)], peak)
            yield family

    def _counters(self, all_done: int) -> Iterable[tuple[str, str, float | None]]:
        run, state, store = self.run, self.run.state, self.run.store
        done = all_done - run.started_at
        return (
            ("steps", "Optimiser steps that this process has done", done),
            ("samples", "Samples that these steps were over, of all processes", done * run.settings.batch),
            ("step_seconds", "Time that these steps took", state["trained_s"] - self._trained_s),
            ("data_wait_seconds", "Time of it that a process waited for data, mean of all",
             state["waited_s"] - self._waited_s),
            ("checkpoints_written", "Checkpoints that this process has written", run.saved),
            ("checkpoint_copies", "Checkpoints copied to the object store", store.sent if store else None),
            ("checkpoint_copy_failures", "Attempts at such a copy that failed", store.failures if store else None),
        )  # fmt: skip

    def _gauges(self, done: int) -> Iterable[tuple[str, str, float | None]]:
        run, state = self.run, self.run.state
        measured = state["validation"][-1] if state["validation"] else state["before"]
        lr = run.engine.masters.optimizer.param_groups[0]["lr"] if done > run.started_at else None
        return (
            ("step", "Optimiser steps that the run has done, those before it was broken off included", done),
            ("steps_planned", "Optimiser steps of the whole run", run.settings.steps),
            ("processes", "Processes that train, one for each GPU", run.processes),
            ("last_step_timestamp_seconds", "When the last step ended; before the first, when this process was ready",
             _wall_clock(run.stepped_time)),
            ("loss", "Training loss of the last step", _last(state["loss"])),
            ("gradient_norm", "L2 norm of the last step's gradient before clipping", _last(state["gradient_norm"])),
            ("parameter_norm", "L2 norm of the weights after the last step", _last(state["parameter_norm"])),
            ("learning_rate", "Learning rate of the last step", lr),
            ("held_out_loss", "Held-out loss when it was last measured", measured["mean"] if measured else None),
            ("last_checkpoint_timestamp_seconds",
             "When the last checkpoint was written; before the first, when this process was ready",
             _wall_clock(run.saved_time)),
        )  # fmt: skip


def _last(curve: list[float]) -> float | None:
    return curve[-1] if curve else None


def _wall_clock(then: float) -> float:
    """Seconds since 1970 of a time of the monotonic clock."""
    return round(time.time() - time.monotonic() + then, 1)


def _server(run: Trainer) -> _Server | None:
    """A server that listens, or None and a line in the log where there is cause for one."""
    told = os.environ.get(VARIABLE, "")
    if not told:
        return None
    if not (told.isascii() and told.isdecimal() and 0 < int(told) < 1 << 16):
        _say(f"{VARIABLE} is {told[:60]!r}, and no port from 1 to 65535")
        return None
    try:
        from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app
    except ImportError:
        _say(f"{VARIABLE}: prometheus-client is not installed")
        return None
    registry = CollectorRegistry(auto_describe=False)
    registry.register(RunCollector(run))
    ProcessCollector(registry=registry)
    try:
        server = _listen(int(told))
    except OSError as error:
        _say(f"{VARIABLE}: port {told} cannot be had ({error})")
        return None
    server.set_app(_metrics_alone(make_wsgi_app(registry)))
    print(f"metrics for Prometheus: port {told}, /metrics", flush=True)
    return server


def _say(reason: str) -> None:
    print(f"{reason}; no metrics are served, training goes on", flush=True)


def _listen(port: int) -> _Server:
    """On all addresses of this machine, of both families where it has both."""
    if socket.has_dualstack_ipv6():
        try:
            return _DualStackServer(("::", port), _Handler)
        except OSError:  # the address family may be there and switched off
            pass
    return _Server(("", port), _Handler)


def _metrics_alone(metrics: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        plain = ("Content-Type", "text/plain")
        if environ["PATH_INFO"] != "/metrics":
            start_response("404 Not Found", [plain])
            return [b"/metrics is all there is\n"]
        if environ["REQUEST_METHOD"] != "GET":
            start_response("405 Method Not Allowed", [plain, ("Allow", "GET")])
            return [b"GET is all there is\n"]
        return metrics(environ, start_response)

    return answer


class _Handler(WSGIRequestHandler):
    timeout = _PATIENCE_S

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are no news."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, *args: Any) -> None:
        self._free = threading.BoundedSemaphore(_SCRAPES)
        self._complained = False
        super().__init__(*args)

    def server_bind(self) -> None:
        """As TCPServer: HTTPServer asks the resolver for this machine's name, which may take its time."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "", self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """One line for all that ever goes wrong: a scraper comes again and again."""
        if not self._complained:
            self._complained = True
            print(f"a scrape of the metrics failed ({sys.exc_info()[1]!r}); others are not told", flush=True)


class _DualStackServer(_Server):
    address_family = socket.AF_INET6

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()
