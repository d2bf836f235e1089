"""What a content is: probed with bounded memory and time, and kept under its hash.

The verdict is all that probing found out: facts of a video, the URI of its bytes and a thumbnail, or an error.
"""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.fanout import in_pods
from ..common.identity import identity
from ..common.storage import DataRoot, object_uri
from . import examine
from .examine import ProbeSettings


@dataclass(frozen=True)
class Content:
    """Bytes by name and size."""

    sha256: str
    md5: str
    bytes: int


@dataclass(frozen=True)
class Brought:
    """Bytes in the data root for a worker to probe; ``written``: they were not there before. Names no place."""

    uri: str
    written: bool
    content: Content
    root: str
    probe: ProbeSettings
    timeout_s: float


@in_pods
def probe_brought(brought: Brought) -> dict[str, Any]:
    """The verdict on bytes that a step has brought; what is no video is removed again.

    Raises:
        StorageError: the data root cannot be read or written.
    """
    root = DataRoot.open(brought.root)
    verdict = find_verdict(root, brought.content, brought.probe)
    if verdict is None:
        with root.held(brought.uri) as path:
            verdict = keep(
                examine_bounded(path, brought.probe, brought.timeout_s), brought.content, None, root, brought.probe
            )
    if "error" in verdict and brought.written:
        root.remove(brought.uri)
    return verdict


def find_verdict(root: DataRoot, content: Content, probe: ProbeSettings) -> dict[str, Any] | None:
    """What is known about a content, None when nothing is or its bytes were lost from the root."""
    if root.find("forgotten", content.sha256) is not None:
        return {"error": "forgotten: it was taken down, see the receipt in the dataset registry"}
    found = root.find("ingest", _verdict_key(content, probe))
    return found if found is not None and (not found.get("uri") or root.exists(found["uri"])) else None


def keep(
    found_out: dict[str, Any], content: Content, own: Path | None, root: DataRoot, probe: ProbeSettings
) -> dict[str, Any]:
    """Store what was found out, and the bytes of what is a video.

    Args:
        found_out: of ``examine``.
        content: what it is about.
        own: a file of ours with the bytes; None when the root has them.
        root: takes both.
        probe: how it was found out.
    """
    if "error" in found_out:
        verdict = {"error": found_out["error"]}
    else:
        verdict = {"info": found_out["info"], "faults": found_out["faults"]}
        verdict["thumbnail"] = root.put_bytes(found_out["thumbnail"])
        verdict["uri"] = root.adopt_file(own, content.md5) if own else object_uri(content.md5)
    root.record("ingest", _verdict_key(content, probe), verdict)
    return verdict


def examine_bounded(path: Path, probe: ProbeSettings, timeout_s: float) -> dict[str, Any]:
    """Probe a file with bounded memory and time: its headers may claim anything, a decoder may hang."""
    with _memory_limit(probe.memory_mb << 20), _time_limit(timeout_s):
        return examine.examine(str(path), probe)


@contextmanager
def _memory_limit(more_bytes: int) -> Iterator[None]:
    """At most so much address space more than now; above it an allocation fails, which is a verdict and no crash."""
    try:
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:  # no Linux: the fan-out's own limit holds
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = now + more_bytes
    resource.setrlimit(resource.RLIMIT_AS, (wanted if soft == resource.RLIM_INFINITY else min(soft, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """The kernel ends this process after so long, wherever it hangs; the fan-out replaces it."""
    previous = signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _verdict_key(content: Content, probe: ProbeSettings) -> str:
    return identity(sha256=content.sha256, version=examine.VERSION, probe=probe)
