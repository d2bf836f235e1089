"""A client of the Kubernetes API: the official one's connections and credentials, raw dictionaries for its models.

Every request has a time-out. One that meets a busy or absent server, or credentials that have just expired, is sent
again for ``patience_s``; creating is safe to send twice, since names are derived from inputs.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .errors import Broken, ClusterError, Expired, understood
from .kinds import Kind, Object

if TYPE_CHECKING:
    from kubernetes.client import ApiClient, Configuration

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
MERGE_PATCH = "application/merge-patch+json"
_PAGE = 500
_CONNECT_S, _REQUEST_S = 10.0, 30.0
_PATIENCE_S = 600.0  # an API server is away for a minute or two while its control plane is upgraded
_CREDENTIALS_S = 120.0  # a kubelet renews a token long before it ends; a wrong one is not waited for any longer
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.25, 10.0
_MAX_LINE_BYTES = 16 * 2**20  # an object has at most 3 MiB


class Cluster:
    """A connection to one namespace of a cluster. Use as a context manager: leaving it ends open streams.

    Args:
        configure: makes the official client's configuration; called again when credentials are refused.
        namespace: of all objects.
        patience_s: how long a server that is away or busy is waited for.
        clock: seconds, rising; with ``sleep`` it is what tests replace.
    """

    def __init__(
        self,
        configure: Callable[[], Configuration],
        namespace: str,
        patience_s: float = _PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.namespace, self.patience_s = namespace, patience_s
        self._configure, self._clock, self._sleep = configure, clock, sleep
        self._client: ApiClient | None = None
        self._streams: set[Any] = set()
        self.closed = False

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End open streams; whoever reads one finds it ended."""
        self.closed = True
        for response in list(self._streams):
            try:
                response.shutdown()
            except (OSError, ValueError, RuntimeError):
                pass  # it has ended meanwhile

    # objects

    def get(self, kind: Kind, name: str) -> Object:
        """One object. Raises NotThere."""
        return self._ask("GET", kind, name, f"get {kind.name} {name}")

    def create(self, kind: Kind, obj: Object) -> Object:
        """Create an object; an unknown field is refused, not dropped. Raises AlreadyThere."""
        obj = {"apiVersion": kind.api_version, "kind": kind.name, **obj}
        what = f"create {kind.name} {obj['metadata']['name']}"
        return self._ask("POST", kind, "", what, {"fieldValidation": "Strict", "fieldManager": "svdflow"}, obj)

    def patch(self, kind: Kind, name: str, change: Object) -> Object:
        """Merge a change into an object; with a ``resourceVersion`` in it, only into that version. Raises Changed."""
        what = f"patch {kind.name} {name}"
        return self._ask("PATCH", kind, name, what, {"fieldManager": "svdflow"}, change, content_type=MERGE_PATCH)

    def delete(self, kind: Kind, obj: Object, exactly: bool = False) -> None:
        """Delete an object with all that it owns, unless it has gone or another bears its name by now.

        Args:
            kind: of the object.
            obj: as it was read.
            exactly: only if nobody has changed it since then. Raises Changed.
        """
        meta = obj["metadata"]
        conditions = {"uid": meta["uid"]} | ({"resourceVersion": meta["resourceVersion"]} if exactly else {})
        # Without Background a Job would leave its pods behind, and Foreground lets Trainer start them anew meanwhile.
        options = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
        options |= {"preconditions": conditions}  # type: ignore[dict-item]
        try:
            self._ask("DELETE", kind, meta["name"], f"delete {kind.name} {meta['name']}", {}, options)
        except ClusterError as error:
            if error.status == 404 or (error.status == 409 and not exactly):
                return
            raise

    def pages(self, kind: Kind, labels: str = "", fields: str = "") -> Iterator[tuple[list[Object], str]]:
        """Pages of the objects that the server's selectors let through, all of one version. Raises Expired."""
        query = {"limit": str(_PAGE), "labelSelector": labels, "fieldSelector": fields}
        token = ""
        while True:
            page = self._ask("GET", kind, "", f"list {kind.plural}", {**query, "continue": token})
            token = page["metadata"].get("continue") or ""
            yield page["items"], page["metadata"]["resourceVersion"]
            if not token:
                return

    def list(self, kind: Kind, labels: str = "", fields: str = "") -> list[Object]:
        """All objects that the server's selectors let through."""
        while True:
            try:
                return [item for items, _ in self.pages(kind, labels, fields) for item in items]
            except Expired:  # it took too long to turn the pages: from the beginning
                continue

    @property
    def client(self) -> ApiClient:
        """The official client, for what no kind stands for here: versions, the whole cluster, reviews of access."""
        return self._connected()

    # streams

    @contextmanager
    def lines(
        self, kind: Kind, name: str, part: str, query: Mapping[str, str], silence_s: float, tries: bool = True
    ) -> Iterator[Iterator[bytes]]:
        """Lines of an answer that goes on, without their ends, as they come.

        Args:
            kind: of what is watched, or of the pod whose log is read.
            name: of the object, or empty.
            part: ``log``, or empty.
            query: parameters.
            silence_s: without a byte for so long, the connection counts as lost.
            tries: whether to ride out a server that is away when the stream is opened.

        Raises:
            Broken: the connection ended in the middle, or was silent.
            ClusterError: refused.
        """
        what = f"watch {kind.plural}" if not part else f"read the {part} of {kind.name} {name}"
        response = self._send("GET", kind.path(self.namespace, name, part), kind, what, query, None, None, silence_s,
                              patient=tries)  # fmt: skip
        self._streams.add(response)
        if self.closed:
            response.close()
        try:
            yield self._split(response, what)
        finally:
            self._streams.discard(response)
            response.close()

    def _split(self, response: Any, what: str) -> Iterator[bytes]:
        import urllib3

        left = b""
        try:
            while chunk := response.read1(1 << 16):
                *lines, left = (left + chunk).split(b"\n")
                yield from lines
                if len(left) > _MAX_LINE_BYTES:
                    raise ClusterError(f"{what}: a line of more than {_MAX_LINE_BYTES} bytes")
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise Broken(f"{what}: the connection broke ({_short(error)})", passing=True) from None
        if left:
            yield left

    def pause(self, seconds: float) -> None:
        """Wait, as the cluster's own clock has it."""
        self._sleep(seconds)

    def now(self) -> float:
        """Seconds, rising."""
        return self._clock()

    # requests

    def _ask(
        self,
        method: str,
        kind: Kind,
        name: str,
        what: str,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        content_type: str = "application/json",
    ) -> Object:
        path = kind.path(self.namespace, name)
        response = self._send(method, path, kind, what, query or {}, body, content_type, _REQUEST_S, whole=True)
        try:
            answer = json.loads(response)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):  # a proxy's page, or a login's, with a status of success
            raise ClusterError(f"{what}: something else than the Kubernetes API answers there, and not in JSON", 200)
        return answer

    def _send(
        self,
        method: str,
        path: str,
        kind: Kind,
        what: str,
        query: Mapping[str, str],
        body: Object | None,
        content_type: str | None,
        read_s: float,
        whole: bool = False,
        patient: bool = True,
    ) -> Any:
        """Send a request until it is answered; the body of the answer, or (not ``whole``) the open answer."""
        import urllib3
        from kubernetes.client.exceptions import ApiException

        begun, wait = self._clock(), _FIRST_WAIT_S
        headers = {"Accept": "application/json", "Content-Type": content_type or "application/json"}
        parameters = [(key, value) for key, value in query.items() if value]
        while True:
            try:
                response = self._connected().call_api(
                    path, method, query_params=parameters, header_params=dict(headers), body=body,
                    auth_settings=["BearerToken"], _preload_content=False, _return_http_data_only=True,
                    _request_timeout=(_CONNECT_S, read_s),
                )  # fmt: skip
                if not whole:
                    return response
                data = response.data
                response.release_conn()
                return data
            except ApiException as error:
                failure = understood(error, what, kind)
                if failure.status == 401:
                    self._client = None  # a token that was renewed on disk is read anew
            except (urllib3.exceptions.HTTPError, OSError) as error:
                failure = ClusterError(f"{what}: no answer from the Kubernetes API ({_short(error)})", passing=True)
            if not failure.passing or not patient or self.closed:
                raise failure
            wait = max(min(wait * 2, _LONGEST_WAIT_S), failure.retry_after_s)
            pause = wait * random.uniform(0.5, 1.0) if not failure.retry_after_s else wait
            patience_s = min(self.patience_s, _CREDENTIALS_S) if failure.status == 401 else self.patience_s
            if self._clock() - begun + pause > patience_s:
                raise ClusterError(f"{failure}; tried for {patience_s:g} s", failure.status)
            self._sleep(pause)

    def _connected(self) -> ApiClient:
        client = self._client  # another thread may drop it at any moment, when its credentials are refused
        if client is None:
            from kubernetes.client import ApiClient

            configuration = self._configure()
            configuration.retries = False
            configuration.connection_pool_maxsize = 16
            self._client = client = ApiClient(configuration)
        return client


def connect(namespace: str | None = None, patience_s: float = _PATIENCE_S) -> Cluster:
    """A connection as this pod's service account or, outside of a cluster, as the kubeconfig's current context.

    Args:
        namespace: of the objects; the pod's own, or the context's, by default.
        patience_s: see ``Cluster``.

    Raises:
        ConfigError: there is neither; the message says what to do.
    """
    configure = _in_cluster if os.environ.get("KUBERNETES_SERVICE_HOST") else _kubeconfig
    configure()  # what is wrong with it is told now
    return Cluster(configure, namespace or _own_namespace(), patience_s)


def _in_cluster() -> Configuration:
    from kubernetes.client import Configuration
    from kubernetes.config import ConfigException
    from kubernetes.config.incluster_config import InClusterConfigLoader

    configuration = Configuration()
    token, certificate = SERVICE_ACCOUNT / "token", SERVICE_ACCOUNT / "ca.crt"
    try:
        InClusterConfigLoader(str(token), str(certificate)).load_and_set(configuration)
    except (ConfigException, OSError) as error:
        raise ConfigError(
            f"no credentials for the Kubernetes API in this pod ({error}): its service account has to mount its token"
        ) from None
    return configuration


def _kubeconfig() -> Configuration:
    from kubernetes.client import Configuration
    from kubernetes.config import ConfigException, load_kube_config

    configuration = Configuration()
    try:
        load_kube_config(os.environ.get("KUBECONFIG") or None, client_configuration=configuration)
    except (ConfigException, OSError, TypeError) as error:
        raise ConfigError(
            f"no way to the Kubernetes API: this is no pod, and the kubeconfig cannot be used ({error})"
        ) from None
    return configuration


def _own_namespace() -> str:
    told = SERVICE_ACCOUNT / "namespace"
    if told.is_file():
        return told.read_text().strip()
    from kubernetes.config import ConfigException, list_kube_config_contexts

    try:
        _, current = list_kube_config_contexts(os.environ.get("KUBECONFIG") or None)
    except (ConfigException, OSError, TypeError):
        current = None
    return ((current or {}).get("context") or {}).get("namespace") or "default"


def _short(error: BaseException) -> str:
    """One line of an error of the network, without the object addresses that urllib3 puts in."""
    text = " ".join(str(error).split()).rpartition(">: ")[2] or type(error).__name__
    return text[:200]
