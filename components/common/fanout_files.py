"""Files of a fan-out in the data root: removed by the step that has read them, by who stops a run, or once they rest.

A step that is killed with its run never comes to remove them. So a plan says for how long nothing may be written in it
while somebody waits for it (``keep_s``: its time in a queue, then its deadline); after that the next fan-out over the
same data root, or ``svdflow data gc``, removes it.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

from .fanout_plan import KEEP_S
from .storage import DataRoot

PLACE = "fanout/"
_SHORTEST_S = 3600.0  # of any plan's rest: a step writes its files well before it has a Job
_REMOVALS = 16  # at once: each is a request where the data root lies in S3


def remove_files(root: DataRoot, name: str) -> None:
    """Remove all files of a fan-out, the plan first: without it the rest is no fan-out."""
    root.remove(f"{PLACE}{name}/plan.json")
    with ThreadPoolExecutor(_REMOVALS) as threads:
        for _ in threads.map(root.remove, list(root.list(f"{PLACE}{name}/"))):
            pass


def resting(root: DataRoot, now: float, at_least_s: float = 0.0) -> list[str]:
    """Names of the fan-outs in which nothing has been written for so long that nobody can wait for them.

    Args:
        root: the data root.
        now: s since 1970.
        at_least_s: what was written to more recently is not among them, whatever its plan says.
    """
    newest: dict[str, float] = {}
    for entry in root.entries(PLACE):
        name = entry.uri.split("/")[1]
        newest[name] = max(newest.get(name, 0.0), entry.written_at)
    rested = {name: now - at for name, at in newest.items() if now - at > max(at_least_s, _SHORTEST_S)}
    return sorted(name for name, seconds in rested.items() if seconds > _keep_s(root, name))


def _keep_s(root: DataRoot, name: str) -> float:
    """For how long a plan's files may rest; the default for one that is broken, partly removed, or not all there."""
    uri = f"{PLACE}{name}/plan.json"
    try:
        return float(json.loads(root.read(uri))["keep_s"]) if root.exists(uri) else KEEP_S
    except (ValueError, TypeError, KeyError):
        return KEEP_S
