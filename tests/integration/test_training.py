"""Real DeepSpeed in two processes: an interrupted run ends where an uninterrupted one does, and work done is found."""

import signal
from pathlib import Path

import psutil
import pytest

from svdflow.common.errors import SvdflowError
from svdflow.common.manifests import read_rows
from svdflow.common.storage import DataRoot
from svdflow.training.train.launcher import TrainingInterrupted
from svdflow.training.train.train import train_stage
from tests.training_runs import STEPS, UNET, interrupt_at, make_autoencoder, make_samples, settings_for


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory) -> Path:
    return make_autoencoder(tmp_path_factory.mktemp("autoencoder"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_samples(tmp_path_factory.mktemp("training data"))


def training_processes(root: DataRoot) -> list[str]:
    """Those of runs whose data root this is; others may be training on the machine."""
    lines = []
    for process in psutil.process_iter():
        try:
            lines.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return [line for line in lines if "svdflow.training.train.worker" in line and root.location in line]


def weights(model: Path) -> bytes:
    return (model / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()


@pytest.mark.slow
def test_an_interrupted_run_goes_on_and_ends_bit_identical_and_is_then_found(data, autoencoder, tmp_path, monkeypatch):
    root, samples = data
    settings = settings_for(autoencoder)
    whole = train_stage("image", samples, None, tmp_path / "whole", root, settings, {"name": "random", "tag": "v1"})
    told = whole.summary["training"]["image"]
    assert (told["steps"], told["world_size"], told["zero_stage"], told["resumed_from"]) == (STEPS, 2, 2, None)
    assert told["held_out_loss_after"] != told["held_out_loss_before"]

    events = tmp_path / "events.jsonl"
    monkeypatch.setenv("SVDFLOW_EVENTS", str(events))
    other = DataRoot.open(tmp_path / "another root")
    for row in read_rows("samples", samples):
        other.put_file(root.fetch(row["shard_uri"]))
    handler = signal.getsignal(signal.SIGTERM)
    watcher = interrupt_at(3, events)
    with pytest.raises(TrainingInterrupted, match="SIGTERM"):
        train_stage("image", samples, None, tmp_path / "broken", other, settings, {"name": "random", "tag": "v1"})
    watcher.join()
    assert signal.getsignal(signal.SIGTERM) is handler
    assert not (tmp_path / "broken").exists() and training_processes(other) == []

    resumed = train_stage(
        "image", samples, None, tmp_path / "resumed", other, settings, {"name": "random", "tag": "v1"}
    )
    start = resumed.summary["training"]["image"]["resumed_from"]
    assert 3 <= start <= STEPS
    assert weights(tmp_path / "resumed") == weights(tmp_path / "whole")
    assert resumed.sections[0]["series"] == whole.sections[0]["series"]
    assert list((tmp_path / "another root").glob("scratch/training/*/checkpoints")) == []

    writes = root.writes
    again = train_stage("image", samples, None, tmp_path / "again", root, settings, {"name": "random", "tag": "v1"})
    assert (again.done, again.reused, root.writes) == (0, 1, writes)
    assert weights(tmp_path / "again") == weights(tmp_path / "whole")
    assert again.summary == whole.summary


@pytest.mark.slow
def test_a_failure_inside_a_worker_comes_back_as_one_line(data, autoencoder, tmp_path):
    root, samples = data
    settings = settings_for(autoencoder, processes=1, unet=UNET | {"latent_channels": 8}, seed=5)
    with pytest.raises(SvdflowError, match="latents have 4 channels, the model takes 8") as caught:
        train_stage("image", samples, None, tmp_path / "out", root, settings, {})
    assert "\n" not in str(caught.value) and "train.log" in str(caught.value)
    assert training_processes(root) == []
