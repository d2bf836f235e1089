"""Processes that wait at a point until a test has done there what it is about, however late it comes."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

# Read by every Python process at its start. Counts over all processes: the length of a file that they share.
_AT_START = """
import json, os, re, signal, sys, time

_points = json.loads(os.environ["SVDFLOW_TEST_HOLD"])

def _hold(event, arguments):
    if event not in ("open", "os.rename"):
        return
    place = arguments[1] if event == "os.rename" else arguments[0]
    for point in _points:
        if event == point["event"] and isinstance(place, (str, bytes, os.PathLike)):
            if re.search(point["into"], os.fsdecode(place)):
                _wait_at(point)

def _wait_at(point):
    if point["told"]:
        before = signal.getsignal(point["told"])
        signal.signal(point["told"], lambda *how: (before(*how), open(point["over"], "w").close()))
    log = os.open(point["count"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(log, b"x")
    number = os.fstat(log).st_size
    os.close(log)
    while number > point["after"] and not os.path.exists(point["over"]) and not os.path.exists(point["go on"]):
        time.sleep(0.02)
    if point["told"]:
        signal.signal(point["told"], before)

sys.addaudithook(_hold)
"""


@dataclass(frozen=True)
class Point:
    """Where processes wait.

    Args:
        into: pattern of the places.
        after: how many are let through.
        event: Python's audit event: something is put in its place there, or a file is opened ("open").
        told: a signal that ends the waiting there too, once the process that waits has dealt with it.
    """

    into: str
    after: int
    event: str = "os.rename"
    told: int | None = None


@dataclass(frozen=True)
class Holding:
    """Variables for the processes, the file that ends all waiting once it is there, and the points."""

    environment: dict[str, str]
    go_on: Path
    points: tuple[Point, ...]

    def reached(self, number: int = 0) -> bool:
        """Whether a process waits at a point, or has waited there."""
        count = self.go_on.with_name(f"count {number}")
        return count.is_file() and count.stat().st_size > self.points[number].after


def holding(folder: Path, *points: Point) -> Holding:
    """Have processes wait at points; ``folder`` is one for what this needs alone."""
    folder.mkdir(parents=True)
    (folder / "sitecustomize.py").write_text(_AT_START)
    go_on = folder / "go on"
    told = [
        {**asdict(point), "go on": str(go_on), "over": str(folder / f"over {n}"), "count": str(folder / f"count {n}")}
        for n, point in enumerate(points)
    ]
    return Holding({"PYTHONPATH": str(folder), "SVDFLOW_TEST_HOLD": json.dumps(told)}, go_on, points)
