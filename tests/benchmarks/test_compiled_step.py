"""``compile`` with torch's own code generator: the step it must stay, and how long it takes to make (some minutes).

pytest -s tests/benchmarks/test_compiled_step.py

What it saves is measured on a GPU (``test_gpu_training.py``): on a CPU with so small a U-Net it is 2 %.
"""

import time

import pytest
import torch

from tests.compiled_runs import agree, counted_graphs, step
from tests.engine_runs import Setting, one_process

CHECKPOINTED = {"zero_stage": 2, "gradient_checkpointing": True, "attention": "memory_efficient"}


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    with one_process():
        yield Setting(tmp_path_factory.mktemp("samples"))
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def graphs():
    with counted_graphs("inductor") as counter:
        yield counter


@pytest.mark.parametrize("values", [{"zero_stage": 1}, CHECKPOINTED], ids=str)
def test_a_step_in_generated_code_has_the_loss_and_the_gradient_of_the_uncompiled(setting, graphs, values):
    plain = step(setting)
    begun = time.monotonic()
    compiled = step(setting, compile=True, **values)
    print(f"\n{graphs.frame_count} graphs so far, two steps with making them {time.monotonic() - begun:.1f} s")
    agree(compiled, plain)
