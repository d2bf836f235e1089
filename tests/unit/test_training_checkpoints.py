"""Checkpoints: whole or not there; a damaged one is passed over; the newest sound one is gone on from."""

import json
import shutil

import pytest
import torch

from svdflow.training.train import checkpoint
from svdflow.training.train.checkpoint import newest_sound, save_checkpoint


def save(folder, step, keep=9):
    parts = {"model": {"w": torch.full((300,), float(step))}, "exp_avg": {"w": torch.ones(2)}}
    return save_checkpoint(folder, step, parts, {"kept": {"loss": [step]}}, keep)


def test_the_newest_checkpoint_comes_back_as_it_was(tmp_path):
    for step in (5, 10, 100):
        save(tmp_path, step)
    found, damaged = newest_sound(tmp_path)
    assert (found.step, damaged, found.state["kept"]) == (100, [], {"loss": [100]})
    assert torch.equal(found.tensors("model")["w"], torch.full((300,), 100.0))
    assert found.tensors("ema") is None


def _flip_bit(directory):
    path = directory / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "a flipped bit": _flip_bit,
    "cut short": lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-9]),
    "a part gone": lambda d: (d / "exp_avg.safetensors").unlink(),
    "state gone": lambda d: (d / "state.json").unlink(),
    "state half written": lambda d: (d / "state.json").write_text((d / "state.json").read_text()[:40]),
    "another step's state": lambda d: (d / "state.json").write_text(
        json.dumps({**json.loads((d / "state.json").read_text()), "step": 3})
    ),
    "empty": lambda d: (shutil.rmtree(d), d.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_checkpoint_is_passed_over(tmp_path, damage):
    save(tmp_path, 10)
    damage(save(tmp_path, 20))
    found, damaged = newest_sound(tmp_path)
    assert found.step == 10 and damaged == ["step_00000020"]
    save(tmp_path, 15)  # the run goes on from 10: what lies ahead of it is in the way no more
    assert newest_sound(tmp_path)[0].step == 15 and newest_sound(tmp_path)[1] == []


def test_only_the_last_ones_are_kept(tmp_path):
    for step in range(1, 6):
        save(tmp_path, step, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000004", "step_00000005"]


def test_a_write_that_breaks_off_leaves_the_older_one_and_no_rubbish(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_flush", full)
    with pytest.raises(checkpoint.StorageError, match="No space left"):
        save(tmp_path, 2)
    assert newest_sound(tmp_path)[0].step == 1
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]


def test_no_checkpoint_is_no_error(tmp_path):
    assert newest_sound(tmp_path / "nowhere") == (None, [])
