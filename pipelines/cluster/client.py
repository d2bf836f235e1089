"""Calls of the Kubeflow Pipelines API, v2beta1, through its generated client: bounded in time, errors in words.

Reads are repeated while the server gives no answer, for ``patience_s``. What creates something is sent once; when its
answer is lost, the thing is looked for by its name before anything else happens.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

from svdflow.common.errors import BadInputError, ServiceError

from .access import Access

CONNECT_S, READ_S = 10, 60
PATIENCE_S = 60.0
PAGE_SIZE, MOST_PAGES = 100, 1000
_EQUALS = 1  # of filter.proto
_PASSING = {429, 500, 502, 503, 504}


class NoAnswer(ServiceError):
    """The server did not answer, or said that it cannot now. What was asked for may have been done all the same.

    ``status`` is HTTP's, 0 when there was none.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Refused(ServiceError):
    """The server said no. ``status`` is HTTP's."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Client:
    """One API server. Objects that calls return are those of ``kfp_server_api``."""

    def __init__(
        self,
        access: Access,
        *,
        patience_s: float = PATIENCE_S,
        timeout_s: tuple[float, float] = (CONNECT_S, READ_S),
        pause_s: float = 1.0,
    ) -> None:
        import kfp_server_api as api
        import urllib3

        self.access, self.patience_s, self.timeout_s, self.pause_s = access, patience_s, timeout_s, pause_s
        configuration = api.Configuration(host=access.endpoint)
        configuration.api_key_prefix["authorization"] = "Bearer"
        if access.ca_file:
            configuration.ssl_ca_cert = str(access.ca_file)
        # a redirect leads to a login page: following it would hand the cookie on and return HTML
        configuration.retries = urllib3.Retry(total=0, redirect=False)
        self._api = api.ApiClient(configuration)
        self._sent: tuple[str | None, str | None] = (None, None)
        self.pipelines = api.PipelineServiceApi(self._api)
        self.uploads = api.PipelineUploadServiceApi(self._api)
        self.experiments = api.ExperimentServiceApi(self._api)
        self.runs = api.RunServiceApi(self._api)
        self.schedules = api.RecurringRunServiceApi(self._api)

    def read(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Make a call that changes nothing; again while there is no answer.

        Raises:
            NoAnswer: there was none for ``patience_s``.
            Refused: the server said no.
        """
        since, pause = time.monotonic(), self.pause_s
        while True:
            try:
                return self.once(call, *arguments, **named)
            except NoAnswer:
                if time.monotonic() - since + pause > self.patience_s:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, 15.0)

    def once(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Make a call.

        Raises:
            NoAnswer: there was none in time, or the server cannot now.
            Refused: the server said no.
        """
        for last in (False, True):
            self._identify()
            try:
                answer = call(*arguments, _request_timeout=self.timeout_s, **named)
            except Exception as error:
                told = self._in_words(error)
                if isinstance(told, Refused) and told.status == 401 and not last and self._renewed():
                    continue  # a projected token was replaced between reading and sending
                raise told from None
            if named.get("_preload_content", True):
                self._require_json()
            return answer
        raise AssertionError("unreachable")

    def create(self, make: Callable[[], Any], find: Callable[[], Any]) -> Any:
        """Create something that has a name of its own, once, also when the answer is lost or somebody was faster.

        Args:
            make: sends the request.
            find: looks the thing up by its name; None when it is not there.

        Raises:
            NoAnswer: it is not known whether it was created.
        """
        try:
            return make()
        except NoAnswer:
            for _ in range(3):
                if (found := find()) is not None:
                    return found
                time.sleep(self.pause_s)
            raise
        except Refused as error:
            if error.status == HTTPStatus.CONFLICT and (found := find()) is not None:
                return found
            raise

    def pages(self, call: Callable[..., Any], field: str, **named: Any) -> Iterator[Any]:
        """All items of a list, page after page."""
        token = ""
        for _ in range(MOST_PAGES):
            page = self.read(call, page_token=token, page_size=PAGE_SIZE, **named)
            yield from getattr(page, field) or []
            token = page.next_page_token or ""
            if not token:
                return

    def first(self, call: Callable[..., Any], field: str, name: str, **named: Any) -> Any:
        """The item of a list that has a name; None when there is none."""
        predicate = {"operation": _EQUALS, "key": "display_name", "stringValue": name}
        found = self.pages(call, field, filter=json.dumps({"predicates": [predicate]}), **named)
        return next((item for item in found if item.display_name == name), None)

    def log(self, run_id: str, pod: str) -> Iterator[bytes]:
        """What a pod of a run has written so far, in pieces. The endpoint has no v2beta1 form."""
        response = self.once(
            self._api.call_api,
            "/apis/v1alpha1/runs/{run_id}/nodes/{node_id}/log",
            "GET",
            {"run_id": run_id, "node_id": pod},
            auth_settings=["Bearer"],
            _preload_content=False,
            _return_http_data_only=True,
        )
        try:
            yield from response.stream(64 * 1024)
        except Exception as error:
            raise self._in_words(error) from None
        finally:
            response.release_conn()

    def _identify(self) -> None:
        token, cookie = self._secrets()
        if token:
            self._api.configuration.api_key["authorization"] = token
        self._api.cookie = cookie
        self._sent = token, cookie

    def _secrets(self) -> tuple[str | None, str | None]:
        token, cookie = self.access.token, self.access.cookie
        return token.read() if token else None, cookie.read() if cookie else None

    def _renewed(self) -> bool:
        return self._secrets() != self._sent

    def _require_json(self) -> None:
        kind = self._api.last_response.getheader("content-type") or ""
        if "json" not in kind:
            raise Refused(
                f"{self.access.endpoint} answered with {kind or 'nothing'} and not with JSON: it is a web page (of a "
                f"login?) and no Kubeflow Pipelines API; see the endpoint, and {self.access.told}",
                200,
            )

    def _in_words(self, error: BaseException) -> BaseException:
        import kfp_server_api as api
        import urllib3

        where = self.access.endpoint
        if isinstance(error, AttributeError) and isinstance(error.__context__, api.ApiException):
            error = error.__context__  # its own handler trips over an answer without a body
        if isinstance(error, urllib3.exceptions.HTTPError):
            cause = getattr(error, "reason", None) or error
            if isinstance(cause, urllib3.exceptions.SSLError):
                return Refused(f"{where}: no TLS connection ({_short(cause)}); a private CA: --ca-file", 0)
            return NoAnswer(f"{where} does not answer: {_short(cause)}")
        if not isinstance(error, api.ApiException):
            return error
        status = int(error.status or 0)
        said = _said(error.body) or str(error.reason or "")
        if status in _PASSING:
            return NoAnswer(f"{where} cannot answer now ({status}): {said}", status)
        if status == 0:
            return Refused(f"{where}: {_short(said)}", 0)
        if 300 <= status < 400:
            to = (error.headers or {}).get("location", "another place")
            return Refused(
                f"{where} leads to {to.partition('?')[0]} ({status}): a login; {self.access.told} was sent", status
            )
        advice = {
            401: f"; {self.access.told} was sent, and it is none, has expired, or is for another audience",
            403: f"; {self.access.told} was sent, and its account may not do this in namespace {self.access.namespace}",
        }.get(status, "")
        return Refused(f"{where} refused ({status}): {said}{advice}", status)


def require_found(found: Any, what: str) -> Any:
    """What was looked up, or a clear error.

    Raises:
        BadInputError: it is not there.
    """
    if found is None:
        raise BadInputError(what)
    return found


def _said(body: str | bytes | None) -> str:
    """The server's own message: gRPC's gateway and the upload server word it differently."""
    text = body.decode(errors="replace") if isinstance(body, bytes) else body or ""
    try:
        loaded = json.loads(text)
    except ValueError:
        return "" if "<" in text else _short(text)
    if not isinstance(loaded, dict):
        return ""
    return _short(loaded.get("message") or loaded.get("error_message") or loaded.get("error") or "")


def _short(text: object) -> str:
    return " ".join(str(text).split())[:400]
