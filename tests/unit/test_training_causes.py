"""Why training processes on this machine ended, as their log and their lines tell it."""

import pytest

from svdflow.training.train.launcher_local import _cause

ENDED = """  time      : 2026-11-26_07:43:00
  host      : here
  rank      : {rank} (local_rank: {rank})
  exitcode  : {status} (pid: 1{rank})
  error_file: <N/A>
"""


def log_of(root_cause: tuple[int, int], other: tuple[int, int]) -> str:
    """As torchrun writes it: what it saw later stands above what it saw first."""
    (first, status), (later, its_status) = root_cause, other
    told = ENDED.format(rank=later, status=its_status), ENDED.format(rank=first, status=status)
    return f"Failures:\n[1]:\n{told[0]}------\nRoot Cause (first observed failure):\n[0]:\n{told[1]}======\n"


@pytest.mark.parametrize("seen", [((1, -9), (0, 1)), ((0, 1), (1, -9))], ids=["first", "later"])
def test_a_killed_process_is_named_whenever_torchrun_saw_it(tmp_path, seen):
    log = tmp_path / "train.log"
    log.write_text(log_of(*seen))
    (tmp_path / "error-z0.txt").write_text("RuntimeError: Connection reset by peer")
    assert _cause(tmp_path, log, 1).startswith("training process 1 was killed")


def test_a_process_that_tells_its_own_fault_is_the_cause_of_another_one_s_kill(tmp_path):
    log = tmp_path / "train.log"
    log.write_text(log_of((0, 1), (1, -9)))
    (tmp_path / "error-0.txt").write_text("the loss is no number")
    assert _cause(tmp_path, log, 1) == f"the loss is no number (log: {log})"
