"""The engine in one process: at every ZeRO stage it is the plain loop of torch, with an average of its weights."""

import math

import pytest
import torch

from svdflow.common.errors import ConfigError
from tests.engine_runs import Run, Setting, distance, engine_settings, one_process, plain_torch

RECIPE = {"ema": 0.99, "warmup": 3, "clip": 1.0}
STEPS = 2


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    with one_process():
        yield Setting(tmp_path_factory.mktemp("samples"))


@pytest.fixture(scope="module")
def plain(setting):
    return plain_torch(setting, engine_settings(**RECIPE), STEPS)


@pytest.mark.parametrize(
    "values",
    [
        {"zero_stage": 0, "gradient_checkpointing": True, "attention": "memory_efficient"},
        {"zero_stage": 1, "offload_optimizer": True},
        {"zero_stage": 2, "accumulation": 2},
        {"zero_stage": 3},
    ],
    ids=str,
)
def test_every_zero_stage_computes_what_plain_torch_does(setting, plain, values):
    run = Run(setting, engine_settings(**RECIPE, **values))
    first, last = run.steps(1)[0], run.steps(STEPS - 1)[-1]
    weights, average = run.whole(), run.whole("ema")
    # Adam divides by the root of a square: a gradient near zero turns rounding into a sign, so the norm is compared.
    assert distance(weights, plain["model"]) < 1e-4
    assert distance(average, plain["ema"]) < 1e-4
    assert distance(plain["ema"], plain["model"]) > 1e-3  # the average is another thing than the weights
    assert first.gradient_norm == pytest.approx(float(plain["gradient"].norm()), rel=1e-4)
    assert math.sqrt(last.square_sum) == pytest.approx(float(weights.norm()), rel=1e-5)

    draws = setting.batches(engine_settings(), 50, 0, 1)[0]
    with torch.no_grad():
        trained = run.objective.losses(draws)
        with run.engine.averaged():
            assert torch.equal(run.whole(), average)
            judged = run.objective.losses(draws)
        assert torch.equal(run.objective.losses(draws), trained) and torch.equal(run.whole(), weights)
    unet = setting.unet()
    torch.nn.utils.vector_to_parameters(average, unet.parameters())
    with torch.no_grad():
        torch.testing.assert_close(judged, setting.objective(unet, unet).losses(draws), rtol=1e-5, atol=1e-6)
    run.close()


@pytest.mark.parametrize("zero_stage", range(4))
def test_a_gradient_is_clipped_to_the_norm_asked_for(setting, zero_stage):
    """By plain SGD: Adam's update hides how long a gradient is."""
    recipe = {"optimizer": "sgd", "lr": 1.0, "weight_decay": 0}
    gradient = plain_torch(setting, engine_settings(**recipe, clip=0), 1)["gradient"]
    clip = float(gradient.norm()) / 5
    run = Run(setting, engine_settings(**recipe, clip=clip, zero_stage=zero_stage, accumulation=2))
    start = run.whole()
    figures = run.steps(1)[0]
    assert figures.gradient_norm == pytest.approx(5 * clip, rel=1e-4), "told before it is clipped"
    assert distance(start - run.whole(), gradient / 5) < 1e-4
    run.close()


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_in_bf16_the_average_and_the_optimiser_keep_fp32(setting, plain, zero_stage):
    settings = engine_settings(**RECIPE, zero_stage=zero_stage, precision="bf16", accumulation=2)
    run = Run(setting, settings)
    start = run.whole()
    seen: list[dict[str, torch.dtype]] = []

    def look(_, args, kwargs):
        given = dict(zip(("sample", "timestep"), args, strict=False)) | kwargs
        seen.append({name: value.dtype for name, value in given.items() if torch.is_tensor(value)})

    run.engine.deepspeed.module.register_forward_pre_hook(look, with_kwargs=True)
    first, last = run.steps(1)[0], run.steps(STEPS - 1)[-1]
    half = {"sample": torch.bfloat16, "encoder_hidden_states": torch.bfloat16}
    # 999 is no number of bf16: what tells the noise level, the rate and the motion keeps its digits
    assert all(given == half | {"timestep": torch.float32, "added_time_ids": torch.float32} for given in seen) and seen
    weights, average = run.whole(), run.whole("ema")
    assert first.gradient_norm == pytest.approx(float(plain["gradient"].norm()), rel=0.05)
    assert math.sqrt(last.square_sum) == pytest.approx(float(weights.norm()), rel=1e-5)
    assert not torch.equal(average, average.bfloat16().float())  # bf16 has no room for a step of a slow average
    # rounding the start to bf16 costs digits, the update that is learned does not depend on them much
    assert 0.5 < float((weights - start).norm() / (plain["model"] - start.bfloat16().float()).norm()) < 2
    assert all(torch.isfinite(value).all() for value in run.parts().values())
    run.close()


def test_only_the_time_embedding_learns_where_the_paper_says_so(setting):
    for zero_stage in (0, 3):
        run = Run(setting, engine_settings(zero_stage=zero_stage, trainable="time_embedding", ema=0.9))
        before = {name: tensor for part, name, tensor in run.engine.tensors() if part == "model"}
        run.steps(1)
        after = dict(run.engine.final_weights())
        changed = {name for name in after if not torch.equal(before[name], after[name])}
        assert changed and all(name.startswith("time_embedding.") for name in changed)
        assert set(run.engine.layout()["exp_avg"]) == {name for name in before if name.startswith("time_embedding.")}
        run.close()


@pytest.mark.parametrize(
    ("values", "field", "says"),
    [
        ({"precision": "fp16"}, "precision", "take bf16 or fp32"),
        ({"zero_stage": 0, "offload_optimizer": True}, "offload_optimizer", "set zero_stage"),
        ({"zero_stage": 3, "compile": True}, "compile", "zero_stage 3"),
        ({"batch": 6, "processes": 4}, "batch", "multiple of 4"),
        ({"zero_stage": 4}, "zero_stage", "0, 1, 2 or 3"),
        ({"attention": "xformers"}, "attention", "memory_efficient"),
        ({"grace_s": 300}, "grace_s", "30"),
        ({"hand_on": "best"}, "hand_on", "set validate_every"),
        ({"hand_on": "best", "validate_every": 5, "held_out_samples": 0}, "hand_on", "held_out_samples"),
    ],
    ids=lambda value: "",
)
def test_combinations_that_cannot_be_are_refused_by_name(values, field, says):
    with pytest.raises(ConfigError, match=says) as caught:
        engine_settings(**values)
    assert field in str(caught.value) and "\n" not in str(caught.value)
