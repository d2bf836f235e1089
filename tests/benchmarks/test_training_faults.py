"""Twenty random faults: whatever happens to a run and whenever, it ends bit-identical to an undisturbed one (an hour).

pytest -s tests/benchmarks/test_training_faults.py     SVDFLOW_BENCH_FAULTS=5 for fewer
"""

import os
import random
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from svdflow.common.errors import SvdflowError
from svdflow.common.manifests import read_rows
from svdflow.common.storage import DataRoot
from svdflow.training.train.train import train_stage
from tests.training_runs import make_autoencoder, make_samples, send, settings_for, steps_done, when

FAULTS = int(os.environ.get("SVDFLOW_BENCH_FAULTS", "20"))
STEPS = 12


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    root, samples = make_samples(folder)
    autoencoder = make_autoencoder(folder / "vae")
    train_stage("image", samples, None, folder / "whole", root, settings_for(autoencoder, steps=STEPS), {})
    return root, samples, autoencoder, folder / "whole"


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "small disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300m", "tmpfs", str(place)], capture_output=True).returncode:
        yield None
        return
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def weights(model: Path) -> bytes:
    return (model / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()


def checkpoints(root: DataRoot) -> list[Path]:
    return sorted(Path(root.location).glob("scratch/training/*/checkpoints/step_*"))


def truncate(root: DataRoot, luck: random.Random) -> None:
    for directory in checkpoints(root)[-1:]:
        path = luck.choice(sorted(directory.iterdir()))
        path.write_bytes(path.read_bytes()[: luck.randrange(path.stat().st_size)])


def fill(place: Path) -> None:
    with open(place / "filler", "wb", buffering=0) as stream:
        for piece in (1 << 20, 4096, 1):
            try:
                while True:
                    stream.write(b"\0" * piece)
            except OSError:
                continue


@pytest.mark.parametrize("seed", range(FAULTS))
def test_a_random_fault_costs_nothing_but_time(setup, small_disk, tmp_path, monkeypatch, seed):
    shared, samples, autoencoder, whole = setup
    luck = random.Random(seed)
    kinds = ["kill one", "kill all", "kill while writing", "truncate", "stop", "terminate", "full disk"]
    kind = kinds[seed % len(kinds)]
    place = small_disk if kind == "full disk" else tmp_path
    if place is None:
        pytest.skip("this machine does not let root mount a tmpfs")
    root = DataRoot.open(place / "root")
    for row in read_rows("samples", samples):
        root.put_file(shared.fetch(row["shard_uri"]))
    every, at = luck.choice([1, 2, 3]), luck.randrange(1, STEPS - 1)
    settings = settings_for(autoencoder, steps=STEPS, checkpoint_every=every, hang_timeout_s=15)
    events = tmp_path / "events"
    monkeypatch.setenv("SVDFLOW_EVENTS", str(events))

    def writing() -> bool:
        return any(Path(root.location).glob("scratch/training/*/checkpoints/.partial-*"))

    acts = {
        "kill one": lambda: send(root, signal.SIGKILL, [luck.randrange(2)]),
        "kill all": lambda: send(root, signal.SIGKILL, [0, 1]),
        "kill while writing": lambda: send(root, signal.SIGKILL, [0, 1]),
        "truncate": lambda: send(root, signal.SIGKILL, [0, 1]),
        "stop": lambda: send(root, signal.SIGSTOP, [luck.randrange(2)]),
        "terminate": lambda: os.kill(os.getpid(), signal.SIGTERM),
        "full disk": lambda: fill(place),
    }
    watcher = when(lambda: steps_done(events) >= at and (kind != "kill while writing" or writing()), acts[kind])
    said = "it was done before"
    try:
        train_stage("image", samples, None, tmp_path / "out", root, settings, {})
    except SvdflowError as error:
        said = str(error)
        assert "\n" not in said
    watcher.join(1)
    if kind == "truncate":
        truncate(root, luck)
    if kind == "full disk":
        (place / "filler").unlink(missing_ok=True)
    monkeypatch.setenv("SVDFLOW_EVENTS", str(tmp_path / "more events"))
    settings = settings.model_copy(update={"processes": 2})
    report = train_stage("image", samples, None, tmp_path / "out", root, settings, {})
    start = report.summary["training"]["image"]["resumed_from"]
    print(f"{seed}: {kind} at step {at}, checkpoints every {every}: {said}; went on from {start}")
    assert weights(tmp_path / "out") == weights(whole)
    shutil.rmtree(place / "root", ignore_errors=True)
