"""Fan-out with real processes: what a unit does to its worker costs that unit alone."""

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from svdflow.common.errors import BadInputError, StorageError
from svdflow.common.fanout import Limits, LocalProcesses, Outcome, machine_memory_bytes, map_units, private_memory_bytes
from tests.waiting import wait_for

LIMIT_BYTES = 400 << 20


def work(n: int) -> int:
    if n == 3:
        ctypes.string_at(0)  # a null pointer read in C, as a decoder might
    if n == 4:
        time.sleep(600)
    if n == 5:
        raise BadInputError("five is refused")
    if n == 6:
        raise ZeroDivisionError("a fault of ours")
    if n == 8:
        hoard(2 * LIMIT_BYTES)
    if n == 9:
        return lambda: n  # cannot be sent
    return n * n


def hoard(size: int) -> None:
    """Take so much memory, touch it and hold it: whoever watches may be slow."""
    kept = bytearray(os.urandom(1) * size)
    time.sleep(600)
    del kept


@pytest.fixture(scope="module")
def outcomes() -> dict[int, Outcome]:
    units = [0, 1, 2, 3, 4, 5, 6, 7, 9]
    return {o.unit: o for o in map_units(work, units, "numbers", workers=2, timeout_s=4, memory_bytes=LIMIT_BYTES)}


def test_every_unit_comes_back_once_and_the_good_ones_with_their_value(outcomes):
    assert sorted(outcomes) == [0, 1, 2, 3, 4, 5, 6, 7, 9]
    assert {n: outcomes[n].value for n in (0, 1, 2, 7)} == {0: 0, 1: 1, 2: 4, 7: 49}


def test_a_segfault_costs_its_unit_alone(outcomes):
    assert "died (exit code -11)" in outcomes[3].error


def test_a_unit_that_hangs_is_stopped(outcomes):
    assert "longer than 4 s" in outcomes[4].error


def test_a_unit_that_takes_too_much_memory_is_stopped_and_the_reason_told():
    found = {o.unit: o for o in map_units(work, [1, 8, 2], "numbers", workers=2, memory_bytes=LIMIT_BYTES)}
    assert "more than 419 MB of memory" in found[8].error
    assert {n: found[n].value for n in (1, 2)} == {1: 1, 2: 4}


def itself(n: int) -> int:
    return n


def test_the_time_that_a_worker_takes_to_start_is_not_its_unit_s():
    """A start takes some 100 ms: with this limit nothing would ever be done."""
    found = list(map_units(itself, list(range(3)), "numbers", workers=1, timeout_s=0.05, tries=20))
    assert sorted(o.value for o in found) == [0, 1, 2]


def test_a_refused_unit_gives_the_reason_alone_and_a_fault_gives_its_place(outcomes):
    assert outcomes[5].error == "five is refused"
    assert "ZeroDivisionError" in outcomes[6].error and "test_fanout.py" in outcomes[6].error


def test_a_value_that_cannot_be_sent_is_a_fault_of_its_unit(outcomes):
    assert "pickle" in outcomes[9].error.lower()


def test_no_units_is_no_work():
    assert list(map_units(work, [], "numbers")) == []


def fragile(path: str) -> int:
    try:
        os.open(path, os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return 1
    os._exit(9)


def test_a_crash_that_does_not_repeat_is_forgiven(tmp_path):
    (outcome,) = map_units(fragile, [str(tmp_path / "once")], "files")
    assert outcome.ok and outcome.value == 1


def counted_crash(path: str) -> None:
    with open(path, "a") as stream:
        stream.write("x")
    os._exit(9)


def test_a_unit_that_crashes_is_tried_as_often_as_told(tmp_path):
    (outcome,) = map_units(counted_crash, [str(tmp_path / "tries")], "files", tries=3)
    assert not outcome.ok and (tmp_path / "tries").read_text() == "xxx"


def on_a_full_disk(n: int) -> int:
    raise StorageError("the disk is full")


def test_a_full_disk_is_no_fault_of_a_unit_and_ends_the_work():
    with pytest.raises(StorageError, match="the disk is full"):
        list(map_units(on_a_full_disk, [1, 2], "numbers"))


def stamped(path: str) -> str:
    Path(path).touch()
    return path


def test_a_worker_goes_on_while_the_caller_is_busy_with_an_outcome(tmp_path):
    paths = [str(tmp_path / str(n)) for n in range(2)]
    outcomes = map_units(stamped, paths, "files", workers=1)
    next(outcomes)
    assert wait_for(Path(paths[1]).exists, 120)
    outcomes.close()


def hoards_in_two_bites(path: str) -> None:
    """The first is within the limit, the second, which is waited for, is not."""
    if path.endswith("b"):
        kept = bytearray(os.urandom(1) * (LIMIT_BYTES // 4))  # twice that while it is copied
        Path(f"{path}.part").write_text(str(os.getpid()))
        Path(f"{path}.part").rename(path)
        assert wait_for(Path(f"{path}.more").exists, 600)
        hoard(LIMIT_BYTES)
        del kept


def test_memory_is_watched_while_the_caller_is_busy_with_an_outcome(tmp_path):
    units, within = [str(tmp_path / "a"), str(tmp_path / "b")], tmp_path / "b"
    outcomes = map_units(hoards_in_two_bites, units, "files", 1, memory_bytes=LIMIT_BYTES)
    next(outcomes)  # the caller does not come back until the end
    assert wait_for(within.exists, 120)
    worker = psutil.Process(int(within.read_text()))
    time.sleep(0.3)  # some looks
    assert worker.status() != psutil.STATUS_ZOMBIE and private_memory_bytes(worker.pid) > LIMIT_BYTES / 4
    Path(f"{within}.more").touch()
    assert wait_for(lambda: worker.status() == psutil.STATUS_ZOMBIE, 120), "the hoarder was let go on"
    outcomes.close()


OWN_MEMORY = """
import mmap, os, sys
from svdflow.common.fanout import private_memory_bytes
before = private_memory_bytes(os.getpid())
with open(sys.argv[1], "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
    assert sum(mapped[:: mmap.PAGESIZE]) > 0
    assert private_memory_bytes(os.getpid()) - before < 16 << 20
mine = b"x" * (64 << 20)
assert private_memory_bytes(os.getpid()) - before > len(mine) * 0.9
"""


def test_file_pages_are_not_a_process_s_own_memory(tmp_path):
    (tmp_path / "weights").write_bytes(b"w" * (64 << 20))
    # In a process of its own: threads that other tests left behind take and give back memory too.
    subprocess.run([sys.executable, "-c", OWN_MEMORY, str(tmp_path / "weights")], check=True, timeout=600)


def threads(n: int) -> tuple[set[int], str]:
    import numpy  # noqa: F401  which loads OpenBLAS: it reads the variables then, and not again
    from threadpoolctl import threadpool_info

    pools = {pool["num_threads"] for pool in threadpool_info()}
    return pools, Path("/proc/self/oom_score_adj").read_text().strip()


def test_workers_compute_with_one_thread_and_are_the_first_to_go_when_the_machine_is_out_of_memory(monkeypatch):
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    (outcome,) = map_units(threads, [0], "numbers")
    assert outcome.value == ({1}, "1000")


def test_variables_of_this_process_are_left_alone_for_other_threads_hand_them_to_processes(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def moved(*variable: bytes) -> None:
        raise AssertionError(f"{variable} was set or removed while another thread may start a process (EFAULT)")

    with monkeypatch.context() as watched:
        watched.setattr(os, "putenv", moved)
        watched.setattr(os, "unsetenv", moved)
        outcomes = list(map_units(work, [1, 2], "numbers"))
    assert sorted(outcome.value for outcome in outcomes) == [1, 4]


def test_the_machine_s_memory_is_what_the_kernel_says_or_less():
    assert 1 << 28 < machine_memory_bytes() <= psutil.virtual_memory().total


def test_another_place_to_work_can_be_named():
    class Here:
        def run(self, function, units: Sequence[int], workers: int | None, limits: Limits) -> Iterator[Outcome]:
            for unit in units:
                yield Outcome(unit, function(unit), None, 0.0)

    assert [o.value for o in map_units(work, [1, 2], "numbers", executor=Here())] == [1, 4]


def test_the_dearest_units_are_begun_first():
    outcomes = map_units(work, [1, 7, 2, 10], "numbers", workers=1, executor=LocalProcesses(cost=float))
    assert [o.unit for o in outcomes] == [10, 7, 2, 1]


def test_seconds_are_the_unit_s_own_and_not_the_wait_for_the_caller():
    outcomes = map_units(work, [1, 2], "numbers", workers=1)
    next(outcomes)
    time.sleep(1.0)
    assert next(outcomes).seconds < 0.5
