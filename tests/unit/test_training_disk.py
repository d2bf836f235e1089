"""A disk that is really full while a checkpoint is written: one line, the older one stays whole, no rubbish."""

import os
import subprocess

import pytest
import torch

from svdflow.common.errors import StorageError
from svdflow.training.train.checkpoint import newest_sound, save_checkpoint

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "small disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("this machine does not let root mount a tmpfs")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def save(folder, step, floats):
    layout = {part: {name: (floats,) for name in "abc"} for part in ("model", "exp_avg")}
    tensors = [(part, name, torch.full((floats,), float(step))) for part in layout for name in "abc"]
    return save_checkpoint(folder, step, layout, iter(tensors), {}, 3)


def test_the_older_checkpoint_stays_whole_and_the_next_one_fits_again(small_disk):
    save(small_disk, 1, 40_000)  # 960 kB
    with pytest.raises(StorageError, match="No space left.*run again") as caught:
        save(small_disk, 2, 60_000)
    assert "\n" not in str(caught.value)
    assert newest_sound(small_disk)[0].step == 1 and [p.name for p in small_disk.iterdir()] == ["step_00000001"]
    assert save(small_disk, 2, 30_000).name == "step_00000002"
