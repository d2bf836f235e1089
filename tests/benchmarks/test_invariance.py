"""A step does not depend on how it is split: every number of processes, accumulation and ZeRO stage (ten minutes).

pytest -s tests/benchmarks/test_invariance.py

Gradient and SGD update of one global batch are compared with plain torch in one process, relative L2 distance. Adam's
update is compared by its norm: at the first step it is the gradient's sign, nearly, so where a gradient is about zero
its rounding decides between +lr and -lr.
"""

import pytest
import torch

from tests.engine_launch import run_in_processes
from tests.engine_runs import BATCH, Setting, distance, engine_settings, plain_torch

GRADIENT_BOUND, UPDATE_BOUND, ADAM_BOUND = 2e-6, 2e-6, 1e-3
SGD = {"optimizer": "sgd", "lr": 1.0, "clip": 0, "weight_decay": 0}
ADAM = {"ema": 0.99, "clip": 1.0}
PROCESSES = (1, 2, 4)
PARTS = ("model", "exp_avg", "exp_avg_sq", "ema")


def splits(processes: int) -> dict[str, dict]:
    found = {}
    for stage in range(4):
        for accumulation in (1, 2, 4):
            if BATCH % (processes * accumulation) == 0:
                values = {"zero_stage": stage, "accumulation": accumulation}
                found |= {f"{kind}, {values}": values | recipe for kind, recipe in (("sgd", SGD), ("adam", ADAM))}
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("invariance")


@pytest.fixture(scope="module")
def plain(folder):
    setting = Setting(folder / "plain")
    start = torch.nn.utils.parameters_to_vector(setting.unet().parameters()).detach()
    return start, {kind: plain_torch(setting, engine_settings(**recipe), 1)
                   for kind, recipe in (("sgd", SGD), ("adam", ADAM))}  # fmt: skip


@pytest.mark.parametrize("processes", PROCESSES)
def test_gradients_and_updates_are_those_of_one_process(folder, plain, processes):
    start, expected = plain
    cases = {name: {"settings": values, "steps": 0, "gradient": True} for name, values in splits(processes).items()}
    found = run_in_processes(processes, cases, folder / str(processes), timeout_s=1800)
    for name, told in found.items():
        one = expected[name.partition(",")[0]]
        gradient = distance(told["gradient"], one["gradient"])
        update = distance(told["model"] - start, one["model"] - start)
        norm = abs(float((told["model"] - start).norm() / (one["model"] - start).norm()) - 1)
        print(f"{processes} processes, {name}: gradient {gradient:.1e}, update {update:.1e}, its norm {norm:.1e}")
        assert gradient < GRADIENT_BOUND
        assert norm < ADAM_BOUND if name.startswith("adam") else update < UPDATE_BOUND


def test_a_checkpoint_of_any_stage_goes_on_at_any_stage_and_number_of_processes(folder):
    saved, pairs = {}, {}
    for stage in range(4):
        settings, place = ADAM | {"zero_stage": stage}, str(folder / f"zero {stage}")
        saved[f"from {stage}"] = {"settings": settings, "steps": 2, "save": place}
        for after in range(4):
            case = {"settings": ADAM | {"zero_stage": after}, "steps": 0, "resume": place}
            pairs[f"{stage} then {after}"] = case
    before = run_in_processes(2, saved, folder / "save", timeout_s=1800)
    for processes in PROCESSES:
        found = run_in_processes(processes, pairs, folder / f"resume {processes}", timeout_s=1800)
        for name, told in found.items():
            for part in PARTS:
                assert torch.equal(told[part], before[f"from {name[0]}"][part]), (processes, name, part)
        print(f"2 processes, then {processes}: {len(found)} pairs of ZeRO stages, equal to the last bit")
