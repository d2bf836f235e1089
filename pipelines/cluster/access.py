"""Where the Kubeflow Pipelines API is and who calls it.

Secrets come from files and variables, never from arguments. The first found counts:

* endpoint: ``--endpoint``, SVDFLOW_KFP_ENDPOINT, the environment file, KF_PIPELINES_ENDPOINT
* namespace: ``--namespace``, SVDFLOW_KFP_NAMESPACE, the environment file, a pod's own
* token: ``--token-file``, SVDFLOW_KFP_TOKEN, SVDFLOW_KFP_TOKEN_FILE, KF_PIPELINES_SA_TOKEN_PATH, the volume of a pod
* cookie: ``--cookie-file``, SVDFLOW_KFP_COOKIE, SVDFLOW_KFP_COOKIE_FILE
* CA: ``--ca-file``, SVDFLOW_KFP_CA_FILE; else Mozilla's

Files are read anew for each request: the kubelet replaces a projected token long before it ends.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from svdflow.common.errors import ConfigError

PROJECTED_TOKEN = Path("/var/run/secrets/kubeflow/pipelines/token")  # as the kfp SDK has it
OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
SECRET_BYTES = 64 * 1024


@dataclass(frozen=True)
class Secret:
    """A value that is told to the server and to nobody else; ``source`` says where it came from."""

    source: str
    path: Path | None = None
    value: str = field(default="", repr=False)

    def read(self) -> str:
        """The value as it is now.

        Raises:
            ConfigError: the file cannot be read, is empty, or cannot be sent in a header.
        """
        value = self.value
        if self.path is not None:
            try:
                with self.path.open("rb") as file:
                    value = file.read(SECRET_BYTES + 1).decode("ascii")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"{self.source}: cannot be read ({type(error).__name__})") from None
        value = value.strip()
        if not value or len(value) > SECRET_BYTES or not re.fullmatch(r"[\x20-\x7e]+", value):
            raise ConfigError(f"{self.source}: is empty, too long or no single line of ASCII")
        return value


@dataclass(frozen=True)
class Access:
    """How to reach the API of one cluster."""

    endpoint: str
    namespace: str
    token: Secret | None = None
    cookie: Secret | None = None
    ca_file: Path | None = None

    @property
    def told(self) -> str:
        """With what the caller identifies itself, for messages."""
        sources = [secret.source for secret in (self.token, self.cookie) if secret]
        return " and ".join(sources) or "no token and no cookie"


def find_access(
    endpoint: str | None = None,
    namespace: str | None = None,
    token_file: Path | None = None,
    cookie_file: Path | None = None,
    ca_file: Path | None = None,
    *,
    default_endpoint: str = "",
    default_namespace: str = "",
    environ: Mapping[str, str] = os.environ,
) -> Access:
    """Gather it from options, the process's environment and an environment file's defaults.

    Raises:
        ConfigError: there is no endpoint, it is no URL, or a secret would cross a network in the clear.
    """
    url = (
        endpoint
        or environ.get("SVDFLOW_KFP_ENDPOINT")
        or default_endpoint
        or environ.get("KF_PIPELINES_ENDPOINT")
        or ""
    ).rstrip("/")
    if not url:
        raise ConfigError("no Kubeflow Pipelines endpoint: name it with --endpoint, --env or SVDFLOW_KFP_ENDPOINT")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise ConfigError(f"endpoint {_without_user(url)}: write it as http(s)://host[:port][/path], without a user")
    projected = Path(environ.get("KF_PIPELINES_SA_TOKEN_PATH") or PROJECTED_TOKEN)
    token = _secret("token", "SVDFLOW_KFP_TOKEN", token_file, environ)
    if token is None and (environ.get("KF_PIPELINES_SA_TOKEN_PATH") or projected.is_file()):
        token = Secret(f"the token in {projected}", projected)
    cookie = _secret("cookie", "SVDFLOW_KFP_COOKIE", cookie_file, environ)
    if (token or cookie) and parts.scheme == "http" and not _stays_inside(parts.hostname):
        raise ConfigError(
            f"endpoint {url}: a token or cookie would cross the network in the clear; use https "
            "(http is for loopback and for services inside the cluster)"
        )
    ca = ca_file or (Path(path) if (path := environ.get("SVDFLOW_KFP_CA_FILE")) else None)
    if ca is not None and not ca.is_file():
        raise ConfigError(f"CA file {ca}: there is no such file")
    # for several users Kubeflow Pipelines lists nothing without a namespace
    namespace = namespace or environ.get("SVDFLOW_KFP_NAMESPACE") or default_namespace or _own_namespace()
    return Access(url, namespace, token, cookie, ca)


def _own_namespace() -> str:
    return OWN_NAMESPACE.read_text().strip() if OWN_NAMESPACE.is_file() else ""


def _secret(what: str, variable: str, path: Path | None, environ: Mapping[str, str]) -> Secret | None:
    if path is not None:
        return Secret(f"the {what} in {path}", path)
    if value := environ.get(variable):
        return Secret(f"the {what} in {variable}", value=value)
    if named := environ.get(f"{variable}_FILE"):
        return Secret(f"the {what} in {named}", Path(named))
    return None


def _stays_inside(host: str) -> bool:
    """Loopback, a service's name, or an address that a port forward or a cluster's network has."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return "." not in host or host.endswith((".svc", ".localhost")) or ".svc." in host


def _without_user(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//…@", url)
