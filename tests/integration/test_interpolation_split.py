"""The learned latent of interpolation in two processes: split, averaged, saved and gone on with as every parameter."""

import pytest
import torch

from tests.engine_launch import run_in_processes
from tests.engine_runs import Setting, distance, engine_settings, plain_torch

STAGE = "interpolation"
SGD = {"optimizer": "sgd", "lr": 1.0, "clip": 0, "weight_decay": 0}
ADAM = {"ema": 0.99, "clip": 1.0}
ZERO_3 = {"zero_stage": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("split")


@pytest.fixture(scope="module")
def setting(folder):
    return Setting(folder / "plain", STAGE)


@pytest.fixture(scope="module")
def found(folder):
    cases = {
        "sgd": {"settings": SGD | ZERO_3, "steps": 0, "gradient": True},
        "adam": {"settings": ADAM | ZERO_3, "steps": 1, "save": str(folder / "kept"), "more": 1},
        "at 2": {"settings": ADAM | {"zero_stage": 2}, "steps": 0, "resume": str(folder / "kept")},
        "again": {"settings": ADAM | ZERO_3, "steps": 1, "resume": str(folder / "kept")},
    }
    return run_in_processes(2, cases, folder, stage=STAGE)


def latent(setting, values: torch.Tensor) -> torch.Tensor:
    """The learned latent's part of what belongs to all parameters, one after another."""
    unet, place = setting.unet(), 0
    for name, parameter in unet.named_parameters():
        if name == "middle_latent":
            return values[place : place + parameter.numel()]
        place += parameter.numel()
    raise AssertionError("it is no parameter")


@pytest.mark.slow
def test_its_gradient_and_update_at_zero_3_are_those_of_plain_torch(setting, found):
    plain = plain_torch(setting, engine_settings(STAGE, **SGD), 1)
    for part in ("gradient", "model"):
        ours, theirs = (latent(setting, told[part]) for told in (found["sgd"], plain))
        assert theirs.norm() > 0 and distance(ours, theirs) < 1e-5, part
        assert distance(found["sgd"][part], plain[part]) < 2e-6, part


@pytest.mark.slow
def test_a_checkpoint_holds_it_for_another_zero_stage_and_a_run_that_goes_on_is_the_undisturbed_one(setting, found):
    for part in ("model", "exp_avg", "exp_avg_sq", "ema"):
        assert latent(setting, found["adam"][part]).any(), part
        assert torch.equal(found["at 2"][part], found["adam"][part]), part
        assert torch.equal(found["again"][part], found["adam"][f"later {part}"]), part
