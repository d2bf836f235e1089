"""What can go wrong between a step and the Kubernetes API."""

from __future__ import annotations

import json
from typing import Any

from ..errors import ServiceError
from .kinds import Kind


class ClusterError(ServiceError):
    """The Kubernetes API refused a request, or did not answer for longer than is borne.

    Attributes:
        status: of the HTTP answer; 0 where there was none.
        passing: whether the same request may well succeed a little later.
        retry_after_s: what the server asks to wait, if it does.
    """

    def __init__(self, message: str, status: int = 0, passing: bool = False, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.status, self.passing, self.retry_after_s = status, passing, retry_after_s


class NotThere(ClusterError):
    """There is no such object."""


class AlreadyThere(ClusterError):
    """An object of that name exists, or is still being deleted."""


class Changed(ClusterError):
    """Somebody else has changed the object since it was read."""


class Broken(ClusterError):
    """A stream ended in the middle: go on from where it was."""


class Expired(ClusterError):
    """The version asked for is too old: list again."""


def understood(error: Any, asked: str, kind: Kind) -> ClusterError:
    """An answer that is no success, as one of the errors above.

    Args:
        error: the client's ``ApiException``.
        asked: what was asked for, as "create TrainJob train-video".
        kind: of the object.
    """
    status = int(error.status or 0)
    body = error.body.decode(errors="replace") if isinstance(error.body, bytes) else error.body or ""
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):  # not from the API proper: an unknown kind, a proxy
        if status == 404:
            told = f"{asked}: this cluster does not know {kind.plural} ({kind.api_version}): install {kind.comes_with}"
            return ClusterError(told, status)
        answer = {"message": str(error.reason or body[:200] or "no answer")}
    said, reason = " ".join(str(answer.get("message", "")).split())[:1000], answer.get("reason", "")
    message = f"{asked}: {said} ({status}{f' {reason}' if reason else ''})"
    if status == 404:
        return NotThere(message, status)
    if status == 409:
        return (AlreadyThere if reason == "AlreadyExists" else Changed)(message, status)
    if status == 410:
        return Expired(message, status)
    if status == 401:
        return ClusterError(f"{message}; the credentials are not, or no longer, accepted", status, passing=True)
    if status == 403 and "denied the request" not in said:
        told = "the step's service account may not do this: see the Role pipeline-runner in infra/base/roles.yaml"
        return ClusterError(f"{message}; {told}", status)
    passing = status in (429, 500, 502, 503, 504) and "too large" not in said
    return ClusterError(message, status, passing, _seconds(error, answer))


def _seconds(error: Any, answer: dict[str, Any]) -> float:
    told = (error.headers or {}).get("Retry-After") or (answer.get("details") or {}).get("retryAfterSeconds") or 0
    try:
        return min(60.0, float(told))
    except (TypeError, ValueError):
        return 0.0
