"""Frame interpolation: what the network sees, how it grows out of a text-to-video model, and what the sampler makes."""

import copy

import numpy as np
import pytest
import torch

from svdflow.common.errors import BadInputError
from svdflow.diffusion.autoencoder import decode_latents, encode_frames, load_autoencoder
from svdflow.diffusion.conditioning import (
    Conditions,
    build_feature_extractor,
    build_image_encoder,
    end_latents,
    image_embeddings,
)
from svdflow.diffusion.interpolating import clip_noise, frame_noise, interpolate, interpolated
from svdflow.diffusion.interpolation import InterpolationUNet
from svdflow.diffusion.model_directory import VideoModel, load_model, save_model
from svdflow.diffusion.settings import TINY_UNET
from svdflow.diffusion.single_file import export_single_file
from svdflow.diffusion.unet import build_video_unet, settings_of, to_image_to_video, to_interpolation, unet_kind

SMALL = TINY_UNET.model_copy(update={"cross_attention_dim": 32, "latent_channels": 4, "sample_size": (4, 6)})
LABEL = torch.tensor([0.7, -0.4])
VECTOR = torch.tensor([[27.0, 127.0, 0.02], [11.0, 3.0, 0.5]])
FRAMES = 5


def _randomise(module: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return module


@pytest.fixture(scope="module")
def text_unet():
    torch.manual_seed(0)
    return _randomise(build_video_unet(SMALL, "text_to_video")).eval()


@pytest.fixture(scope="module")
def inputs():
    """Noisy latents, latents with a mask at both ends, and two tokens of context."""
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(2, FRAMES, 4, 4, 6, generator=generator)
    ends = torch.randn(2, 2, 4, 4, 6, generator=generator)
    joined = end_latents(ends, torch.zeros_like(ends), [0.0, 0.0], FRAMES)
    return noisy, joined, torch.randn(2, 2, 32, generator=generator)


def _call(unet, noisy, joined, context, vector=VECTOR):
    return unet(torch.cat([noisy, joined], 2), LABEL, encoder_hidden_states=context, added_time_ids=vector).sample


def test_a_grown_unet_computes_what_the_text_to_video_unet_did_whatever_is_given(text_unet, inputs):
    noisy, joined, context = inputs
    grown = to_interpolation(text_unet).eval()
    assert (unet_kind(grown), grown.config.num_frames, tuple(grown.middle_latent.shape)) == (
        "interpolation", 5, (4, 4, 6),
    )  # fmt: skip
    with torch.no_grad():
        before = text_unet(noisy, LABEL, context, VECTOR[:, :2]).sample
        grown.middle_latent.add_(1.0)  # not even that is seen
        assert torch.equal(before, _call(grown, noisy, joined, context))
        assert torch.equal(before, _call(grown, noisy, torch.zeros_like(joined), context))
    with pytest.raises(BadInputError, match="starts from a UNet of kind text_to_video, not image_to_video"):
        to_interpolation(to_image_to_video(text_unet))


def test_the_first_layer_sees_noise_then_z_then_the_mask_and_z_is_learned_where_nothing_is_given(text_unet, inputs):
    noisy, joined, context = inputs
    unet, seen = _randomise(to_interpolation(text_unet)), []
    unet.conv_in.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    joined = joined.clone()
    joined[1] = 0  # a sample whose frames were dropped
    joined[0, 2, :4] = 99.0  # what lies where the mask is 0 is not looked at
    _call(unet, noisy, joined, context)
    (x,) = seen
    x = x.unflatten(0, (2, FRAMES))
    middle = unet.middle_latent.detach()
    assert x.shape == (2, 5, 9, 4, 6)
    assert torch.equal(x[:, :, :4], noisy) and torch.equal(x[:, :, 8:], joined[:, :, 4:])
    assert torch.equal(x[0, [0, 4], 4:8], joined[0, [0, 4], :4])
    for place in ([0, 1], [0, 2], [0, 3], *([1, f] for f in range(5))):
        assert torch.equal(x[place[0], place[1], 4:8], middle), place


def test_the_latent_for_frames_between_learns_from_these_alone(text_unet, inputs):
    """Finite differences know nothing of how it is put there."""
    noisy, joined, context = inputs
    unet = _randomise(to_interpolation(text_unet)).double()
    given = [part.double() for part in (noisy, joined, context)]
    loss = _call(unet, *given).square().mean()
    loss.backward()
    place, step = (2, 1, 3), 1e-4
    with torch.no_grad():
        values = []
        for sign in (1, -1):
            other = copy.deepcopy(unet)
            other.middle_latent[place] += sign * step
            values.append(float(_call(other, *given).square().mean()))
    assert float(unet.middle_latent.grad[place]) == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-3)

    unet.zero_grad()
    everywhere = joined.double().clone()
    everywhere[:, :, 4] = 1.0
    _call(unet, given[0], everywhere, given[2]).square().mean().backward()
    assert unet.middle_latent.grad is not None and not unet.middle_latent.grad.any()


def test_all_that_is_new_learns_within_two_steps(text_unet, inputs):
    unet = to_interpolation(text_unet)
    optimizer = torch.optim.SGD(unet.parameters(), lr=0.1)
    columns = []
    for _ in range(2):
        optimizer.zero_grad()
        (_call(unet, *inputs) - inputs[0].roll(1, 1)).square().mean().backward()
        columns.append(unet.conv_in.weight.grad[:, 4:].abs().sum((0, 2, 3)) > 0)
        optimizer.step()
    assert columns[0].all(), "given latents and mask teach their weights in the first step"
    assert unet.middle_latent.grad.any()


def test_at_another_size_the_learned_latent_is_resampled(text_unet):
    unet, seen = to_interpolation(text_unet, (8, 12)), []
    unet.conv_in.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        unet.middle_latent.copy_(torch.arange(4.0)[:, None, None] + torch.linspace(-1, 1, 12))
        for height, width in ((8, 12), (4, 4), (6, 20)):
            noisy = torch.zeros(2, FRAMES, 4, height, width)
            _call(unet, noisy, torch.zeros(2, FRAMES, 5, height, width), torch.zeros(2, 2, 32))
            z = seen.pop()[0, 4:8]
            # each row the same, rising to the right, its mean kept: antialiased or stretched alike
            torch.testing.assert_close(z, z[:, :1].expand(-1, height, -1))
            assert (z.diff(dim=2) > 0).all()
            torch.testing.assert_close(z.mean((1, 2)), torch.arange(4.0), atol=1e-5, rtol=1e-5)
            assert (height, width) != (8, 12) or torch.equal(z, unet.middle_latent)


def test_given_latents_are_noised_after_the_autoencoder_each_sample_with_its_own_strength():
    generator = torch.Generator().manual_seed(0)
    ends, noise = torch.randn(2, 2, 4, 3, 3, generator=generator), torch.randn(2, 2, 4, 3, 3, generator=generator)
    joined = end_latents(ends, noise, [0.1, 2.0], FRAMES)
    for sample, strength in enumerate((0.1, 2.0)):
        for end, frame in enumerate((0, 4)):
            expected = ends[sample, end] + strength * noise[sample, end]
            torch.testing.assert_close(joined[sample, frame, :4], expected)
            assert (joined[sample, frame, 4] == 1).all()
    assert not joined[:, 1:4].any()
    dropped = Conditions(torch.ones(2, 2, 8), VECTOR, joined).unconditional()
    assert not dropped.concat_BFchw.any() and not dropped.context_BND.any()


# a model of this kind


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    settings = TINY_UNET.model_copy(update={"num_frames": 5, "sample_size": (6, 8)})
    unet = _randomise(build_video_unet(settings, "interpolation")).eval().requires_grad_(False)
    encoder = build_image_encoder(TINY_UNET.cross_attention_dim)
    return VideoModel("interpolation", unet, load_autoencoder(), encoder, build_feature_extractor(), card={"stage": 1})


@pytest.fixture(scope="module")
def video():
    y, x = np.mgrid[0:48, 0:64]
    frames = [np.stack([3 * x + 9 * f, 5 * y, 128 + 50 * np.sin((x - 4 * f) / 6)], 2) for f in range(4)]
    return np.stack(frames).clip(0, 255).astype(np.uint8)


def test_it_survives_the_disk_and_says_what_it_is(model, video, tmp_path):
    save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert isinstance(loaded.unet, InterpolationUNet) and loaded.kind == "interpolation"
    assert torch.equal(loaded.unet.middle_latent, model.unet.middle_latent) and model.unet.middle_latent.any()
    assert settings_of(loaded.unet).sample_size == (6, 8)
    index = (tmp_path / "model" / "model_index.json").read_text()
    assert "svdflow.InterpolationDiffusion" in index and '"svdflow"' in index
    save_model(loaded, tmp_path / "again")
    for path in (tmp_path / "model").rglob("*"):
        assert (
            path.is_dir()
            or path.read_bytes() == (tmp_path / "again" / path.relative_to(tmp_path / "model")).read_bytes()
        )
    same = [interpolate(m, video[:2], fps=7, steps=2) for m in (model, loaded)]
    np.testing.assert_array_equal(*same)
    with pytest.raises(BadInputError, match="single-file layout holds image-to-video models, not one of kind interp"):
        export_single_file(model, tmp_path / "file.safetensors")


class Oracle:
    """Stands in for the network: it knows that the frames between lie on the straight line between the ends."""

    def __init__(self, unet) -> None:
        self.config, self.device, self.seen = unet.config, unet.device, []

    def __call__(self, x, label, encoder_hidden_states, added_time_ids, return_dict):
        noisy, z, mask = x.split((8, 8, 1), 2)
        self.seen.append((z, mask, encoder_hidden_states, added_time_ids))
        assert (mask[:, [0, -1]] == 1).all() and not mask[:, 1:-1].any() and not z[:, 1:-1].any()
        share = torch.linspace(0, 1, 5).view(1, 5, 1, 1, 1)
        denoised = (1 - share) * z[:, :1] + share * z[:, -1:]
        sigma = (4 * label).exp().view(-1, 1, 1, 1, 1)
        noisy = noisy * (sigma**2 + 1).sqrt()
        return ((noisy / (sigma**2 + 1) - denoised) * (sigma**2 + 1).sqrt() / sigma,)


def test_frames_stand_between_their_neighbours_and_the_network_is_told_four_times_the_rate(model, video):
    oracle = Oracle(model.unet)
    seeing = VideoModel("interpolation", oracle, model.vae, model.image_encoder, model.feature_extractor)
    counts = []
    made = interpolate(
        seeing, video, fps=7, motion_bucket=90, noise_aug=0.0, steps=3, batch=2, on_step=counts.append,
        key_frames="decoded",
    )  # fmt: skip
    assert made.shape == (13, 48, 64, 3) and counts == list(range(6))
    latents = encode_frames(model.vae, video)
    for pair in range(3):
        line = torch.stack([torch.lerp(latents[pair], latents[pair + 1], share / 4) for share in range(5)])
        expected = decode_latents(model.vae, line).astype(int)
        assert np.abs(made[4 * pair : 4 * pair + 5].astype(int) - expected).max() <= 1
    assert [len(z) for z, *_ in oracle.seen] == [2, 2, 2, 1, 1, 1]
    _, _, context, vector = oracle.seen[-1]
    assert vector.tolist() == [[27.0, 90.0, 0.0]]
    embeddings = image_embeddings(model.image_encoder, model.feature_extractor, video[2:])
    torch.testing.assert_close(context[0], embeddings, atol=1e-5, rtol=1e-4)

    given = interpolate(seeing, video, fps=7, noise_aug=0.0, steps=3)
    np.testing.assert_array_equal(given[::4], video)
    assert np.abs(given.astype(int) - made)[np.arange(13) % 4 > 0].max() <= 1


def test_noise_is_of_the_clip_and_the_frame_and_not_of_the_batch(model, video):
    settings = {"fps": 6, "steps": 2, "noise_aug": 0.3, "guidance": (1.0, 1.5), "seed": 4}
    alone = interpolate(model, video, batch=1, **settings)
    together = interpolate(model, video, batch=3, **settings)
    assert np.abs(alone.astype(int) - together).max() <= 2 and alone.std() > 5
    np.testing.assert_array_equal(alone, interpolate(model, video, batch=1, **settings))
    head = interpolate(model, video[:2], batch=1, **settings)
    np.testing.assert_array_equal(alone[:5], head)
    for change in ({"seed": 5}, {"fps": 12}, {"noise_aug": 0.0}, {"motion_bucket": 5}, {"guidance": (1.0, 1.0)}):
        assert not np.array_equal(alone, interpolate(model, video, **settings | change)), change
    noises = [clip_noise(s, p, 4, 6, 8).flatten()[:96] for s in (0, 1) for p in (0, 1)]
    noises += [frame_noise(0, p, 4, 6, 8).flatten()[:96] for p in (0, 1)]
    correlation = torch.corrcoef(torch.stack(noises)) - torch.eye(6)
    assert correlation.abs().max() < 0.4


def test_a_video_of_any_length_streams_through(model, video):
    taken = []

    def endless():
        while True:
            taken.append(None)
            yield video[len(taken) % 4]

    made = interpolated(model, endless(), fps=7, steps=1, batch=2)
    for count in range(1, 20):
        next(made)
        assert len(taken) <= 3 + 2 * ((count - 1) // 8)
    with pytest.raises(StopIteration):
        short = interpolated(model, iter(video[:2]), fps=7, steps=1, batch=2)
        np.testing.assert_array_equal(np.stack([next(short) for _ in range(5)])[[0, 4]], video[:2])
        next(short)


def test_what_cannot_be_interpolated_is_refused(model, video):
    other = VideoModel("image_to_video", model.unet, model.vae)
    refused = [
        (other, video, {}, "kind image_to_video makes no frames between others"),
        (model, video.astype(np.float32), {}, "uint8"),
        (model, video[..., :2], {}, "uint8"),
        (model, video[:1], {}, "fewer than two"),
        (model, video[:0], {}, "0 frames"),
        (model, video[:, :44], {}, "64x44 px: both sides must be multiples of 8"),
        (model, video, {"fps": 0}, "must be positive"),
        (model, video, {"steps": 0}, "at least one"),
        (model, video, {"batch": 0}, "at least one"),
        (model, video, {"key_frames": "made"}, "neither given nor decoded"),
    ]
    for given, frames, values, says in refused:
        with pytest.raises(BadInputError, match=says) as caught:
            interpolate(given, frames, **{"fps": 7, "steps": 1} | values)
        assert "\n" not in str(caught.value)
    with pytest.raises(BadInputError, match="frame 1 has 32x48 px, those before it 64x48"):
        list(interpolated(model, [video[0], video[0][:, :32]], fps=7, steps=1))
