"""torch.compile by option: every repeated block is compiled, and a step stays the step it was.

The backend is ``aot_eager``, which traces and differentiates the blocks as for inductor and runs the graphs as they
are: inductor takes a minute and a half to make code of the graphs of even a tiny U-Net
(``tests/benchmarks/test_compiled_step.py``).
"""

import logging

import pytest
import torch

from svdflow.diffusion.compiled_blocks import REPEATED, compile_blocks
from svdflow.diffusion.settings import UNetSettings
from svdflow.diffusion.unet import build_image_unet
from tests.compiled_runs import agree, counted_graphs, step
from tests.engine_runs import Setting, one_process
from tests.training_runs import UNET


@pytest.fixture(scope="module", autouse=True)
def _unheard():
    """torch describes every graph to whoever listens, and pytest listens to all loggers: half the time goes there."""
    trace = logging.getLogger("torch.__trace")
    trace.propagate = False
    yield
    trace.propagate = True
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    with one_process():
        yield Setting(tmp_path_factory.mktemp("samples"))


@pytest.fixture(scope="module")
def graphs():
    with counted_graphs("aot_eager") as counter:
        yield counter


@pytest.fixture(scope="module")
def plain(setting):
    return step(setting)


@pytest.mark.parametrize(
    "values",
    [
        {"zero_stage": 0, "gradient_checkpointing": True},
        {"zero_stage": 1},
        {"zero_stage": 2, "gradient_checkpointing": True, "attention": "memory_efficient"},
    ],
    ids=str,
)
def test_a_compiled_step_has_the_loss_and_the_gradient_of_the_uncompiled(setting, plain, graphs, values):
    agree(step(setting, compile=True, **values), plain)
    blocks = sum(type(module) in REPEATED for module in setting.unet().modules())
    assert 0 < graphs.frame_count < blocks / 2, "blocks of one kind and size share a graph, in all runs of the process"


def test_the_blocks_of_an_image_unet_are_compiled_once_and_keep_their_names():
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("eager")
    unet = build_image_unet(UNetSettings(**UNET | {"layers_per_block": 3})).eval()
    names = list(unet.state_dict())
    given = (torch.randn(1, 4, 8, 8), torch.tensor(0.3), torch.randn(1, 5, 16))
    with torch.no_grad():
        before = unet(*given).sample
        blocks = compile_blocks(unet, counter)
        after = [unet(*given).sample, unet(*given).sample]
    assert blocks == sum(type(module) in REPEATED for module in unet.modules())
    assert 0 < counter.frame_count < blocks / 2 and list(unet.state_dict()) == names
    for each in after:
        torch.testing.assert_close(each, before)
