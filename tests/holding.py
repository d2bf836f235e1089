"""Processes that wait at a point until a test has done there what it is about, however late it comes."""

import json
from pathlib import Path

# Read by every Python process at its start. Counts over all processes: the length of a file that they share.
_AT_START = """
import json, os, re, sys, time

_told = json.loads(os.environ["SVDFLOW_TEST_HOLD"])

def _hold(event, arguments):
    if event == "os.rename" and re.search(_told["into"], os.fsdecode(arguments[1])):
        log = os.open(_told["count"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(log, b"x")
        number = os.fstat(log).st_size
        os.close(log)
        while number > _told["after"] and not os.path.exists(_told["until"]):
            time.sleep(0.02)

sys.addaudithook(_hold)
"""


def holding(folder: Path, into: str, after: int) -> tuple[dict[str, str], Path]:
    """An environment in which processes wait before they put the next thing in its place once ``after`` are there.

    Args:
        folder: for what this needs; one of its own.
        into: pattern of the places.
        after: how many are let through.

    Returns:
        The environment's variables, and the file that ends all waiting once it is there.
    """
    folder.mkdir(parents=True)
    (folder / "sitecustomize.py").write_text(_AT_START)
    until = folder / "go on"
    told = {"into": into, "after": after, "until": str(until), "count": str(folder / "count")}
    return {"PYTHONPATH": str(folder), "SVDFLOW_TEST_HOLD": json.dumps(told)}, until
