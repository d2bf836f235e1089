"""torch.compile by option: every repeated block is compiled, and a step stays the step it was.

The backend is ``aot_eager``, which traces and differentiates the blocks as for inductor and runs the graphs as they
are: on a CPU inductor takes far too long to make code of the ten graphs of even a tiny U-Net.
"""

import logging

import pytest
import torch

from svdflow.diffusion.compiled_blocks import REPEATED, compile_blocks
from svdflow.diffusion.settings import UNetSettings
from svdflow.diffusion.unet import build_image_unet
from svdflow.training.train import engine
from tests.engine_runs import Run, Setting, distance, engine_settings, one_process
from tests.training_runs import UNET

GRADIENT, LOSS = 2e-6, 1e-6  # relative: the engine's own bound against plain torch


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
    """Counts the graphs that torch hands to the backend. Equal blocks of later runs find those of the first."""
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "compile_blocks", lambda unet: compile_blocks(unet, counter))
        yield counter


def step(setting, **values):
    """Loss, gradient and held-out loss of the running average after the first step, and weights after the second."""
    run = Run(setting, engine_settings(ema=0.9, clip=0.0, **values))
    found = {"gradient": run.gradient()}
    draws = setting.batches(engine_settings(), 50, 0, 1)[0]
    with torch.no_grad(), run.engine.averaged():
        found["averaged loss"] = run.objective.losses(draws)
    found |= {"loss": run.steps(1)[0].loss} | run.parts()
    run.close()
    return found


def agree(found, plain):
    assert found["loss"] == pytest.approx(plain["loss"], rel=LOSS)
    assert distance(found["gradient"], plain["gradient"]) < GRADIENT
    # Adam turns the rounding of a gradient near zero into a sign: the norms are compared, as everywhere
    for part in ("model", "ema"):
        assert float(found[part].norm()) == pytest.approx(float(plain[part].norm()), rel=1e-5)
    torch.testing.assert_close(found["averaged loss"], plain["averaged loss"], rtol=1e-3, atol=1e-4)


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
