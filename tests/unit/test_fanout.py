import os
import signal
import time

import pytest

from svdflow.common.errors import BadInputError, StorageError
from svdflow.common.fanout import map_units


def square(n: int) -> int:
    if n == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    if n == 4:
        time.sleep(60)
    if n == 5:
        raise BadInputError("five is refused")
    if n == 6:
        raise ZeroDivisionError("a fault of ours")
    return n * n


@pytest.fixture(scope="module")
def outcomes():
    return {o.unit: o for o in map_units(square, list(range(8)), "numbers", workers=2, timeout_s=4)}


def test_every_unit_comes_back_once_with_its_value(outcomes):
    assert sorted(outcomes) == list(range(8))
    assert {n: outcomes[n].value for n in (0, 1, 2, 7)} == {0: 0, 1: 1, 2: 4, 7: 49}


def test_a_unit_that_crashes_its_process_costs_itself_alone(outcomes):
    assert "-11" in outcomes[3].error


def test_a_unit_that_hangs_is_stopped(outcomes):
    assert "longer than 4 s" in outcomes[4].error


def test_a_refused_unit_gives_the_reason_alone_and_a_fault_gives_its_place(outcomes):
    assert outcomes[5].error == "five is refused"
    assert "ZeroDivisionError" in outcomes[6].error and "test_fanout.py" in outcomes[6].error


def test_no_units_is_no_work():
    assert list(map_units(square, [], "numbers")) == []


def fragile(path: str) -> int:
    try:
        os.open(path, os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return 1
    os._exit(9)


def test_a_crash_that_does_not_repeat_is_forgiven(tmp_path):
    (outcome,) = map_units(fragile, [str(tmp_path / "once")], "files")
    assert outcome.ok and outcome.value == 1


def on_a_full_disk(n: int) -> int:
    raise StorageError("the disk is full")


def test_a_full_disk_is_no_fault_of_a_unit_and_ends_the_work():
    with pytest.raises(StorageError, match="the disk is full"):
        list(map_units(on_a_full_disk, [1, 2], "numbers"))
