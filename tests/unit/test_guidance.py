"""Guidance scales per frame, against closed forms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from svdflow.common.errors import BadInputError
from svdflow.diffusion.guidance import guidance_scales, guided, linear_guidance, triangular_guidance


def test_guidance_is_the_papers_formula_and_each_frame_has_a_scale_of_its_own():
    generator = torch.Generator().manual_seed(0)
    c, u = torch.randn(2, 2, 3, 4, 5, 6, generator=generator)
    scale = linear_guidance(1.0, 2.5, 3)
    out = guided(lambda x, label: c, lambda x, label: u, scale)(c, torch.zeros(2))
    assert scale.tolist() == [1.0, 1.75, 2.5]
    for frame, w in enumerate(scale.tolist()):
        assert torch.allclose(out[:, frame], w * c[:, frame] - (w - 1) * u[:, frame], atol=1e-5)


def test_guiding_the_network_is_guiding_the_denoised_latent():
    from svdflow.diffusion import edm

    generator = torch.Generator().manual_seed(1)
    x, c, u = torch.randn(3, 2, 3, 4, 5, 6, generator=generator)
    sigma_B, w = torch.tensor([0.4, 9.0]), 3.0
    both = edm.denoise(guided(lambda *_: c, lambda *_: u, torch.full((3,), w)), x, sigma_B)
    apart = [edm.denoise(lambda *_, f=f: f, x, sigma_B) for f in (c, u)]
    assert torch.allclose(both, w * apart[0] - (w - 1) * apart[1], atol=1e-4)


@given(low=st.floats(0, 4), high=st.floats(0, 20), frames=st.integers(1, 30))
def test_shapes_are_what_their_names_say(low, high, frames):
    constant, linear, triangular = (
        guidance_scales(shape, low, high, frames).tolist() for shape in ("constant", "linear", "triangular")
    )
    assert constant == pytest.approx([high] * frames)
    steps = max(frames - 1, 1)
    assert linear == pytest.approx([low + (high - low) * f / steps for f in range(frames)], abs=1e-4)

    def wave(x: float) -> float:  # the triangle wave of period 1 that starts at 0
        return 2 * abs(x - math.floor(x + 0.5))

    assert triangular == pytest.approx([low + (high - low) * wave(f / steps) for f in range(frames)], abs=1e-4)


def test_an_orbit_of_21_views_ends_as_it_began_and_is_guided_most_at_its_back():
    scale = triangular_guidance(1.0, 2.5, 21)
    assert scale[0] == scale[20] == 1.0 and scale[10] == 2.5 and scale.argmax() == 10
    assert torch.allclose(scale, scale.flip(0))


def test_an_unknown_shape_is_refused():
    with pytest.raises(BadInputError, match="'cosine' is none of constant, linear, triangular"):
        guidance_scales("cosine", 1, 2, 3)
