"""Training on the discrete schedule: which timesteps, which noise, which loss, and what is refused."""

import dataclasses

import numpy as np
import pytest
import torch

from svdflow.common.errors import ConfigError
from svdflow.diffusion.discrete import DiscreteSchedule
from svdflow.diffusion.edm import Parameterisation
from svdflow.diffusion.model_directory import VideoModel
from svdflow.diffusion.settings import UNetSettings
from svdflow.diffusion.unet import build_video_unet
from svdflow.training.train.draws import Plan, held_out_sigmas, noise
from svdflow.training.train.objective import Objective
from svdflow.training.train.settings import stage_settings
from tests.engine_runs import Setting, _NoAutoencoder
from tests.training_runs import UNET


def make(stage="video", **values):
    size = {"batch": 8, "processes": 1, "frames": None, "height": None, "width": None, "steps": 10}
    return stage_settings(stage, size | values)


DISCRETE = {"noise_schedule": "discrete"}


def diffusers_scheduler(prediction):
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction
    )  # fmt: skip


def test_timesteps_are_drawn_evenly_and_nothing_else_of_a_draw_changes():
    sigmas = DiscreteSchedule().sigmas()
    discrete, continuous = Plan(make(**DISCRETE), 10), Plan(make(), 10)
    draws = [discrete.draw(i) for i in range(4000)]
    steps = DiscreteSchedule().nearest_timestep(torch.tensor([d.sigma for d in draws]))
    assert torch.equal(sigmas[steps.long()], torch.tensor([d.sigma for d in draws]))
    assert np.histogram(steps.numpy(), 10, (0, 1000))[0] == pytest.approx([400] * 10, abs=5 * 20)
    for i in range(50):
        assert dataclasses.replace(draws[i], sigma=0.0) == dataclasses.replace(continuous.draw(i), sigma=0.0)
    levels = held_out_sigmas(make(**DISCRETE, held_out_levels=4))
    assert levels == [float(sigmas[t]) for t in (125, 375, 625, 875)]


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    return Setting(tmp_path_factory.mktemp("samples"))


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
@pytest.mark.parametrize("offset", [0.0, 0.3])
def test_the_loss_is_the_plain_error_on_diffusers_target_at_whole_timesteps(setting, prediction, offset):
    calls = []

    def net(x, timestep, **_):
        calls.append((x, timestep))
        return (torch.zeros_like(x),)

    unet = build_video_unet(UNetSettings(**UNET), "text_to_video")
    told = Parameterisation(prediction, DiscreteSchedule())
    model = VideoModel("text_to_video", unet, _NoAutoencoder(), parameterisation=told)
    objective = Objective(model, setting.source, net, torch.device("cpu"), offset)
    plan = Plan(make(**DISCRETE), len(setting.source.rows))
    draws = [plan.draw(i) for i in range(4)]
    losses = objective.losses(draws)
    zero_network, zero_output = objective.blind_losses(draws)
    assert torch.equal(zero_network, losses)
    scheduler = diffusers_scheduler(prediction)
    ((x, timestep),) = calls
    for i, draw in enumerate(draws):
        t = timestep[i].long()
        assert timestep[i] == t and DiscreteSchedule().sigmas()[t] == pytest.approx(draw.sigma, rel=1e-6)
        x0 = torch.from_numpy(setting.source.latents(draw))
        a = scheduler.alphas_cumprod[t]
        added = (x[i] - a.sqrt() * x0) / (1 - a).sqrt()  # the noise that was
        shift = added - torch.from_numpy(noise(draw, x0.shape))
        assert (shift - shift.mean((0, 2, 3), keepdim=True)).abs().max() < 1e-3  # of a channel as a whole
        assert bool(shift.abs().max() > 1e-3) == bool(offset)
        torch.testing.assert_close(x[i], scheduler.add_noise(x0, added, t), atol=1e-5, rtol=1e-5)
        wanted = added if prediction == "epsilon" else scheduler.get_velocity(x0, added, t)
        assert float(losses[i]) == pytest.approx(float(wanted.square().mean()), rel=1e-3)
        # the output that means "the clean latent is zero": all of x is noise
        blind = x[i] / (1 - a).sqrt() * (a.sqrt() if prediction == "v_prediction" else 1)
        assert float(zero_output[i]) == pytest.approx(float((blind - wanted).square().mean()), rel=2e-2)


def test_the_offset_has_the_strength_asked_for_and_is_the_sample_s_own(setting):
    unet = build_video_unet(UNetSettings(**UNET), "text_to_video")
    model = VideoModel("text_to_video", unet, _NoAutoencoder())
    objective = Objective(model, setting.source, unet, torch.device("cpu"), 0.5)
    plan = Plan(make(**DISCRETE), len(setting.source.rows))
    shape = (3, 4, 8, 8)
    shifts = np.stack([objective._noise(plan.draw(i), shape) - noise(plan.draw(i), shape) for i in range(500)])
    per_channel = shifts.mean((1, 3, 4))
    assert abs(per_channel.std() - 0.5) < 0.03 and abs(per_channel.mean()) < 0.05
    assert np.abs(np.corrcoef(per_channel.T) - np.eye(4)).max() < 0.2


@pytest.mark.parametrize(
    ("stage", "values", "says"),
    [
        ("video", {"offset_noise": 0.1}, r"train_video.offset_noise: .*discrete noise schedules"),
        ("video", {"prediction": "epsilon"}, r"train_video.prediction: .*discrete noise schedules"),
        ("image", {"noise_schedule": "discreet"}, r"train_image.noise_schedule: "),
        ("video", {**DISCRETE, "prediction": "sample"}, r"train_video.prediction: "),
        ("image_to_video", DISCRETE, r"train_image_to_video.noise_schedule: .*stages image and video"),
        ("multi_view", DISCRETE, r"train_multi_view.noise_schedule: .*stages image and video"),
    ],
)
def test_combinations_without_a_meaning_are_refused_by_name(stage, values, says):
    with pytest.raises(ConfigError, match=says):
        make(stage, **values)


def test_the_ablation_stage_has_the_papers_recipe():
    settings = stage_settings("video", {"preset": "video_ablation"})
    assert (settings.noise_schedule, settings.prediction, settings.offset_noise) == ("discrete", "v_prediction", 0.1)
    assert (settings.frames, settings.height, settings.width) == (8, 256, 256)
    assert (settings.text_dropout, settings.trainable) == (0.10, "all")
