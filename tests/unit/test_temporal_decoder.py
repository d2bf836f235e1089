"""The decoder's finetuning: what it starts from, and the gradients of its losses, each computed again by itself."""

import copy
import math

import numpy as np
import pytest
import torch
from diffusers import AsymmetricAutoencoderKL, AutoencoderKL, AutoencoderKLTemporalDecoder
from safetensors.torch import save_file

from svdflow.common.errors import BadInputError
from svdflow.common.lpips import Lpips, load_lpips
from svdflow.diffusion.settings import DecoderLosses
from svdflow.diffusion.temporal_decoder import DecoderFinetuning, PatchDiscriminator, with_temporal_decoder

LOSSES = DecoderLosses(perceptual_weight=0, discriminator_width=8, discriminator_layers=2)


def image_autoencoder(bias: bool) -> AutoencoderKL:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4,
        up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=2, scaling_factor=0.2,
    )  # fmt: skip
    with torch.no_grad():
        vae.post_quant_conv.bias.mul_(float(bias))
    return vae


def tiny(losses: DecoderLosses = LOSSES, perceptual: Lpips | None = None) -> DecoderFinetuning:
    torch.manual_seed(1)
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4, layers_per_block=1
    )
    return DecoderFinetuning(vae.decoder, losses, perceptual)


def clips(count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(2)
    return torch.randn(count, 3, 4, 8, 8), torch.rand(count, 3, 3, 16, 16) * 2 - 1


def gradients(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def test_an_image_autoencoder_gets_temporal_layers_and_makes_the_frames_it_made():
    vae = image_autoencoder(bias=False)
    temporal = with_temporal_decoder(vae)
    assert type(temporal) is AutoencoderKLTemporalDecoder and temporal.config.scaling_factor == 0.2
    latents, pixels = torch.randn(3, 4, 8, 8), torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(temporal.encode(pixels).latent_dist.mean, vae.encode(pixels).latent_dist.mean)
        made, expected = temporal.decode(latents, num_frames=3).sample, vae.decode(latents).sample
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)
        # neighbours have no part in a frame yet
        torch.testing.assert_close(temporal.decode(latents[:1], num_frames=1).sample, made[:1], rtol=1e-4, atol=1e-4)
    assert with_temporal_decoder(temporal) is temporal


def test_every_temporal_layer_of_the_new_decoder_can_learn():
    decoder = with_temporal_decoder(image_autoencoder(bias=True)).decoder
    net = DecoderFinetuning(decoder.requires_grad_(True), LOSSES)
    latents, frames = clips()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(2):  # at first nothing comes through second convolutions of zero
        optimizer.zero_grad()
        net(latents, frames)[1].mean().backward()
        optimizer.step()
    found = gradients(net.decoder)
    assert len(found) == len(list(net.decoder.parameters())) and all(grad.any() for grad in found.values())


def test_other_autoencoders_are_refused():
    with pytest.raises(BadInputError, match="a decoder of AsymmetricAutoencoderKL cannot be finetuned"):
        with_temporal_decoder(AsymmetricAutoencoderKL(layers_per_down_block=1, layers_per_up_block=1))
    deep = AutoencoderKL(block_out_channels=(32,), layers_per_block=1)
    with pytest.raises(BadInputError, match=r"tensor decoder\.mid_block\.resnets\.1.* has no place"):
        with_temporal_decoder(deep)


def test_decoder_and_discriminator_each_move_by_their_own_loss():
    net, (latents, frames) = tiny(), clips()
    made, loss_B, absolute_B, _ = net(latents, frames)
    loss_B.sum().backward()
    together = gradients(net)
    assert torch.equal(loss_B, absolute_B), "the value is the reconstruction's"
    torch.testing.assert_close(absolute_B, (made - frames).abs().mean((1, 2, 3, 4)))

    # the decoder's, by passes of their own; the slope of a mean absolute error is +-1/n in each of n numbers
    other = tiny()
    other.discriminator.requires_grad_(False)
    decoded = other._decoded(latents)
    against_B = -other.discriminator(decoded).flatten(1).mean(1)
    (slope,) = torch.autograd.grad(against_B.sum(), decoded, retain_graph=True)
    numbers = frames[0].numel()
    weight_B = 0.5 * (1 / math.sqrt(numbers)) / (slope.flatten(1).norm(dim=1) + 1e-8)
    ((decoded - frames).abs().flatten(1).mean(1) + weight_B * against_B).sum().backward()
    alone = gradients(other)
    assert set(alone) == {name for name in together if name.startswith("decoder.")}
    for name, grad in alone.items():
        torch.testing.assert_close(together[name], grad, rtol=1e-3, atol=1e-6, msg=name)

    # the discriminator's: hinge loss on frames that nothing is behind
    judge = tiny().discriminator
    real, fake = judge(frames), judge(made.detach())
    hinge = torch.clamp(1 - real, min=0).flatten(1).mean(1) + torch.clamp(1 + fake, min=0).flatten(1).mean(1)
    (0.5 * hinge).sum().backward()
    for name, grad in gradients(judge).items():
        torch.testing.assert_close(together[f"discriminator.{name}"], grad, rtol=1e-4, atol=1e-7, msg=name)


def test_without_the_adversary_the_error_alone_teaches_and_the_discriminator_rests():
    net, (latents, frames) = tiny(), clips()
    net(latents, frames, adversarial=False)[1].sum().backward()
    plain = tiny()
    (plain._decoded(latents) - frames).abs().flatten(1).mean(1).sum().backward()
    found, expected = gradients(net), gradients(plain)
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-7, msg=name)
    assert not any(grad.any() for name, grad in found.items() if name.startswith("discriminator."))


def test_without_a_weight_there_is_no_discriminator_and_every_width_makes_one():
    net = tiny(LOSSES.model_copy(update={"adversarial_weight": 0.0}))
    assert net.discriminator is None and not any("discriminator" in name for name in net.state_dict())
    latents, frames = clips()
    net(latents, frames)[1].sum().backward()
    plain = tiny()
    plain(latents, frames, adversarial=False)[1].sum().backward()
    for name, grad in gradients(net).items():
        torch.testing.assert_close(grad, gradients(plain)[name], rtol=1e-5, atol=1e-8, msg=name)
    for width in (4, 36, 60, 64):
        assert PatchDiscriminator(width, 4)(torch.zeros(1, 1, 3, 16, 16)).shape == (1, 1, 1, 1)


def test_what_a_video_teaches_does_not_depend_on_the_others_of_its_batch():
    net, (latents, frames) = tiny(), clips(3)
    net(latents, frames)[1].mean().backward()
    whole, parts = gradients(net), tiny()
    for n in range(3):
        (parts(latents[n : n + 1], frames[n : n + 1])[1].mean() / 3).backward()
    for name, grad in gradients(parts).items():
        torch.testing.assert_close(whole[name], grad, rtol=1e-3, atol=1e-6, msg=name)


def test_checkpointed_activations_give_the_same_gradients():
    (latents, frames), found = clips(), []
    for checkpointed in (False, True):
        net = tiny()
        if checkpointed:
            net.enable_gradient_checkpointing()
        net(latents, frames)[1].mean().backward()
        found.append(gradients(net))
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, rtol=1e-5, atol=1e-8, msg=name)


def test_the_discriminator_halves_the_sides_keeps_the_frames_and_sees_motion():
    judge = PatchDiscriminator(8, 3)
    video = torch.rand(1, 5, 3, 32, 48)
    assert judge(video).shape == (1, 5, 4, 6)
    assert not torch.allclose(judge(video), judge(video.flip(1)).flip(1), atol=1e-4), "it tells forwards from backwards"


@pytest.fixture
def lpips(tmp_path) -> Lpips:
    """AlexNet's architecture with random weights."""
    torch.manual_seed(3)
    shapes = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
    net = {f"features.{n}.weight": torch.randn(o, i, k, k) / math.sqrt(i * k * k) for n, (o, i, k) in shapes.items()}
    net |= {f"features.{n}.bias": torch.zeros(o) for n, (o, _, _) in shapes.items()}
    heads = {f"lin{n}.weight": torch.rand(1, o, 1, 1) for n, (o, _, _) in enumerate(shapes.values())}
    for name, tensors in (("net", net), ("heads", heads)):
        save_file(tensors, tmp_path / name)
    return load_lpips(str(tmp_path / "net"), str(tmp_path / "heads"), "cpu")


def test_lpips_has_the_slope_that_differences_tell_and_none_where_pictures_are_equal(lpips):
    torch.manual_seed(4)
    a, b = (torch.rand(1, 3, 64, 64) * 2 - 1 for _ in range(2))
    a.requires_grad_(True)
    (slope,) = torch.autograd.grad(lpips.differences(a, b).sum(), a)
    along = torch.randn_like(a)
    step = 1e-2
    with torch.no_grad():
        ends = [float(lpips.differences(a + sign * step * along, b)) for sign in (1, -1)]
    assert float((slope * along).sum()) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=0.05)
    (flat,) = torch.autograd.grad(lpips.differences(a, a.detach()).sum(), a)
    assert torch.isfinite(flat).all() and float(flat.abs().max()) < 1e-6
    dark = torch.full((1, 3, 64, 64), -1.0, requires_grad=True)
    (black,) = torch.autograd.grad(lpips.differences(dark, b).sum(), dark)
    assert torch.isfinite(black).all()
    pictures = np.random.default_rng(0).integers(0, 256, (2, 1, 64, 64, 3), dtype=np.uint8)
    tensors = [torch.from_numpy(p).permute(0, 3, 1, 2).float() / 127.5 - 1 for p in pictures]
    assert lpips.distances(*pictures)[0] == pytest.approx(float(lpips.differences(*tensors)), rel=1e-6)


def test_the_perceptual_loss_is_added_by_its_weight(lpips):
    losses = LOSSES.model_copy(update={"perceptual_weight": 0.7})
    torch.manual_seed(5)
    latents, frames = torch.randn(1, 2, 4, 32, 32), torch.rand(1, 2, 3, 64, 64) * 2 - 1
    net = tiny(losses, lpips)
    assert not any("lpips" in name or "perceptual" in name for name in net.state_dict()), "it does not learn"
    with torch.no_grad():
        made, loss_B, absolute_B = copy.deepcopy(net)(latents, frames)
    apart = lpips.differences(made[0], frames[0]).mean()
    assert float(loss_B) == pytest.approx(float(absolute_B) + 0.7 * float(apart), rel=1e-5)
