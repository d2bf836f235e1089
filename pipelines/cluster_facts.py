"""What a cluster answers when it is looked at: objects, names, reviews of access. Nothing is changed."""

from __future__ import annotations

import enum
import json
import os
from typing import Any

from svdflow.common.cluster.api import Cluster
from svdflow.common.errors import ServiceError

from .cluster_needs import RUNNER

_TIMEOUT_S = (5.0, 15.0)  # to connect, to answer
_PAGE, _MOST_PAGES = 500, 40
_NAMES = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io,application/json"


class Unreachable(ServiceError):
    """The API server does not answer, or takes no credentials."""


class Access(enum.Enum):
    """Why something was not to be read."""

    ABSENT = enum.auto()
    FORBIDDEN = enum.auto()


class Facts:
    """A cluster, asked with short patience."""

    def __init__(self, cluster: Cluster) -> None:
        self._client = cluster.client
        self.namespace = cluster.namespace
        self._reviewed: dict[str, Any] | None = None  # whose access is reviewed, where it is not one's own

    def get(self, path: str, **query: str) -> Any:
        """What stands at a path, or why not.

        Raises:
            Unreachable: no answer, or none that tells.
        """
        return self._ask("GET", path, query)

    def list(self, path: str, **query: str) -> list[dict[str, Any]] | Access:
        """All items at a path, page by page."""
        items: list[dict[str, Any]] = []
        token = ""
        for _ in range(_MOST_PAGES):
            page = self._ask("GET", path, {**query, "limit": str(_PAGE), "continue": token})
            if isinstance(page, Access):
                return page
            items += page["items"]
            token = page["metadata"].get("continue") or ""
            if not token:
                break
        return items

    def names(self, path: str) -> set[str] | Access:
        """Names of the items at a path. The server is asked for metadata: contents do not travel."""
        page = self._ask("GET", path, {}, accept=_NAMES)
        return page if isinstance(page, Access) else {item["metadata"]["name"] for item in page["items"]}

    def reviewed(self) -> str:
        """Whose access ``may`` is about: the runner's, where one may ask about others; otherwise one's own."""
        if not os.environ.get("KUBERNETES_SERVICE_HOST"):  # in a pod, one's own is what matters
            user = f"system:serviceaccount:{self.namespace}:{RUNNER}"
            groups = ["system:serviceaccounts", f"system:serviceaccounts:{self.namespace}", "system:authenticated"]
            self._reviewed = {"user": user, "groups": groups}
            if not isinstance(self.may("", "pods", "get"), Access):
                return RUNNER
        self._reviewed = None
        return "you"

    def user(self) -> str:
        """Who asks, in the server's words; empty where it does not tell."""
        path, kind = "/apis/authentication.k8s.io/v1/selfsubjectreviews", "SelfSubjectReview"
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": kind, "metadata": {}}
        answer = self._ask("POST", path, {}, body)
        return "" if isinstance(answer, Access) else answer.get("status", {}).get("userInfo", {}).get("username", "")

    def may(self, group: str, resource: str, verb: str) -> bool | Access:
        """Whether something is allowed in the namespace; Access when the cluster does not tell."""
        plural, _, part = resource.partition("/")
        asked = {"namespace": self.namespace, "group": group, "resource": plural, "verb": verb, "subresource": part}
        attributes = {key: value for key, value in asked.items() if value or key == "group"}
        kind = "SubjectAccessReview" if self._reviewed else "SelfSubjectAccessReview"
        body: dict[str, Any] = {"apiVersion": "authorization.k8s.io/v1", "kind": kind, "metadata": {}}
        body["spec"] = {"resourceAttributes": attributes, **(self._reviewed or {})}
        answer = self._ask("POST", f"/apis/authorization.k8s.io/v1/{kind.lower()}s", {}, body)
        return answer if isinstance(answer, Access) else bool(answer.get("status", {}).get("allowed"))

    def _ask(
        self, method: str, path: str, query: dict[str, str], body: Any = None, accept: str = "application/json"
    ) -> Any:
        import urllib3
        from kubernetes.client.exceptions import ApiException

        try:
            response = self._client.call_api(
                path, method, query_params=[(key, value) for key, value in query.items() if value],
                header_params={"Accept": accept, "Content-Type": "application/json"}, body=body,
                auth_settings=["BearerToken"], _preload_content=False, _return_http_data_only=True,
                _request_timeout=_TIMEOUT_S,
            )  # fmt: skip
            return json.loads(response.data)
        except ApiException as error:
            if error.status == 404:
                return Access.ABSENT
            if error.status == 403:
                return Access.FORBIDDEN
            said = "the credentials are not accepted" if error.status == 401 else f"{error.status} {error.reason}"
            raise Unreachable(f"{self._client.configuration.host}: {said}") from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unreachable(f"{self._client.configuration.host} does not answer ({type(error).__name__})") from None
        except ValueError:
            raise Unreachable(f"{self._client.configuration.host}{path} answers with no JSON") from None


def kfp_answers(endpoint: str) -> tuple[bool, str]:
    """Whether Kubeflow Pipelines' API answers at a URL, and what was seen."""
    import urllib3

    url = f"{endpoint.rstrip('/')}/apis/v2beta1/healthz"
    try:
        answer = urllib3.request("GET", url, timeout=urllib3.Timeout(*_TIMEOUT_S), retries=False, redirect=False)
    except (urllib3.exceptions.HTTPError, ValueError) as error:
        return False, f"no answer ({type(error).__name__})"
    if answer.status == 200:
        try:
            told = json.loads(answer.data)
        except ValueError:
            return False, "something else answers there"
        return True, f"multi-user: {told.get('multi_user')}" if "multi_user" in told else "answers"
    if answer.status in (301, 302, 303, 307, 308, 401, 403):
        return True, f"answers and asks for a login ({answer.status})"
    return False, f"answers {answer.status}"
