"""A run that is interrupted goes on at another ZeRO stage, another number of processes, or both (minutes: run by hand).

pytest tests/benchmarks/test_zero_stages.py
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from svdflow.common.manifests import read_rows
from svdflow.common.storage import DataRoot
from svdflow.training.train.launcher import TrainingInterrupted
from svdflow.training.train.train import train_stage
from tests.training_runs import interrupt_at, make_autoencoder, make_samples, settings_for


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    root, samples = make_samples(folder)
    autoencoder = make_autoencoder(folder / "vae")
    train_stage("image", samples, None, folder / "whole", root, settings_for(autoencoder), {})
    return root, samples, autoencoder, folder / "whole"


def weights(model: Path) -> torch.Tensor:
    tensors = load_file(model / "unet" / "diffusion_pytorch_model.safetensors")
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


@pytest.mark.parametrize(
    ("before", "after"),
    [((2, 2), (2, 1)), ((0, 2), (0, 2)), ((3, 2), (3, 2)), ((2, 2), (3, 2)), ((3, 2), (0, 1)), ((1, 1), (2, 2))],
    ids=lambda pair: f"zero{pair[0]}_on_{pair[1]}",
)
def test_it_ends_where_the_uninterrupted_run_does(setup, tmp_path, monkeypatch, before, after):
    root, samples, autoencoder, whole = setup
    other = DataRoot.open(tmp_path / "root")
    for row in read_rows("samples", samples):
        other.put_file(root.fetch(row["shard_uri"]))
    monkeypatch.setenv("SVDFLOW_EVENTS", str(tmp_path / "events"))
    watcher = interrupt_at(3, tmp_path / "events")
    with pytest.raises(TrainingInterrupted):
        settings = settings_for(autoencoder, zero_stage=before[0], processes=before[1])
        train_stage("image", samples, None, tmp_path / "out", other, settings, {})
    watcher.join()
    settings = settings_for(autoencoder, zero_stage=after[0], processes=after[1])
    report = train_stage("image", samples, None, tmp_path / "out", other, settings, {})
    told = report.summary["training"]["image"]
    assert told["resumed_from"] >= 3 and told["zero_stage"] == after[0] and told["world_size"] == after[1]
    expected, got = weights(whole), weights(tmp_path / "out")
    distance = float((got - expected).norm() / expected.norm())
    print(f"ZeRO {before} then {after}: relative distance {distance:.2e}")
    assert distance < 1e-3
