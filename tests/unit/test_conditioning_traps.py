"""What re-implementations of Stable Video Diffusion's conditioning get wrong; each test fails for one such mistake."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from svdflow.diffusion import conditioning, edm
from svdflow.diffusion.conditioning import frame_latents, image_embeddings
from svdflow.diffusion.model_directory import VideoModel
from svdflow.diffusion.sampling import generate
from tests.released_models import svd_pipeline


@pytest.fixture(scope="module")
def pipeline():
    return svd_pipeline()


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.repeat(np.repeat(rng.integers(0, 256, (3, 4, 6, 3), np.uint8), 4, 1), 4, 2)


@pytest.fixture(scope="module")
def noise() -> torch.Tensor:
    return torch.randn(3, 3, 16, 24, generator=torch.Generator().manual_seed(0))


def _pixels(frames: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1


def _mode(vae, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return vae.encode(pixels).latent_dist.mode()


# the conditioning latent


def test_the_conditioning_latent_is_not_scaled(pipeline, frames, noise):
    ours = frame_latents(pipeline.vae, frames, noise, [0.0] * 3)
    theirs = pipeline._encode_vae_image(_pixels(frames), "cpu", 1, False)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert pipeline.vae.config.scaling_factor == 0.18215
    assert not torch.allclose(ours, theirs * 0.18215, atol=1e-2)


def test_it_is_the_posteriors_mode_and_no_sample(pipeline, frames, noise):
    with torch.no_grad():
        posterior = pipeline.vae.encode(_pixels(frames)).latent_dist
    ours = frame_latents(pipeline.vae, frames, noise, [0.0] * 3)
    assert posterior.std.min() > 0.01  # a sample would be seen
    assert torch.allclose(ours, posterior.mean, atol=1e-5)
    assert torch.equal(ours, frame_latents(pipeline.vae, frames, noise, [0.0] * 3))


def test_its_noise_is_added_to_pixels_before_the_encoder(pipeline, frames, noise):
    ours = frame_latents(pipeline.vae, frames, noise, [0.4] * 3)
    assert torch.allclose(ours, _mode(pipeline.vae, _pixels(frames) + 0.4 * noise), atol=1e-5)
    clean = _mode(pipeline.vae, _pixels(frames))
    assert not torch.allclose(ours, clean, atol=1e-2)
    # noise on the latent itself would have the given deviation, whatever the encoder
    assert (ours - clean).std() != pytest.approx(0.4, rel=0.05)


def test_each_sample_of_a_batch_has_a_strength_of_its_own(pipeline, frames, noise):
    strengths = torch.tensor([0.0, 0.1, 1.0])
    batch = frame_latents(pipeline.vae, frames, noise, strengths)
    for index in range(3):
        one = slice(index, index + 1)
        assert torch.equal(batch[one], frame_latents(pipeline.vae, frames[one], noise[one], strengths[one]))
        assert torch.allclose(
            batch[one], _mode(pipeline.vae, (_pixels(frames) + strengths[index] * noise)[one]), atol=1e-5
        )


def test_it_is_differently_scaled_from_what_is_denoised(pipeline, frames, noise):
    """The two meet in one input: the one as encoded, the other with unit deviation."""
    from svdflow.diffusion.autoencoder import encode_frames

    joined = frame_latents(pipeline.vae, frames, noise, [0.0] * 3)
    assert torch.allclose(encode_frames(pipeline.vae, frames), joined * 0.18215, atol=1e-5)


# the image embedding


def test_the_image_embedding_is_not_normalised(pipeline, frames):
    embeddings = image_embeddings(pipeline.image_encoder, pipeline.feature_extractor, frames)
    assert (embeddings.norm(dim=1) - 1).abs().min() > 0.05
    weight = pipeline.image_encoder.visual_projection.weight
    with torch.no_grad():
        weight.mul_(2)
        doubled = image_embeddings(pipeline.image_encoder, pipeline.feature_extractor, frames)
        weight.div_(2)
    assert torch.allclose(doubled, 2 * embeddings, atol=1e-4)


def _seen_by_clip(frames: np.ndarray) -> torch.Tensor:
    """The pixels that reach the image encoder, [F, 3, 224, 224]."""
    seen: list[torch.Tensor] = []

    class Spy:
        device, dtype = torch.device("cpu"), torch.float32

        def __call__(self, pixels: torch.Tensor):
            seen.append(pixels)
            return type("Output", (), {"image_embeds": pixels.mean((2, 3))})

    image_embeddings(Spy(), conditioning.build_feature_extractor(), frames)
    return seen[0]


def test_frames_are_shrunk_with_antialiasing():
    """Lines of one pixel, four times too fine for 224: antialiasing makes them grey, plain bilinear keeps stripes."""
    lines = np.zeros((1, 896, 896, 3), np.uint8)
    lines[:, :, ::3] = 255
    clear = slice(20, 204)
    assert _seen_by_clip(lines)[:, :, clear, clear].std((2, 3)).max() < 0.1
    plain = F.interpolate(_pixels(lines), (224, 224), mode="bilinear")
    assert (plain[:, :, clear, clear] / 2 / 0.27).std() > 0.5


def test_frames_are_squeezed_to_a_square_and_not_cropped():
    wide = np.zeros((1, 64, 160, 3), np.uint8)
    wide[:, :, :16] = 255  # a centre crop of 64×64 would lose it
    pixels = _seen_by_clip(wide)
    assert pixels.shape == (1, 3, 224, 224)
    assert pixels[0, :, 112, 5].min() > pixels[0, :, 112, 112].max() + 1


# everything that reaches the network


class _Network:
    """Stands in for the UNet: remembers what it is given."""

    device = torch.device("cpu")

    def __init__(self, config) -> None:
        self.config, self.calls = config, []

    def __call__(self, x, c_noise, encoder_hidden_states, added_time_ids, return_dict):
        self.calls.append((x, c_noise, encoder_hidden_states, added_time_ids))
        return (torch.zeros_like(x[:, :, :4]),)


@pytest.fixture(scope="module")
def calls(pipeline, frames):
    network = _Network(pipeline.unet.config)
    model = VideoModel("image_to_video", network, pipeline.vae, pipeline.image_encoder, pipeline.feature_extractor)
    generate(model, frames[0], frames=3, fps=7, motion_bucket=90, noise_aug=0.3, steps=2, seed=5)
    unconditional, conditional = network.calls[:2]
    return unconditional, conditional


def test_the_embedding_is_of_the_clean_frame_and_the_latent_of_the_noisy_one(pipeline, frames, calls):
    x, _, context, _ = calls[1]
    clean = image_embeddings(pipeline.image_encoder, pipeline.feature_extractor, frames[:1])
    assert context.shape == (1, 1, 32) and torch.equal(context[:, 0], clean)
    noise = torch.randn(1, 3, 16, 24, generator=torch.Generator().manual_seed(5))
    noisy = frame_latents(pipeline.vae, frames[:1], noise, [0.3])
    assert x.shape == (1, 3, 8, 8, 12)
    for frame in range(3):  # the same for every frame, behind the latent that is denoised
        assert torch.equal(x[:, frame, 4:], noisy)
    assert not torch.allclose(noisy, _mode(pipeline.vae, _pixels(frames[:1])), atol=1e-2)


def test_the_network_is_told_fps_less_one_the_bucket_and_the_strength(calls):
    assert calls[1][3].tolist() == [[6, 90, pytest.approx(0.3)]]


def test_without_conditions_it_sees_zeros_but_the_same_scalars_and_the_same_noisy_latent(calls):
    (x_u, c_noise_u, context_u, vector_u), (x_c, c_noise_c, context_c, vector_c) = calls
    assert not context_u.any() and not x_u[:, :, 4:].any()
    assert context_c.any() and x_c[:, :, 4:].any()
    assert torch.equal(vector_u, vector_c) and torch.equal(c_noise_u, c_noise_c)
    assert torch.equal(x_u[:, :, :4], x_c[:, :, :4])


def test_the_noise_level_is_told_as_a_quarter_of_its_logarithm(calls):
    assert calls[1][1].item() == pytest.approx(0.25 * np.log(700), abs=1e-5)


def test_samples_of_a_batch_keep_their_own_noise_levels_and_scalars():
    """A batch is its samples: nothing is taken from the first of them."""
    unet = svd_pipeline().unet
    generator = torch.Generator().manual_seed(2)
    x0, noise, concat = torch.randn(3, 2, 3, 4, 8, 8, generator=generator)
    context, vector = torch.randn(2, 1, 32, generator=generator), torch.tensor([[6.0, 20, 0.01], [24.0, 200, 0.9]])
    sigma_B = torch.tensor([0.2, 30.0])

    def losses(rows: list[int]) -> torch.Tensor:
        model_fn = edm.unet_model_fn(unet, context[rows], vector[rows], concat[rows])
        with torch.no_grad():
            return edm.training_loss(model_fn, x0[rows], noise[rows], sigma_B[rows])

    assert torch.allclose(losses([0, 1]), torch.cat([losses([0]), losses([1])]), rtol=1e-4)


# mixing


def test_the_unets_mix_weighs_space_and_the_decoders_weighs_time(pipeline):
    """The two have opposite conventions: alpha · spatial + (1 - alpha) · temporal, and the other way round."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 64, 4, 4, generator=generator)
    switch = torch.zeros(1, 3)
    blocks = {
        "unet": (pipeline.unet.mid_block.resnets[0], torch.randn(3, 128, generator=generator)),
        "vae": (pipeline.vae.decoder.mid_block.resnets[0], None),
    }
    for name, (block, embedding) in blocks.items():
        before = block.time_mixer.mix_factor.item()
        outputs = {}
        with torch.no_grad():
            for mix in (before, 30.0):
                block.time_mixer.mix_factor.fill_(mix)
                outputs[mix] = block(x, embedding, image_only_indicator=switch)
            block.time_mixer.mix_factor.fill_(before)
            spatial = block.spatial_res_block(x, embedding)
            temb = None if embedding is None else embedding[None]
            temporal = block.temporal_res_block(spatial.transpose(0, 1)[None], temb)
        temporal = temporal[0].transpose(0, 1)
        alpha = torch.tensor(before).sigmoid()
        first, second = (spatial, temporal) if name == "unet" else (temporal, spatial)
        assert torch.allclose(outputs[30.0], first, atol=1e-4), name
        assert torch.allclose(outputs[before], alpha * first + (1 - alpha) * second, atol=1e-4), name
        assert (spatial - temporal).abs().max() > 0.1


# training


def test_the_noise_of_the_image_stages_is_narrower_than_the_released_codes_default():
    """The released code draws ln sigma with a deviation of 1.2 where nothing is said; the paper says 1.0."""
    from svdflow.training.train.settings import StageSettings

    assert (StageSettings().p_mean, StageSettings().p_std) == (-1.2, 1.0)
