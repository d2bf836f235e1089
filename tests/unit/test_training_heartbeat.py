"""A training process that hangs is told from one that works or waits, and named."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from svdflow.training.train.heartbeat import Watch, beat_path, read_beats

CHILD = """
import sys, time
from pathlib import Path
from svdflow.training.train.heartbeat import Heartbeat
beat = Heartbeat(Path(sys.argv[1]), int(sys.argv[2]))
while True:
    beat.at("in step 7")
    time.sleep(0.05)
"""


def beat(folder: Path, rank: int, beats: int, moves: int, doing: str = "in step 3") -> None:
    beat_path(folder, rank).write_text(f"{100 + rank} {beats} {moves} {doing}\n")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_process_without_a_beat_is_named(tmp_path):
    clock = Clock()
    watch = Watch(tmp_path, 2, 10, clock)
    for second in range(30):
        clock.now = second
        beat(tmp_path, 0, second + 1, second + 1)
        beat(tmp_path, 1, min(second, 8) + 1, min(second, 8) + 1)
        told = watch.hanging()
        assert (told is None) == (second <= 18)
        if told:
            break
    assert "training process 1 (pid 101)" in told and "10 s" in told and "in step 3" in told


def test_among_processes_that_all_beat_the_one_that_has_done_least_is_named(tmp_path):
    clock = Clock()
    watch = Watch(tmp_path, 3, 10, clock)
    for second in range(30):
        clock.now = second
        for rank, moves in enumerate((5, 4, 5)):
            beat(tmp_path, rank, second + 1, min(second + 1, moves), "reading" if rank == 1 else "waiting")
        if told := watch.hanging():
            break
    assert "training process 1" in told and "got nothing done" in told and "reading" in told and second == 15


def test_start_may_take_longer_than_a_step(tmp_path):
    clock = Clock()
    watch = Watch(tmp_path, 1, 10, clock)
    for second in range(301):
        clock.now = second
        if second > 200:
            beat(tmp_path, 0, second, 0)  # it loads its libraries: it beats, and has done nothing yet
        assert watch.hanging() is None
    beat_path(tmp_path, 0).unlink()
    clock.now = 301
    assert "no sign of life since it was started" in watch.hanging()


def test_while_the_machine_stood_still_nobody_hung(tmp_path):
    """A container that is paused, a virtual machine that moves: watcher and watched go on where they were."""
    clock = Clock()
    watch = Watch(tmp_path, 2, 10, clock)
    beats = 0
    for second in (*range(20), *range(500, 520), 9000):
        clock.now = second
        assert watch.hanging() is None
        beats += 1
        for rank in range(2):
            beat(tmp_path, rank, beats, beats)
    for second in range(9001, 9030):
        clock.now = second
        beats += 1
        beat(tmp_path, 0, beats, beats)
        if told := watch.hanging():
            break
    assert "training process 1 (pid 101)" in told and "no sign of life" in told and second < 9015


def test_a_stopped_process_is_found_and_a_working_one_is_not(tmp_path):
    processes = [subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path), str(rank)]) for rank in range(2)]
    try:
        deadline = time.monotonic() + 300
        while sum(b.moves > 0 for b in read_beats(tmp_path, 2).values()) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert {b.pid for b in read_beats(tmp_path, 2).values()} == {p.pid for p in processes}
        watch = Watch(tmp_path, 2, 5)
        os.kill(processes[1].pid, signal.SIGSTOP)
        while not (told := watch.hanging()) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert told and f"training process 1 (pid {processes[1].pid})" in told and "in step 7" in told
    finally:
        for process in processes:
            process.kill()
            process.wait()
