"""A Triton server on this machine, on loopback only, that ends with the process that started it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Sequence
from pathlib import Path

from ..common.errors import BadInputError, ServiceError
from ..common.ports import free_port, is_free
from .model_config import exported_models
from .request import MODEL_NAME

_HOST = "127.0.0.1"
_GRACE_S = 5.0  # for requests in flight when the server is asked to stop
_RACE_TRIES = 3
# the most telling first; each has the cause as its group
_CAUSES = (
    re.compile(r"failed to load '\S+' version \d+: (?:Internal: |Invalid argument: )?([^\"\n]+)"),
    re.compile(r"^error: (?:creating server: )?(.+)$", re.MULTILINE),
    re.compile(r"^E\d{4} [^\]]+\] \"?((?!CudaDriverHelper)[^\"\n]+)", re.MULTILINE),
    re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception): .+$", re.MULTILINE),
    re.compile(r"^\s*what\(\): +(.+)$", re.MULTILINE),
)
_PORT_TAKEN = re.compile(r"already in use|failed to bind|Unavailable - Socket", re.IGNORECASE)


class TritonServer:
    """Runs tritonserver as a context manager; ready, with its models loaded and warm, when entered.

    Attributes (once entered):
        url: host:port of gRPC; http_url and metrics_url: of HTTP and of the Prometheus metrics.
        version: what the server says of itself.
        log: its output.
    """

    def __init__(
        self,
        repository: Path,
        models: Sequence[str] = (MODEL_NAME,),
        *,
        grpc_port: int | None = None,
        http_port: int | None = None,
        metrics_port: int | None = None,
        threads: int | None = None,
        log: Path | None = None,
        start_timeout_s: float = 600.0,
    ) -> None:
        """Describe a server.

        Args:
            repository: a Triton model repository.
            models: names of the models to load.
            grpc_port: a port of its own choice for each that is None or 0.
            http_port: as grpc_port.
            metrics_port: as grpc_port.
            threads: compute threads of a model instance; None leaves it to the environment.
            log: where its output goes; None: a temporary file, kept only when the start fails.
            start_timeout_s: until all models are loaded and warm.
        """
        self.repository, self.models, self.threads, self.start_timeout_s = (
            repository,
            tuple(models),
            threads,
            start_timeout_s,
        )
        self._asked_ports = {"gRPC": grpc_port or None, "HTTP": http_port or None, "metrics": metrics_port or None}
        self._asked_log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch: Path | None = None
        self.url = self.http_url = self.metrics_url = self.version = ""
        self.log = log or Path(os.devnull)

    def __enter__(self) -> TritonServer:
        """Start the server and wait until it is ready.

        Raises:
            BadInputError: no such repository or model.
            ServiceError: no server program, a taken port, a model that does not load, or no answer in time.
        """
        for model in self.models:
            if not (self.repository / model / "config.pbtxt").is_file():
                raise BadInputError(
                    f"{self.repository}: no model {model!r} to serve here (no {model}/config.pbtxt); "
                    "run the export step"
                )
        for what, port in self._asked_ports.items():
            if port is not None and not is_free(port):
                raise ServiceError(
                    f"port {port} on {_HOST} is taken: another server uses it; "
                    f"choose another {what} port, or 0 for a free one"
                )
        self._scratch = _scratch_directory()
        # the backend passes paths through a shell unquoted: a repository below "my runs/" is reached by another name
        (self._scratch / "repository").symlink_to(self.repository.absolute(), target_is_directory=True)
        self.log = self._asked_log or self._scratch / "triton.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        try:
            for attempt in range(1, _RACE_TRIES + 1):
                try:
                    self._start()
                    return self
                except ServiceError:
                    self._end()
                    lost_race = _PORT_TAKEN.search(self.log.read_text(errors="replace"))
                    if attempt == _RACE_TRIES or not lost_race:
                        raise
            raise AssertionError("unreachable")
        except BaseException as error:
            self._end()
            keep = self._asked_log is None and isinstance(error, ServiceError)
            shutil.rmtree(self._scratch / "backends" if keep else self._scratch, ignore_errors=True)
            raise

    def __exit__(self, *_exc: object) -> None:
        """Stop the server: what is being computed gets five seconds."""
        self._end()
        if self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def check(self) -> None:
        """Raise ServiceError when the server has ended."""
        if self._process is None or self._process.poll() is not None:
            raise ServiceError(f"the Triton server has ended{_cause(self.log)} (log: {self.log})")

    def _start(self) -> None:
        assert self._scratch is not None
        program, libraries, options = _find_server(self._scratch)
        ports = _choose_ports(self._asked_ports)
        name = f"svdflow-{uuid.uuid4().hex[:12]}"
        shm_prefix = f"{name}-"
        command = [
            program, f"--id={name}", f"--model-repository={self._scratch / 'repository'}",
            "--model-control-mode=explicit",
            *(f"--load-model={model}" for model in self.models), "--disable-auto-complete-config",
            f"--backend-config=python,shm-region-prefix-name={shm_prefix}", "--allow-gpu-metrics=false",
            f"--grpc-address={_HOST}", f"--grpc-port={ports['gRPC']}",
            f"--http-address={_HOST}", f"--http-port={ports['HTTP']}",
            f"--metrics-address={_HOST}", f"--metrics-port={ports['metrics']}",
            f"--exit-timeout-secs={int(_GRACE_S)}", *options,
        ]  # fmt: skip
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "svdflow.export.supervise", str(_GRACE_S), shm_prefix, str(self._scratch),
                 *command],
                stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=self._environment(libraries),
                start_new_session=True,  # Ctrl-C reaches this process alone, which then stops the server in order
            )  # fmt: skip
        self._wait_ready(f"http://{_HOST}:{ports['HTTP']}", name)
        self.url, self.http_url = f"{_HOST}:{ports['gRPC']}", f"http://{_HOST}:{ports['HTTP']}"
        self.metrics_url = f"http://{_HOST}:{ports['metrics']}/metrics"

    def _environment(self, libraries: list[str]) -> dict[str, str]:
        environment = dict(os.environ)
        # The backend's interpreter is the first one on PATH: this process's own, and so with the same packages.
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])
        if libraries:
            environment["LD_LIBRARY_PATH"] = os.pathsep.join(
                [*libraries, *filter(None, [environment.get("LD_LIBRARY_PATH")])]
            )
        if self.threads is not None:
            environment |= {"OMP_NUM_THREADS": str(self.threads), "MKL_NUM_THREADS": str(self.threads)}
        return environment

    def _wait_ready(self, http: str, name: str) -> None:
        started = looked = time.monotonic()
        waiting = [f"/v2/models/{model}/ready" for model in self.models]
        while True:
            self.check()
            said = _get(f"{http}/v2")
            if (
                said is not None and json.loads(said).get("name") == name
            ):  # another server may have taken the port meanwhile
                waiting = [path for path in waiting if _get(http + path) is None]
                if not waiting:
                    self.version = json.loads(said)["version"]
                    return
            now = time.monotonic()
            if now - looked > 1.0:
                looked = now
                self._check_backend()
            if now - started > self.start_timeout_s:
                raise ServiceError(
                    f"the Triton server was not ready after {self.start_timeout_s:g} s{_cause(self.log)} "
                    f"(log: {self.log}); raise serve.start_timeout_s when the model is large"
                )
            time.sleep(0.1)

    def _check_backend(self) -> None:
        """Raise ServiceError when the backend's process has died: while it loads, the server would wait for ever."""
        import psutil

        assert self._process is not None
        try:
            below = psutil.Process(self._process.pid).children(recursive=True)
            dead = [
                process for process in below if "python" in process.name() and process.status() == psutil.STATUS_ZOMBIE
            ]
        except psutil.NoSuchProcess:
            return
        if dead:
            raise ServiceError(
                f"the process that loads the model died{_cause(self.log)} (log: {self.log}); "
                "when the log gives no reason, look whether the machine ran out of memory"
            )

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_GRACE_S + 5.0)
            except subprocess.TimeoutExpired:
                pass
        if process.stdin:
            process.stdin.close()  # whatever is left, ends now
        process.wait()


def serve_repository(
    repository: Path, grpc_port: int | None = None, http_port: int | None = None, threads: int | None = None
) -> None:
    """Serve all models of a repository in the foreground until Ctrl-C or SIGTERM.

    Raises:
        BadInputError: no such repository.
        ServiceError: the server does not start, or it ends by itself.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)  # a shell that starts a job in the background has it ignored
    try:
        print(f"loading {repository} …", flush=True)
        models = exported_models(repository) or (MODEL_NAME,)
        with TritonServer(repository, models, grpc_port=grpc_port, http_port=http_port, threads=threads) as server:
            print(f"Triton {server.version} serves {', '.join(server.models)} of {repository}", flush=True)
            print(
                f"gRPC     {server.url}\nHTTP     {server.http_url}\nmetrics  {server.metrics_url}\nCtrl-C stops it.",
                flush=True,
            )
            while True:
                time.sleep(0.5)
                server.check()
    except KeyboardInterrupt:
        print("stopped", flush=True)


def _interrupt(_signum: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _find_server(scratch: Path) -> tuple[str, list[str], list[str]]:
    """The server program, the library directories it needs and the options that point at its backends."""
    spec = importlib.util.find_spec("pytriton")  # only the carrier of the server: it is not imported
    if spec is None or not spec.submodule_search_locations:
        if found := shutil.which("tritonserver"):
            return found, [], []
        raise ServiceError(
            "there is no Triton server on this machine: install its carrier with "
            "`pip install --no-deps nvidia-pytriton`, or run where `tritonserver` is on PATH (NVIDIA's image)"
        )
    package = Path(next(iter(spec.submodule_search_locations)))
    home = package / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = home / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise ServiceError(
            f"{home}: this Triton has no python backend for Python {version}; use one of {_stub_versions(home)}"
        )
    backends = scratch / "backends"
    python = backends / "python"
    python.mkdir(parents=True, exist_ok=True)
    for path in (
        home / "backends" / "python" / "libtriton_python.so",
        home / "backends" / "python" / "triton_python_backend_utils.py",
        stub,
    ):
        link = python / path.name
        link.unlink(missing_ok=True)
        link.symlink_to(path)
    libraries = [str(package.parent / "nvidia_pytriton.libs"), str(sysconfig.get_config_var("LIBDIR"))]
    return (
        str(home / "bin" / "tritonserver"),
        libraries,
        [f"--backend-directory={backends}", f"--cache-directory={home / 'caches'}"],
    )


def _stub_versions(home: Path) -> str:
    return ", ".join(
        sorted((path.name for path in (home / "python_backend_stubs").iterdir()), key=lambda v: int(v.split(".")[1]))
    )


def _scratch_directory() -> Path:
    directory = tempfile.gettempdir()
    return Path(
        tempfile.mkdtemp(prefix="svdflow-triton-", dir=directory if re.fullmatch(r"[\w./+-]+", directory) else "/tmp")
    )


def _choose_ports(asked: dict[str, int | None]) -> dict[str, int]:
    ports = {what: port for what, port in asked.items() if port is not None}
    for what in asked:
        if what not in ports:
            ports[what] = free_port(ports.values())
    return ports


def _get(url: str) -> bytes | None:
    """The body of a 200 answer, else None; never through a proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5.0) as answer:
            return answer.read()
    except (OSError, urllib.error.URLError):
        return None


def _cause(log: Path) -> str:
    """What the log says went wrong, as ``: …``, in one line; empty when it says nothing."""
    text = log.read_text(errors="replace")[-100_000:] if log.is_file() else ""
    for pattern in _CAUSES:
        if found := pattern.findall(text):
            first = found[-1].partition("\\n")[0]  # the log writes line ends as backslash and n
            return f": {first.strip()[:400]}"
    return ""
