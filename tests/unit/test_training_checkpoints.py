"""Checkpoints: whole or not there; a damaged one is passed over; the newest sound one is gone on from."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from svdflow.training.train import checkpoint
from svdflow.training.train.checkpoint import best_by_held_out_loss, best_sound, newest_sound, save_checkpoint


def save(folder, step, keep=9, held_out=None):
    parts = {
        "model": {"w": torch.full((300,), float(step)), "s": torch.tensor(0.5)},
        "exp_avg": {"w": torch.ones(2, 1)},
    }
    layout = {part: {name: tuple(t.shape) for name, t in tensors.items()} for part, tensors in parts.items()}
    stream = [(part, name, t) for part, tensors in parts.items() for name, t in tensors.items()]
    return save_checkpoint(folder, step, layout, stream, {"kept": {"loss": [step]}, "held_out": held_out}, keep)


def test_the_newest_checkpoint_comes_back_as_it_was(tmp_path):
    for step in (5, 10, 100):
        save(tmp_path, step)
    found, damaged = newest_sound(tmp_path)
    assert (found.step, damaged, found.state["kept"]) == (100, [], {"loss": [100]})
    with found.reading("model") as read:
        assert torch.equal(read("w"), torch.full((300,), 100.0)) and read("s") == 0.5
    assert found.parts == {"model", "exp_avg"}
    assert load_file(found.directory / "exp_avg.safetensors")["w"].tolist() == [[1.0], [1.0]]  # the library reads it


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


def test_the_best_by_held_out_loss_is_kept_beside_the_last_ones(tmp_path):
    for step, loss in enumerate((None, 0.5, 0.3, 0.4, None, None), start=1):
        save(tmp_path, step, keep=2, held_out=loss)
    assert sorted(p.name[-1] for p in tmp_path.iterdir()) == ["3", "5", "6"]
    assert best_by_held_out_loss(tmp_path).name == "step_00000003"
    assert best_sound(tmp_path).step == 3
    (tmp_path / "step_00000003" / "model.safetensors").write_bytes(b"cut")
    assert best_sound(tmp_path) is None, "one whose bytes are not as written is not handed on"


def test_a_write_that_breaks_off_in_a_tensor_still_takes_what_other_processes_send(tmp_path, monkeypatch):
    save(tmp_path, 1)
    sent = []

    def sending():
        for name in "abc":
            sent.append(name)
            yield "model", name, torch.zeros(4)

    monkeypatch.setattr(checkpoint._TensorFile, "add", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(checkpoint.StorageError, match="No space left"):
        save_checkpoint(tmp_path, 2, {"model": {name: (4,) for name in "abc"}}, sending(), {}, 2)
    assert sent == ["a", "b", "c"]
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]


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
