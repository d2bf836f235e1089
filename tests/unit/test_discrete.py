"""The discrete schedule of Stable Diffusion 2.1 and the ablation models, against diffusers' DDIM and closed forms."""

import pytest
import torch

from svdflow.common.errors import BadInputError
from svdflow.diffusion import edm
from svdflow.diffusion.discrete import (
    ABLATION_GUIDANCE,
    ABLATION_STEPS,
    PREDICTIONS,
    DiscreteSchedule,
    add_noise,
    ddim_sample,
    ddim_timesteps,
    offset_noise,
    target,
    training_loss,
)
from svdflow.diffusion.edm import Parameterisation
from svdflow.diffusion.guidance import constant_guidance, guided
from svdflow.diffusion.model_directory import parameterisation_of, scheduler_config

SD21 = DiscreteSchedule()


def _scheduler(prediction: str = "v_prediction"):
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type=prediction,
    )  # fmt: skip


def _latents(seed: int = 0, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, batch, 3, 4, 5, 6, generator=generator).unbind()


def _network(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    return torch.sin(3 * x) + 0.001 * timestep.view(-1, 1, 1, 1, 1)


def test_the_schedule_is_diffusers():
    theirs = _scheduler()
    assert torch.allclose(SD21.alphas_cumprod(), theirs.alphas_cumprod, rtol=1e-4)
    assert SD21.sigmas()[-1] == pytest.approx(14.6146, abs=1e-3)
    assert (SD21.sigmas().diff() > 0).all()
    linear = DiscreteSchedule(0.0001, 0.02, "linear")
    assert DiscreteSchedule.from_config({}) == linear
    assert linear.alphas_cumprod()[-1] == pytest.approx(4.0358e-5, rel=1e-3)  # DDPM's own


def test_noisy_latents_and_the_v_target_are_diffusers():
    x0, noise = _latents()
    t = torch.tensor([3, 871])
    assert torch.allclose(add_noise(SD21, x0, noise, t), _scheduler().add_noise(x0, noise, t), atol=1e-4)
    v = target(SD21, "v_prediction", x0, noise, t)
    assert torch.allclose(v, _scheduler().get_velocity(x0, noise, t), atol=1e-4)


def test_the_loss_is_the_plain_error_on_the_target_and_that_of_edm_at_the_same_noise():
    x0, noise = _latents()
    t = torch.tensor([40, 700])
    a = SD21.alphas_cumprod()[t].view(-1, 1, 1, 1, 1)
    predicted = _network(a.sqrt() * x0 + (1 - a).sqrt() * noise, t.float())
    targets = {"epsilon": noise, "sample": x0, "v_prediction": a.sqrt() * noise - (1 - a).sqrt() * x0}
    for prediction in PREDICTIONS:
        loss = training_loss(_network, x0, noise, t, prediction=prediction)
        assert torch.allclose(loss, (predicted - targets[prediction]).square().flatten(1).mean(1), rtol=1e-4)
    sigma_B = SD21.sigmas()[t]
    same = edm.training_loss(_network, x0, noise, sigma_B, Parameterisation("v_prediction", SD21))
    assert torch.allclose(training_loss(_network, x0, noise, t), same, rtol=1e-3)


def test_timesteps_are_told_whole_whatever_the_latents_precision():
    seen = []
    x0, noise = (x.bfloat16() for x in _latents())

    def network(x, timestep):
        seen.extend(timestep.tolist())
        return x

    training_loss(network, x0, noise, torch.tensor([999, 501]))
    assert seen == [999, 501]  # bfloat16 has neither


@pytest.mark.parametrize("steps", [1, 7, 50, 1000])
def test_ddim_visits_diffusers_timesteps(steps):
    scheduler = _scheduler()
    scheduler.set_timesteps(steps)
    ours = ddim_timesteps(steps)
    if steps < 1000:
        assert ours == scheduler.timesteps.tolist()
    assert ours == sorted(set(ours), reverse=True) and 0 <= ours[-1] and ours[0] <= 999
    with pytest.raises(BadInputError, match="1001 DDIM steps"):
        ddim_timesteps(1001)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_takes_diffusers_steps_with_the_ablations_guidance(prediction):
    def conditional(x, timestep):
        return 0.21 * torch.sin(x) + 0.0001 * timestep.view(-1, 1, 1, 1, 1)

    def unconditional(x, timestep):  # near the other: guidance multiplies what sets them apart by 12
        return 0.2 * torch.sin(x) + 0.05

    network = guided(conditional, unconditional, constant_guidance(ABLATION_GUIDANCE, 3))
    noise = _latents(batch=1)[0]
    scheduler = _scheduler(prediction)
    scheduler.set_timesteps(ABLATION_STEPS)
    latents = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        latents = scheduler.step(network(latents, t[None].float()), t, latents).prev_sample
    ours = ddim_sample(network, noise, prediction=prediction)
    assert ABLATION_STEPS == 50 and ABLATION_GUIDANCE == 12
    assert torch.allclose(ours, latents, rtol=1e-3, atol=1e-3 * float(latents.abs().mean()))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_ends_on_the_data_when_the_network_knows_them(prediction):
    """Whatever it predicts: with one clean latent in the world, DDIM finds it (up to the last noise level)."""
    x0, noise = _latents(batch=1)
    a_T = SD21.alphas_cumprod()

    def network(x, timestep):
        a = a_T[timestep.long()].view(-1, 1, 1, 1, 1)
        epsilon = (x - a.sqrt() * x0) / (1 - a).sqrt()
        return {"sample": x0, "epsilon": epsilon, "v_prediction": a.sqrt() * epsilon - (1 - a).sqrt() * x0}[prediction]

    sampled = ddim_sample(network, noise, 50, prediction=prediction)
    assert torch.allclose(sampled, a_T[0].sqrt() * x0 + (1 - a_T[0]).sqrt() * network_noise(noise, x0, a_T), atol=2e-3)


def network_noise(noise, x0, a_T):
    """Of the first latent, under the exact network: DDIM carries it to the end."""
    a = a_T[981]
    return (noise - a.sqrt() * x0) / (1 - a).sqrt()


def test_offset_noise_moves_each_channel_of_a_sample_as_a_whole():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(400, 2, 4, 8, 8, generator=generator)
    offset = torch.randn(400, 4, generator=generator)
    shifted = offset_noise(noise, offset, 0.5)
    assert torch.allclose(shifted - noise, 0.5 * offset[:, None, :, None, None].expand_as(noise), atol=1e-6)
    assert shifted.var() == pytest.approx(1 + 0.5**2, rel=0.05)
    assert shifted.mean((3, 4)).var() == pytest.approx(0.5**2 + 1 / 64, rel=0.1)  # without it only 1 / 64
    assert torch.equal(offset_noise(noise, offset, 0.0), noise)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_schedulers_configuration_tells_prediction_and_schedule_and_comes_back(prediction):
    theirs = dict(_scheduler(prediction).config)
    assert parameterisation_of(theirs) == Parameterisation(prediction, SD21)
    assert parameterisation_of(scheduler_config(Parameterisation(prediction, SD21))) == Parameterisation(
        prediction, SD21
    )
    assert parameterisation_of(scheduler_config()) == edm.EDM
    del theirs["prediction_type"]  # old configurations leave it out
    assert parameterisation_of(theirs).prediction == "epsilon"


@pytest.mark.parametrize(
    ("config", "says"),
    [({"prediction_type": "flow_prediction"}, "'flow_prediction' is none of epsilon"),
     ({"beta_schedule": "squaredcos_cap_v2"}, "only scaled_linear and linear"),
     ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, "FlowMatchEuler.* in another way"),
     ({"_class_name": "EDMEulerScheduler", "prediction_type": "epsilon", "sigma_data": 0.5}, "EDMEuler.* is not read"),
     ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, "UniPC.* in another way"),
     ({"trained_betas": [0.1]}, "betas of its own"), ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr")],
)  # fmt: skip
def test_a_schedule_that_is_not_known_is_refused_and_not_guessed(config, says):
    with pytest.raises(BadInputError, match=says):
        parameterisation_of(config)
