"""Copies of checkpoints in the store: whole or not counted, sent in the background, fetched where the disk is empty."""

import shutil
import threading

import pytest
import torch

from svdflow.common.errors import StorageError
from svdflow.common.storage_directory import DirectoryRoot
from svdflow.training.train import checkpoint_store
from svdflow.training.train.checkpoint import best_sound, newest_sound, save_checkpoint
from svdflow.training.train.checkpoint_store import CheckpointStore
from svdflow.training.train.heartbeat import Heartbeat
from svdflow.training.train.resume import agree_on_checkpoint
from tests.engine_runs import one_process


class Store(DirectoryRoot):
    """A store that can be down, or slow."""

    def __init__(self, directory):
        super().__init__(directory)
        self.down, self.gate, self.reached = 0, threading.Event(), threading.Event()
        self.gate.set()

    def put_named(self, uri, content):
        self.reached.set()
        assert self.gate.wait(120)
        if self.down:
            self.down -= 1
            raise StorageError("the object store does not answer")
        super().put_named(uri, content)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_store, "_PAUSES_S", (0.01,))
    told = []
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    root = Store(tmp_path / "store")
    return folder, root, CheckpointStore(root, "run", folder, told.append), told


def save(folder, step, keep=2):
    tensors = [("model", "w", torch.full((1000,), float(step)))]
    return save_checkpoint(folder, step, {"model": {"w": (1000,)}}, tensors, {"kept": {}}, keep)


def test_a_copy_comes_back_as_it_was_and_the_store_keeps_what_the_disk_keeps(place):
    folder, _, store, told = place
    for step in (1, 2, 3):
        store.send(save(folder, step))
        assert store.wait(120)
    assert store.steps() == [3, 2] and store.sent == 3 and not told
    assert not list(folder.glob(".sending-*"))
    shutil.rmtree(folder)
    found = store.fetch(3)
    assert found.step == 3 and newest_sound(folder)[0].directory == found.directory
    with found.reading("model") as read:
        assert read("w").eq(3).all()
    assert [p.name for p in folder.iterdir()] == ["step_00000003"]


def test_a_store_that_is_down_is_told_of_and_tried_again_and_nobody_waits(place):
    folder, root, store, told = place
    root.down = 3
    store.send(save(folder, 1))
    assert store.wait(120)
    assert store.steps() == [1] and store.failures == 3 and len(told) == 3
    assert "step_00000001" in told[0] and "does not answer" in told[0]


def test_a_newer_checkpoint_takes_the_place_of_one_that_waits(place):
    folder, root, store, _ = place
    root.gate.clear()
    store.send(save(folder, 1))
    assert root.reached.wait(120), "the first one is on its way"
    for step in (2, 3):
        store.send(save(folder, step))
    assert not store.wait(0.05)
    root.gate.set()
    assert store.wait(120)
    assert store.steps()[0] == 3 and 2 not in store.steps()


def test_a_damaged_or_half_sent_copy_does_not_count(place):
    folder, root, store, _ = place
    store.send(save(folder, 1))
    assert store.wait(120)
    store.send(save(folder, 2))
    assert store.wait(120)
    root.remove("checkpoints/run/step_00000002/state.json")
    assert store.steps() == [1]
    root.put_named("checkpoints/run/step_00000001/model.safetensors", b"not what was sent")
    assert store.fetch(1) is None and not list(folder.glob(".partial-*"))
    assert newest_sound(folder)[0].step == 2  # what lies here is not touched by it
    store.remove()
    assert list(root.list("checkpoints")) == []


def test_half_a_copy_that_a_killed_process_left_goes_with_the_next(place):
    folder, root, store, _ = place
    root.put_named("checkpoints/run/step_00000001/ema.safetensors", b"sent before the process was killed")
    store.send(save(folder, 2))
    assert store.wait(120)
    assert {uri.split("/")[-2] for uri in root.list("checkpoints")} == {"step_00000002"}


def test_a_machine_with_an_empty_disk_gets_the_newest_and_the_best_which_the_store_goes_on_keeping(place, tmp_path):
    folder, _, store, _ = place
    best = {"step": 1, "held_out": 0.1}
    for step, held_out in ((1, 0.1), (2, 0.4), (3, 0.3)):
        tensors = [("model", "w", torch.full((1000,), float(step)))]
        state = {"kept": {"best": best}, "held_out": held_out}
        store.send(save_checkpoint(folder, step, {"model": {"w": (1000,)}}, tensors, state, 1))
        assert store.wait(120)
    assert store.steps() == [3, 1]
    shutil.rmtree(folder)
    folder.mkdir()
    with one_process():
        found = agree_on_checkpoint(folder, store, 0, torch.device("cpu"), Heartbeat(tmp_path, 0))
    assert found.step == 3 and best_sound(folder).step == 1
    store.send(found.directory)
    assert store.wait(120) and store.steps() == [3, 1]
