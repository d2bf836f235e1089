"""``python -m svdflow.common.fanout_worker NAME``: what the pod of one index of a fan-out runs.

It reads its part of the units by JOB_COMPLETION_INDEX from the data root (SVDFLOW_DATA_ROOT), works on them in
processes of its own, so that a crash costs one unit, and keeps the outcomes as it goes. Begun again after the whole pod
was lost, it goes on with what is missing, one unit at a time and from the other end: what ends the pod again then costs
itself alone, as all that lie on either side of it are done.

Exit status: 0 when every unit has an outcome; 42 when it was begun too often (the index fails); 43 when no pod can do
this work (another version, a wrong setting: the Job fails); 75 when the data root did not answer or the pod was told to
end (tried again).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from .errors import StorageError, SvdflowError
from .fanout import Limits, LocalProcesses, Outcome
from .fanout_plan import Part, Plan, load_function, read_part, read_plan, read_units, write_part
from .storage import DataRoot

FAIL_INDEX, UNUSABLE, LATER = 42, 43, 75  # exit statuses; see above
_MOST_BEGUN = 12  # a pod that is evicted is replaced uncounted, one that fills its machine's disk would be so for ever
_KEEP_S = 2.0  # outcomes are kept this often in a first try
_MESSAGE_BYTES = 4000  # the kubelet takes 4096


class BegunTooOften(SvdflowError):
    """An index whose pods were lost again and again."""


def main(arguments: Sequence[str]) -> int:
    """Run one index; returns the exit status. The last line that is printed says why it is not 0."""
    signal.signal(signal.SIGTERM, _told_to_end)
    try:
        if len(arguments) != 1 or not os.environ.get("JOB_COMPLETION_INDEX", "").isdigit():
            raise SvdflowError("usage: fanout_worker NAME, with JOB_COMPLETION_INDEX set; an Indexed Job starts it")
        root = DataRoot.open(_required("SVDFLOW_DATA_ROOT"))
        plan = read_plan(root, arguments[0])
        if plan is None:
            raise SvdflowError(f"{root.location}: holds no fan-out {arguments[0]}; it was removed, nobody waits for it")
        run_index(root, plan, int(os.environ["JOB_COMPLETION_INDEX"]))
        return 0
    except BegunTooOften as error:
        return _say(error, FAIL_INDEX)
    except StorageError as error:
        return _say(error, LATER)
    except SvdflowError as error:
        return _say(error, UNUSABLE)


def run_index(root: DataRoot, plan: Plan, index: int) -> None:
    """Work on the units of an index that have no outcome yet.

    Raises:
        StorageError: the data root does not answer, or a unit says so. ConfigError: the function is not to be had.
    """
    part = read_part(root, plan, index)
    if part.done:
        return
    if part.begun >= _MOST_BEGUN:
        raise BegunTooOften(f"index {index} was begun {part.begun} times and never came to its end")
    units = read_units(root, plan, index)
    outcomes, begun = dict(part.outcomes), part.begun + 1
    missing = [at for at in range(len(units)) if at not in outcomes]
    write_part(root, plan, index, Part(outcomes, begun))
    first, keep_s = begun == 1, _KEEP_S if begun == 1 else 0.0
    if begun % 2 == 0:
        missing.reverse()
    kept_at = time.monotonic()
    try:
        for at, outcome in _work(plan, units, missing, first):
            outcomes[at] = (outcome.value, outcome.error, outcome.seconds)
            if time.monotonic() - kept_at >= keep_s:
                _keep(root, plan, index, Part(outcomes, begun))
                kept_at = time.monotonic()
    except (SvdflowError, SystemExit) as error:
        told = str(error) if isinstance(error, StorageError) else None
        _keep(root, plan, index, Part(outcomes, begun, storage_error=told))
        raise
    _keep(root, plan, index, Part(outcomes, begun, done=True))


def _keep(root: DataRoot, plan: Plan, index: int, part: Part) -> None:
    """Write outcomes down, unless the plan has been removed: its run was stopped, and nobody would remove them."""
    if root.exists(plan.uri("plan.json")):
        write_part(root, plan, index, part)


def _work(plan: Plan, units: list[Any], places: list[int], first: bool) -> Iterator[tuple[int, Outcome]]:
    """Each unit's place and its outcome, in no order."""
    chosen, at_place = [units[at] for at in places], {id(units[at]): at for at in places}
    limits = Limits(**plan.limits)
    function = load_function(plan.function)
    outcomes: Iterator[Outcome]
    if not first:  # each has its outcome kept before the next is begun
        outcomes = (outcome for unit in chosen for outcome in LocalProcesses().run(function, [unit], 1, limits))
    elif plan.together:
        outcomes = load_function(plan.together)(chosen, plan.workers, limits)
    else:
        outcomes = LocalProcesses().run(function, chosen, plan.workers, limits)
    for outcome in outcomes:
        yield at_place[id(outcome.unit)], outcome


def _required(variable: str) -> str:
    if value := os.environ.get(variable):
        return value
    raise SvdflowError(f"{variable} is not set; the Job's environment lacks it")


def _told_to_end(number: int, frame: object) -> None:
    raise SystemExit(LATER)


def _say(error: SvdflowError, status: int) -> int:
    line = f"svdflow fan-out: {error}"
    print(line, file=sys.stderr, flush=True)
    try:  # a step reads it from the pod's status; the kubelet has made the file
        with open(os.open("/dev/termination-log", os.O_WRONLY), "wb") as log:
            log.write(line.encode()[:_MESSAGE_BYTES])
    except OSError:
        pass  # not in a pod
    return status


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
