"""Locks of compiled ops: one that a killed process left makes nobody wait for ever."""

import subprocess
import sys
import threading

import pytest

from svdflow.training.train import build_ops
from svdflow.training.train.build_ops import clear_stale_locks


@pytest.fixture
def lock(tmp_path, monkeypatch):
    monkeypatch.setattr(build_ops, "_STALE_LOCK_S", 0.5)
    path = tmp_path / "py311_cpu" / "op" / "lock"
    path.parent.mkdir(parents=True)
    path.touch()
    return path


def test_the_lock_of_a_process_that_was_killed_just_now_is_removed_too(tmp_path, lock):
    assert clear_stale_locks(tmp_path) == [lock] and not lock.exists()


def test_a_lock_whose_holder_is_at_work_stays(tmp_path, lock):
    holder = subprocess.Popen([sys.executable, "-c", "input()"], cwd=lock.parent, stdin=subprocess.PIPE)
    try:
        assert clear_stale_locks(tmp_path) == [] and lock.exists()
    finally:
        holder.communicate(b"\n")
    assert clear_stale_locks(tmp_path) == [lock]


def test_a_lock_that_goes_meanwhile_is_nobodys_business(tmp_path, lock, monkeypatch):
    monkeypatch.setattr(build_ops, "_STALE_LOCK_S", 3600.0)
    looked = threading.Event()
    monkeypatch.setattr(build_ops, "_being_built", lambda _: bool(looked.set()))
    owner = threading.Thread(target=lambda: (looked.wait(60), lock.unlink()))
    owner.start()
    assert clear_stale_locks(tmp_path) == []
    owner.join()
