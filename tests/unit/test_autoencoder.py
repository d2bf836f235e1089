"""The shipped autoencoder on footage that it was not trained on, and its compact file."""

import copy
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from svdflow.common.errors import BadInputError
from svdflow.common.video import read_frames
from svdflow.diffusion import autoencoder
from svdflow.diffusion.autoencoder import (
    decode_latents,
    encode_frames,
    encode_moments,
    load_autoencoder,
    to_unit_range,
)
from svdflow.diffusion.settings import SHIPPED_AUTOENCODER as SHIPPED
from svdflow.ingest.footage import make_scene


@pytest.fixture(scope="module")
def vae():
    return load_autoencoder()


def _square(rgb: np.ndarray) -> np.ndarray:
    side = min(rgb.shape[:2])
    top, left = (rgb.shape[0] - side) // 2, (rgb.shape[1] - side) // 2
    return np.asarray(
        Image.fromarray(rgb[top : top + side, left : left + side]).resize((128, 128), Image.Resampling.BICUBIC)
    )


@pytest.fixture(scope="module")
def held_out(media) -> np.ndarray:
    """A film that training never saw."""
    return np.stack([_square(frame) for frame in read_frames(media / "bikes.mp4", [5, 70, 140, 210])])


def _psnr_db(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))


def _down_and_up(frames: np.ndarray) -> np.ndarray:
    small = [Image.fromarray(f).resize((16, 16), Image.Resampling.BICUBIC) for f in frames]
    return np.stack([np.asarray(s.resize((128, 128), Image.Resampling.BICUBIC)) for s in small])


def test_beats_bicubic_down_and_up_sampling_by_three_db_on_film_it_never_saw(vae, held_out):
    decoded = decode_latents(vae, encode_frames(vae, held_out))
    assert _psnr_db(held_out, decoded) > _psnr_db(held_out, _down_and_up(held_out)) + 3


def test_latents_have_an_eighth_of_the_sides_and_about_unit_deviation(vae, held_out):
    latents = encode_frames(vae, held_out)
    assert latents.shape == (4, vae.config.latent_channels, 16, 16)
    assert 0.6 < latents.std().item() < 1.5
    mean, std = encode_moments(vae, to_unit_range(held_out))
    assert torch.allclose(mean * vae.config.scaling_factor, latents, atol=1e-6)
    assert (std > 0).all()


def test_frames_are_decoded_alike_whatever_they_are_decoded_with(vae, held_out):
    latents = encode_frames(vae, held_out)
    together, apart = decode_latents(vae, latents, chunk=14), decode_latents(vae, latents, chunk=1)
    assert np.abs(together.astype(int) - apart.astype(int)).max() <= 1


def test_skipping_identities_changes_no_frame_and_leaves_no_trace(vae, held_out):
    latents = encode_frames(vae, held_out[:2])
    fast = decode_latents(vae, latents)
    with torch.no_grad():
        slow = vae.decode(latents / vae.config.scaling_factor, num_frames=2).sample
    slow_uint8 = ((slow / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(fast - slow_uint8).max() <= 1
    assert not any("forward" in module.__dict__ for module in vae.modules())


def test_temporal_layers_are_used_once_they_are_tuned(vae, held_out):
    tuned = copy.deepcopy(vae)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "temporal_res_block.conv2" in name:
                parameter.normal_(std=1e-4, generator=torch.Generator().manual_seed(0))
    latents = encode_frames(vae, held_out)
    together, apart = decode_latents(tuned, latents), decode_latents(tuned, latents, chunk=1)
    assert np.abs(together.astype(int) - apart.astype(int)).max() > 2


def test_ships_small_and_loads_whole(vae):
    assert (SHIPPED / "compact.safetensors").stat().st_size < 1_600_000
    reference = type(vae).from_config(vae.config)
    assert {n: t.shape for n, t in vae.state_dict().items()} == {n: t.shape for n, t in reference.state_dict().items()}


def test_reads_back_from_a_diffusers_directory(vae, held_out, tmp_path):
    vae.save_pretrained(tmp_path / "vae")
    again = load_autoencoder(tmp_path / "vae")
    assert torch.allclose(encode_frames(again, held_out), encode_frames(vae, held_out), atol=1e-5)


def test_its_identity_follows_its_content(tmp_path):
    shutil.copytree(SHIPPED, tmp_path / "copy")
    assert autoencoder.autoencoder_id(str(tmp_path / "copy")) == autoencoder.AUTOENCODER_ID
    config = tmp_path / "other" / "config.json"
    shutil.copytree(SHIPPED, config.parent)
    config.write_text(config.read_text().replace('"sample_size": 128', '"sample_size": 64'))
    assert autoencoder.autoencoder_id(str(config.parent)) != autoencoder.AUTOENCODER_ID


def test_bad_directories_and_sizes_are_refused_in_one_line(vae, tmp_path):
    with pytest.raises(BadInputError, match="no autoencoder there"):
        load_autoencoder(tmp_path)
    shutil.copytree(SHIPPED, tmp_path / "cut")
    weights = tmp_path / "cut" / "compact.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BadInputError, match="no readable autoencoder"):
        load_autoencoder(tmp_path / "cut")
    with pytest.raises(BadInputError, match="multiples of 8"):
        encode_frames(vae, np.zeros((1, 20, 32, 3), np.uint8))


def test_generated_footage_survives_too(vae):
    frames = make_scene([4242, 1], 2, 128, 128).frames
    decoded = decode_latents(vae, encode_frames(vae, frames))
    assert _psnr_db(frames, decoded) > _psnr_db(frames, _down_and_up(frames))


def test_folding_the_trained_epsilon_away_changes_nothing():
    from svdflow.diffusion.autoencoder_start import TRAINED_EPSILON, build_autoencoder, fold, trunk_norms

    patches = torch.rand(256, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    vae = build_autoencoder(patches, seed=0).eval()
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            if name.endswith(("conv2.weight", "to_out.0.weight")) and "temporal" not in name:
                parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(1))
        for norm in trunk_norms(vae):
            norm.eps = TRAINED_EPSILON
        x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1
        before = vae(x, num_frames=1).sample
        fold(vae)
        assert {norm.eps for norm in trunk_norms(vae)} == {1e-6}
        assert torch.allclose(vae(x, num_frames=1).sample, before, atol=1e-4)


def test_training_starts_from_the_principal_components_of_patches():
    from svdflow.diffusion.autoencoder_start import TRAINED_EPSILON, build_autoencoder, trunk_norms

    frames = np.concatenate([make_scene([77, seed], 1, 64, 64).frames for seed in range(16)])
    pixels = to_unit_range(frames)
    patches = pixels.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    vae = build_autoencoder(patches, seed=0)
    for norm in trunk_norms(vae):
        norm.eps = TRAINED_EPSILON
    latents, _ = encode_moments(vae, pixels)
    latents_Nc = latents.permute(0, 2, 3, 1).flatten(0, 2)
    centred_N192 = (patches - patches.mean(0)).flatten(1)
    kept = torch.linalg.lstsq(latents_Nc - latents_Nc.mean(0), centred_N192)
    explained = ((latents_Nc - latents_Nc.mean(0)) @ kept.solution).square().sum() / centred_N192.square().sum()
    values = torch.linalg.eigvalsh(torch.cov(centred_N192.T)).flip(0)
    bound = values[:8].sum() / values.sum()
    assert 0.9 * bound < explained <= bound + 1e-3  # the norms scale each image a little differently
