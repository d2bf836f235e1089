"""Steps of the engine with and without ``compile``, and what they have to have in common."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from svdflow.diffusion.compiled_blocks import compile_blocks
from svdflow.training.train import engine
from tests.engine_runs import Run, distance, engine_settings

GRADIENT, LOSS = 2e-6, 1e-6  # relative: the engine's own bound against plain torch


@contextmanager
def counted_graphs(backend: str) -> Iterator[Any]:
    """Meanwhile engines compile with this backend; gives what counts the graphs that torch hands to it.

    Equal blocks of later runs find those of the first.
    """
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend(backend)
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
