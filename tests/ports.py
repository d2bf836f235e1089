"""Ports for what tests start: nobody else is given them between being chosen and being listened on.

A port that the system hands out (``bind`` to 0) may be handed out again as soon as it is let go: to another test, or to
a connection that goes out. These lie below the range of which it hands out, and below those of servers of our own,
and each process of a parallel run has a part of its own.
"""

import itertools
import os
import socket

_FIRST, _EACH, _PARTS = 2_000, 600, 16
_own = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _PARTS
_places = itertools.count(os.getpid())  # two runs at once on one machine begin at different ones


def free_port() -> int:
    """A port that can be listened on, on all addresses of both families; never the same twice in a row."""
    for _ in range(_EACH):
        port = _FIRST + _own * _EACH + next(_places) % _EACH
        if _is_free(port):
            return port
    raise RuntimeError("no port is free")


def _is_free(port: int) -> bool:
    families = [socket.AF_INET, *([socket.AF_INET6] if socket.has_dualstack_ipv6() else [])]
    for family in families:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind(("", port))
            except OSError:
                return False
    return True
