"""Requests as the server read them, and what is to go wrong with some."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .kube_store import Refused


@dataclass
class Request:
    """One request that came in, as the server read it."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    user: str
    at: float = field(default_factory=time.monotonic)
    status: int = 0
    sent: int = 0  # bytes of the answer's body

    @property
    def watch(self) -> bool:
        return self.asks("watch")

    def asks(self, parameter: str) -> bool:
        return self.query.get(parameter) in ("1", "t", "T", "TRUE", "true", "True")


@dataclass
class Trouble:
    """What is to go wrong with the next ``times`` requests that ``matches`` picks.

    Args:
        status: answer with this HTTP status.
        retry_after: seconds, for its header.
        delay_s: wait before anything is done.
        lose: "request" closes the connection with nothing done, "answer" after the work is done.
    """

    matches: Callable[[Request], bool]
    times: int
    status: int = 0
    reason: str = ""
    message: str = ""
    retry_after: int | None = None
    delay_s: float = 0.0
    lose: str = ""


def failure(trouble: Trouble) -> Refused:
    refused = Refused(trouble.status, trouble.reason, trouble.message or f"made to fail with {trouble.status}")
    if trouble.retry_after is not None:
        refused.headers["Retry-After"] = str(trouble.retry_after)
    return refused
