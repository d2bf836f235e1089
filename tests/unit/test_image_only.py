"""Images and videos in one batch: what the switch per sample does to a video UNet."""

import copy

import pytest
import torch

from svdflow.diffusion import edm
from svdflow.diffusion.image_only import allow_image_only
from svdflow.diffusion.settings import TINY_UNET
from svdflow.diffusion.unet import build_image_unet, build_video_unet, inflate, is_temporal, to_image_to_video

TINY = TINY_UNET.model_copy(update={"cross_attention_dim": 32, "latent_channels": 4})
C_NOISE = torch.tensor([0.7, -0.4])
VECTOR = torch.tensor([[6.0, 127.0], [24.0, 3.0]])


def _randomise(module: torch.nn.Module, size: float = 0.05) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return module


@pytest.fixture(scope="module")
def image_unet():
    torch.manual_seed(0)
    return _randomise(build_image_unet(TINY)).eval()


@pytest.fixture(scope="module")
def video(image_unet):
    """Inflated, and every weight moved on from there as training moves them."""
    return _randomise(inflate(image_unet)).eval()


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 4, 8, 8, generator=generator), torch.randn(2, 5, 32, generator=generator)


def _call(unet, x, context, image_only, vector=VECTOR):
    with torch.no_grad():
        return edm.unet_model_fn(unet, context, vector, image_only_B=image_only)(x, C_NOISE)


def test_the_switch_is_per_sample(video, inputs):
    x, context = inputs
    videos, mixed, images = (_call(video, x, context, torch.tensor(switch)) for switch in ([0, 0], [1, 0], [1, 1]))
    assert torch.equal(videos, _call(video, x, context, None))
    assert torch.equal(mixed[1], videos[1]) and torch.equal(mixed[0], images[0])
    assert (images - videos).abs().amax((1, 2, 3, 4)).min() > 1e-2


def test_frames_of_an_image_sample_know_nothing_of_one_another(video, inputs):
    x, context = inputs
    images = torch.tensor([True, True])
    changed = x.clone()
    changed[:, 2] += 1
    before, after = _call(video, x, context, images), _call(video, changed, context, images)
    assert torch.equal(before[:, :2], after[:, :2]) and not torch.equal(before[:, 2], after[:, 2])
    alone = _call(video, x[:, 1:2], context, images)  # as an image batch is given, one frame each
    assert torch.allclose(alone, before[:, 1:2], atol=1e-5)


def test_images_are_what_the_trained_spatial_layers_make_of_them(video, inputs):
    """The image model with the video model's spatial weights, whatever the temporal layers have learned."""
    x, context = inputs
    video = copy.deepcopy(video)
    torch.nn.init.zeros_(video.add_embedding.linear_2.weight)  # an image model is told no frame rate
    torch.nn.init.zeros_(video.add_embedding.linear_2.bias)
    image = build_image_unet(TINY).eval()
    image.load_state_dict(
        {
            name.replace("spatial_res_block.", ""): tensor
            for name, tensor in video.state_dict().items()
            if not is_temporal(name)
        }
    )
    with torch.no_grad():
        expected = torch.stack([image(x[:, f], C_NOISE, encoder_hidden_states=context).sample for f in range(3)], 1)
    got = _call(video, x, context, torch.tensor([1, 1]))
    assert (got - expected).abs().max() < 1e-3 and expected.abs().mean() > 0.05


def test_a_batch_of_images_and_videos_trains_the_temporal_layers_by_the_videos_alone(video, inputs):
    x, context = inputs

    def gradients(batch: list[int], switch: list[int]) -> dict[str, torch.Tensor]:
        unet = copy.deepcopy(video).requires_grad_(True)
        model_fn = edm.unet_model_fn(unet, context[batch], VECTOR[batch], image_only_B=torch.tensor(switch))
        edm.training_loss(model_fn, x[batch], x.roll(1, 1)[batch], torch.tensor([0.5, 3.0])[batch]).sum().backward()
        return {name: parameter.grad for name, parameter in unet.named_parameters()}

    joint, clip, image = gradients([0, 1], [1, 0]), gradients([1], [0]), gradients([0], [1])
    for name, gradient in joint.items():
        assert torch.allclose(gradient, clip[name] + image[name], atol=1e-4 * (1 + gradient.abs().max())), name
        if is_temporal(name) and not name.startswith("add_embedding."):
            assert not image[name].any(), name  # there, and zero: no process waits for a missing gradient
    assert any(clip[name].any() for name in clip if "temporal" in name)


def test_gradient_checkpointing_keeps_the_switch(video, inputs):
    x, context = inputs
    results = []
    for checkpointing in (False, True):
        unet = copy.deepcopy(video).train().requires_grad_(True)
        if checkpointing:
            unet.enable_gradient_checkpointing()
        model_fn = edm.unet_model_fn(unet, context, VECTOR, image_only_B=torch.tensor([1, 0]))
        model_fn(x, C_NOISE).square().mean().backward()
        results.append(torch.cat([p.grad.flatten() for p in unet.parameters()]))
    assert torch.allclose(*results, atol=1e-6)


def test_every_way_to_a_video_unet_takes_the_switch_once_and_copies_are_on_their_own(image_unet, inputs):
    x, context = inputs
    grown = to_image_to_video(inflate(image_unet))
    built = build_video_unet(TINY, "text_to_video")
    assert allow_image_only(built) is built and len(built._forward_pre_hooks) == 1
    doubled = torch.cat([x, x], 2)
    vector = torch.cat([VECTOR, torch.ones(2, 1)], 1)
    _call(_randomise(grown).eval(), doubled, context, torch.tensor([1, 1]), vector)
    other = copy.deepcopy(built)
    with torch.no_grad():
        other(x, C_NOISE, context, VECTOR, image_only_indicator=torch.ones(2, 3))
    assert all(block.image_only is None for block in other.down_blocks)
    assert not hasattr(built.mid_block, "image_only")
