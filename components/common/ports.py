"""Ports on loopback for servers that have to be told where to listen."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Collection

from .errors import ServiceError

FIRST, LAST = 12_000, 22_000


def is_free(port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def free_port(taken: Collection[int] = ()) -> int:
    """A free port that is none of ``taken``.

    It lies below the range from which the system hands out its own: until the server listens, which may take it some
    seconds, no connection that goes out is given it, and it is likely free the next time too.

    Raises:
        ServiceError: there is none.
    """
    for _ in range(1000):
        port = FIRST + secrets.randbelow(LAST - FIRST)
        if port not in taken and is_free(port):
            return port
    raise ServiceError(f"no free port on 127.0.0.1 between {FIRST} and {LAST}; stop what listens there and run again")
