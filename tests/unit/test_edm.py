"""The EDM formulation against closed forms and against diffusers' Euler scheduler."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from svdflow.diffusion import edm
from svdflow.diffusion.discrete import PREDICTIONS, DiscreteSchedule
from svdflow.diffusion.edm import Parameterisation
from svdflow.diffusion.model_directory import scheduler_config

sigmas = st.floats(1e-3, 700.0)


def _latents(seed: int = 0, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, 3, 4, 5, 6)
    return torch.randn(shape, generator=generator).double(), torch.randn(shape, generator=generator).double()


@given(sigma=sigmas)
def test_coefficients_are_those_of_the_paper(sigma: float):
    c = edm.precondition(torch.tensor(sigma, dtype=torch.float64))
    assert c.c_skip.item() == pytest.approx(1 / (sigma**2 + 1))
    assert c.c_out.item() == pytest.approx(-sigma / math.sqrt(sigma**2 + 1))
    assert c.c_in.item() == pytest.approx(1 / math.sqrt(sigma**2 + 1))
    assert c.c_noise.item() == pytest.approx(0.25 * math.log(sigma))


@given(sigma=sigmas)
def test_weighted_loss_is_plain_mse_on_the_v_target(sigma: float):
    sigma_B = torch.tensor([sigma], dtype=torch.float64)
    assert (edm.loss_weight(sigma_B) * edm.precondition(sigma_B).c_out ** 2).item() == pytest.approx(1)


@settings(max_examples=25, deadline=None)
@given(sigma=sigmas)
def test_a_network_that_returns_the_v_target_denoises_perfectly(sigma: float):
    x0, noise = _latents()
    sigma_B = torch.tensor([sigma, sigma / 2], dtype=torch.float64)
    noisy = x0 + sigma_B.view(-1, 1, 1, 1, 1) * noise
    denoised = edm.denoise(lambda x, c_noise: edm.v_target(x0, noise, sigma_B), noisy, sigma_B)
    assert torch.allclose(denoised, x0, atol=1e-9 * (1 + sigma**2))


def test_training_loss_equals_the_weighted_error_of_the_denoised_latent():
    x0, noise = _latents()
    sigma_B = torch.tensor([0.3, 7.0], dtype=torch.float64)

    def network(x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x) + c_noise.view(-1, 1, 1, 1, 1)

    noisy = x0 + sigma_B.view(-1, 1, 1, 1, 1) * noise
    error = (edm.denoise(network, noisy, sigma_B) - x0).square().flatten(1).mean(1)
    expected = edm.loss_weight(sigma_B) * error
    assert torch.allclose(edm.training_loss(network, x0, noise, sigma_B).double(), expected, rtol=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 25, 30])
def test_noise_schedule_is_diffusers_euler_schedule(steps: int):
    from diffusers import EulerDiscreteScheduler

    scheduler = EulerDiscreteScheduler(**scheduler_config())
    scheduler.set_timesteps(steps)
    ours = edm.karras_sigmas(steps)
    assert torch.allclose(ours, scheduler.sigmas, rtol=1e-6)
    assert torch.allclose(edm.precondition(ours[:-1]).c_noise, scheduler.timesteps, atol=1e-6)


def test_sampler_takes_the_steps_of_diffusers_euler_scheduler():
    from diffusers import EulerDiscreteScheduler

    def network(x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        return torch.sin(3 * x) + 0.1 * c_noise.view(-1, 1, 1, 1, 1)

    noise = _latents(batch=1)[0].float()
    scheduler = EulerDiscreteScheduler(**scheduler_config())
    scheduler.set_timesteps(9)
    latents = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        latents = scheduler.step(network(scheduler.scale_model_input(latents, t), t[None]), t, latents).prev_sample
    assert torch.allclose(edm.euler_sample(network, noise, edm.karras_sigmas(9)), latents, atol=1e-4)


def test_sampling_ends_on_the_data_distribution_when_the_denoiser_is_exact():
    """For data ~ N(0, s²) the best denoiser is x s² / (s² + sigma²), and the flow ends at s times the noise."""
    s = 0.5

    def network(x_in: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        sigma = (4 * c_noise).exp().view(-1, 1, 1, 1, 1)
        x = x_in * (sigma**2 + 1).sqrt()
        return (x * s**2 / (s**2 + sigma**2) - x / (sigma**2 + 1)) / (-sigma / (sigma**2 + 1).sqrt())

    noise = _latents()[0]
    sampled = edm.euler_sample(network, noise, edm.karras_sigmas(400).double())
    assert torch.allclose(sampled, s * noise, atol=0.03)


def test_the_coefficients_before_adaptation_are_the_papers_too():
    """SVD D.1: c_skip 1, c_out -sigma, and for c_noise the timestep whose sigma is nearest."""
    schedule = DiscreteSchedule()
    sigmas_T = schedule.sigmas()
    for sigma in (0.01, 0.03, 0.7, 5.0, 14.6, 700.0):
        c = edm.precondition(torch.tensor(sigma), Parameterisation("epsilon", schedule))
        assert c.c_skip == 1 and c.c_out == pytest.approx(-sigma) and c.c_in == pytest.approx((1 + sigma**2) ** -0.5)
        assert c.c_noise == min(range(1000), key=lambda j: abs(float(sigmas_T[j]) - sigma))


@pytest.mark.parametrize("schedule", [None, DiscreteSchedule()])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_parameterisation_denoises_perfectly_and_weighs_its_loss_alike(prediction, schedule):
    x0, noise = _latents()
    told = Parameterisation(prediction, schedule)
    sigma_B = torch.tensor([0.3, 7.0], dtype=torch.float64)
    wanted = {"epsilon": noise, "sample": x0, "v_prediction": edm.v_target(x0, noise, sigma_B)}[prediction]
    noisy = x0 + sigma_B.view(-1, 1, 1, 1, 1) * noise
    assert torch.allclose(edm.denoise(lambda x, c_noise: wanted, noisy, sigma_B, told), x0, atol=1e-6)

    def network(x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x) + torch.sin(c_noise).view(-1, 1, 1, 1, 1)

    error = (edm.denoise(network, noisy, sigma_B, told) - x0).square().flatten(1).mean(1)
    loss = edm.training_loss(network, x0, noise, sigma_B, told)
    assert torch.allclose(loss.double(), edm.loss_weight(sigma_B) * error, rtol=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_euler_steps_of_imported_models_are_diffusers_steps(prediction):
    """On the noise levels of the training schedule, where diffusers' timesteps are whole."""
    from diffusers import EulerDiscreteScheduler

    def network(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return torch.sin(3 * x) + 0.001 * timestep.view(-1, 1, 1, 1, 1)

    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction,
        timestep_spacing="leading", steps_offset=1,
    )  # fmt: skip
    scheduler.set_timesteps(9)
    noise = _latents(batch=1)[0].float()
    latents = noise * scheduler.init_noise_sigma
    if prediction == "sample":  # diffusers' Euler scheduler refuses it: x0 is the output itself
        for sigma, following, t in zip(scheduler.sigmas, scheduler.sigmas[1:], scheduler.timesteps, strict=False):
            x0 = network(latents / (sigma**2 + 1).sqrt(), t[None])
            latents = latents + (following - sigma) * (latents - x0) / sigma
    else:
        for t in scheduler.timesteps:
            output = network(scheduler.scale_model_input(latents, t), t[None])
            latents = scheduler.step(output, t, latents).prev_sample
    told = Parameterisation(prediction, DiscreteSchedule())
    ours = edm.euler_sample(network, noise, scheduler.sigmas, parameterisation=told)
    assert torch.allclose(ours, latents, rtol=1e-3, atol=1e-3)


def test_the_released_noise_levels_start_at_sigma_max_and_the_latents_with_them():
    sigmas = edm.karras_sigmas(25)
    assert sigmas[0] == 700 and sigmas[-2] == pytest.approx(0.002) and sigmas[-1] == 0 and len(sigmas) == 26
    seen = []

    def network(x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        seen.append((x.std().item(), c_noise.item()))
        return torch.zeros_like(x)

    edm.euler_sample(network, torch.randn(1, 2, 4, 32, 32, generator=torch.Generator().manual_seed(0)), sigmas[:2])
    assert seen[0][0] == pytest.approx(1, abs=0.03)  # c_in undoes sqrt(sigma_max² + 1)
    assert seen[0][1] == pytest.approx(0.25 * math.log(700))  # the label is 0.25 ln sigma, not sigma


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_model_before_adaptation_can_be_measured_and_sampled_as_one_after_it(prediction):
    def network(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return 0.3 * torch.sin(x) + 0.0005 * timestep.view(-1, 1, 1, 1, 1)

    told = Parameterisation(prediction, DiscreteSchedule())
    seen = edm.in_edm_terms(network, told)
    x0, noise = _latents()
    sigma_B = torch.tensor([0.3, 7.0], dtype=torch.float64)
    before, after = edm.training_loss(network, x0, noise, sigma_B, told), edm.training_loss(seen, x0, noise, sigma_B)
    assert torch.allclose(before.double(), after.double(), rtol=1e-4)
    levels = edm.karras_sigmas(6, sigma_min=0.03, sigma_max=14.6).double()
    ours, theirs = (
        edm.euler_sample(seen, noise, levels),
        edm.euler_sample(network, noise, levels, parameterisation=told),
    )
    assert torch.allclose(ours, theirs, atol=1e-6)
    # in closed form, for a model that predicts the noise: v = sqrt(1 + sigma²) · epsilon - sigma · c_in · x
    if prediction == "epsilon":
        s = sigma_B.view(-1, 1, 1, 1, 1)
        epsilon = network(x0, told.schedule.nearest_timestep(sigma_B).double())
        assert torch.allclose(seen(x0, 0.25 * sigma_B.log()), (1 + s**2).sqrt() * epsilon - s * x0, atol=1e-6)
