"""The engine in two processes: what a step computes does not depend on how it is split, nor on the ZeRO stage.

All cases run in one start of torchrun. The bounds are those that the README of train states; all combinations are in
``tests/benchmarks/test_invariance.py``.
"""

import pytest
import torch

from svdflow.training.train.checkpoint import newest_sound
from tests.engine_launch import run_in_processes
from tests.engine_runs import Run, Setting, distance, engine_settings, one_process, plain_torch

GRADIENT_BOUND, UPDATE_BOUND, ADAM_BOUND, AVERAGE_BOUND = 2e-6, 2e-6, 1e-3, 5e-2
SGD = {"optimizer": "sgd", "lr": 1.0, "clip": 0, "weight_decay": 0}
STEPS = 2
ADAM = {"ema": 0.99, "warmup": 3, "clip": 1.0}
SPLITS = {
    "zero 0": {"zero_stage": 0, "accumulation": 2},
    "zero 2": {"zero_stage": 2},
    "zero 3": {"zero_stage": 3, "accumulation": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("split")


@pytest.fixture(scope="module")
def found(folder):
    cases = {f"sgd {name}": {"settings": SGD | split, "steps": 0, "gradient": True} for name, split in SPLITS.items()}
    cases["adam zero 0"] = {"settings": ADAM | SPLITS["zero 0"], "steps": STEPS}
    for name in ("zero 2", "zero 3"):
        case = {"settings": ADAM | SPLITS[name], "steps": STEPS, "save": str(folder / name), "more": 1}
        cases[f"adam {name}"] = case
    for before, after, steps in (("zero 3", "zero 2", 0), ("zero 2", "zero 3", 0), ("zero 3", "zero 3", 1)):
        case = {"settings": ADAM | SPLITS[after], "steps": steps, "resume": str(folder / before)}
        cases[f"{before} then {after}"] = case
    return run_in_processes(2, cases, folder, timeout_s=1800)


@pytest.fixture(scope="module")
def plain(folder):
    setting = Setting(folder / "plain")
    start = torch.nn.utils.parameters_to_vector(setting.unet().parameters()).detach()
    sgd = plain_torch(setting, engine_settings(**SGD), 1)
    return {"start": start, "sgd": sgd, "adam": plain_torch(setting, engine_settings(**ADAM), STEPS)}


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS)
def test_gradient_and_sgd_update_of_a_global_batch_do_not_depend_on_the_split(found, plain, split):
    told = found[f"sgd {split}"]
    assert distance(told["gradient"], plain["sgd"]["gradient"]) < GRADIENT_BOUND
    update, expected = told["model"] - plain["start"], plain["sgd"]["model"] - plain["start"]
    assert distance(update, expected) < UPDATE_BOUND


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS)
def test_an_adam_update_keeps_its_norm_and_the_average_follows(found, plain, split):
    told, expected = found[f"adam {split}"], plain["adam"]
    norms = [float((weights - plain["start"]).norm()) for weights in (told["model"], expected["model"])]
    assert norms[0] == pytest.approx(norms[1], rel=ADAM_BOUND)
    assert distance(told["ema"] - plain["start"], expected["ema"] - plain["start"]) < AVERAGE_BOUND


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS)
def test_the_norms_that_are_told_are_those_of_the_whole_gradient_and_of_all_weights(found, plain, split):
    told = found[f"adam {split}"]
    figures = told["figures"]  # summed over both processes: the norm of the gradient is the same in each
    assert float(figures[0, 1]) / 2 == pytest.approx(float(plain["adam"]["gradient"].norm()), rel=1e-4)
    assert float(figures[-1, 2]) ** 0.5 == pytest.approx(float(told["model"].double().norm()), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("pair", ["zero 3 then zero 2", "zero 2 then zero 3"])
def test_a_checkpoint_fits_another_zero_stage_to_the_last_bit(found, pair):
    before = found[f"adam {pair.partition(' then ')[0]}"]
    for part in ("model", "exp_avg", "exp_avg_sq", "ema"):
        assert torch.equal(found[pair][part], before[part]), part


@pytest.mark.slow
def test_a_run_that_goes_on_at_zero_3_is_the_undisturbed_one_to_the_last_bit(found):
    for part in ("model", "exp_avg", "exp_avg_sq", "ema"):
        assert torch.equal(found["zero 3 then zero 3"][part], found["adam zero 3"][f"later {part}"]), part


@pytest.mark.slow
def test_what_two_processes_have_saved_one_goes_on_with_at_another_stage_to_the_last_bit(found, folder):
    kept, _ = newest_sound(folder / "zero 3")
    with one_process():
        run = Run(Setting(folder / "alone"), engine_settings(**ADAM, zero_stage=1), resume=kept)
        alone = run.parts()
        run.close()
    for part in ("model", "exp_avg", "exp_avg_sq", "ema"):
        assert torch.equal(alone[part], found["adam zero 3"][part]), part
