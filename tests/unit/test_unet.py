"""Building UNets, and growing one kind into the next without changing what it computes."""

import pytest
import torch

from svdflow.common.errors import BadInputError
from svdflow.diffusion.settings import TINY_UNET, UNET_PRESETS, UNetSettings
from svdflow.diffusion.unet import (
    build_image_unet,
    build_unet,
    build_video_unet,
    inflate,
    is_temporal,
    parameter_counts,
    settings_of,
    to_image_to_video,
    to_multi_view,
    unet_kind,
)

TINY = TINY_UNET.model_copy(update={"cross_attention_dim": 32, "latent_channels": 4})
C_NOISE = torch.tensor([0.7, -0.4])


def _randomise(module: torch.nn.Module, seed: int = 0) -> None:
    """Trained models have no weight that is zero or one by accident."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="module")
def image_unet():
    torch.manual_seed(0)
    unet = build_image_unet(TINY).eval()
    _randomise(unet)
    return unet


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 4, 8, 8, generator=generator), torch.randn(2, 5, 32, generator=generator)


def _call(unet, x, context, vector):
    with torch.no_grad():
        return unet(x, C_NOISE, encoder_hidden_states=context, added_time_ids=torch.tensor(vector)).sample


@pytest.mark.parametrize(
    ("preset", "channels", "vector", "total"),
    [("sd21-image", 4, None, 865_910_724), ("svd-text-to-video", 4, 512, 1_524_283_882),
     ("svd-image-to-video", 8, 768, 1_524_623_082), ("svd-xt-image-to-video", 8, 768, 1_524_623_082),
     ("svd-multi-view", 8, 1024, 1_524_623_082 + 1280 * 256),
     ("svd-interpolation", 9, 768, 1_524_625_962 + 4 * 72 * 128)],
)  # fmt: skip
def test_full_size_presets_have_the_papers_parameter_counts(preset, channels, vector, total):
    """656M new, 1,521M in all (SVD D.2); counted on the released architecture, without allocating it."""
    with torch.device("meta"):
        unet = build_unet(preset)
    counts = parameter_counts(unet)
    assert counts["total"] == total == sum(p.numel() for p in unet.parameters())
    assert counts["middle"] == (4 * 72 * 128 if preset == "svd-interpolation" else 0)
    assert unet.config.in_channels == channels and unet.config.cross_attention_dim == 1024
    assert counts["spatial"] == 865_910_724 + 320 * (channels - 4) * 9  # the conditioning latent's weights in conv_in
    if vector is None:
        assert counts["temporal"] == counts["vector"] == 0
    else:
        assert unet.add_embedding.linear_1.in_features == vector
        assert counts["temporal"] == 656_076_838
        assert 865_910_724 + counts["temporal"] == 1_521_987_562


def test_presets_are_built_by_name_with_their_kind_and_frames():
    tiny = [name for name in UNET_PRESETS if name.startswith("tiny-")]
    assert [unet_kind(build_unet(name)) for name in tiny] == [UNET_PRESETS[name].kind for name in tiny]
    assert len(tiny) == 5
    with torch.device("meta"):
        frames = [build_unet(f"svd{x}").config.num_frames for x in ("-image-to-video", "-xt-image-to-video")]
    assert frames == [14, 25]
    with pytest.raises(BadInputError, match="no UNet is called 'svd'; there are sd21-image, svd-text-to-video"):
        build_unet("svd")


def test_inflated_unet_gives_what_the_image_unet_gave_for_every_frame(image_unet, inputs):
    x, context = inputs
    video = inflate(image_unet, TINY).eval()
    with torch.no_grad():
        frames = [image_unet(x[:, f], C_NOISE, encoder_hidden_states=context).sample for f in range(3)]
    inflated = _call(video, x, context, [[6.0, 127.0], [24.0, 3.0]])
    assert (inflated - torch.stack(frames, 1)).abs().max() < 1e-3
    assert inflated.abs().mean() > 0.05


def test_every_temporal_branch_of_an_inflated_unet_can_learn(image_unet, inputs):
    x, context = inputs
    video = inflate(image_unet, TINY)
    optimizer = torch.optim.SGD(video.parameters(), lr=0.1)
    for _ in range(2):  # the first step moves the zero layers, the second reaches what lies before them
        optimizer.zero_grad()
        out = video(
            x, C_NOISE, encoder_hidden_states=context, added_time_ids=torch.tensor([[6.0, 127.0], [24.0, 3.0]])
        ).sample
        (out - x.roll(1, dims=1)).square().mean().backward()
        optimizer.step()
    # queries and keys of cross-attention to the context learn once its values do
    unmoved = [
        name
        for name, p in video.named_parameters()
        if is_temporal(name)
        and "attn" not in name
        and "mix_factor" not in name
        and (p.grad is None or not p.grad.any())
    ]
    assert unmoved == []


def test_frames_are_mixed_once_temporal_weights_are_not_zero(image_unet, inputs):
    x, context = inputs
    video = inflate(image_unet, TINY).eval()
    _randomise(video)
    vector = [[6.0, 127.0], [24.0, 3.0]]
    changed = x.clone()
    changed[:, 2] += 1
    assert (_call(video, changed, context, vector)[:, 0] - _call(video, x, context, vector)[:, 0]).abs().max() > 1e-3


def test_image_to_video_starts_as_the_text_to_video_model(image_unet, inputs):
    x, context = inputs
    text = inflate(image_unet, TINY).eval()
    _randomise(text)
    image = to_image_to_video(text).eval()
    concat = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    before = _call(text, x, context, [[6.0, 127.0], [24.0, 3.0]])
    after = _call(image, torch.cat([x, concat], 2), context, [[6.0, 127.0, 0.02], [24.0, 3.0, 0.5]])
    assert torch.equal(before, after)


def test_multi_view_starts_as_the_image_to_video_model_and_keeps_its_scalars(image_unet, inputs):
    x, context = inputs
    text = inflate(image_unet, TINY)
    _randomise(text)
    image = to_image_to_video(text).eval()
    _randomise(image)
    views = to_multi_view(image).eval()
    doubled = torch.cat([x, x.flip(1)], 2)
    vector = [[6.0, 127.0, 0.02], [24.0, 3.0, 0.5]]
    before, after = _call(image, doubled, context, vector), _call(views, doubled, context, [[*v, 15.0] for v in vector])
    assert torch.equal(before, after)
    assert not torch.equal(after, _call(views, doubled, context, [[6.0, 10.0, 0.02, 15.0], [24.0, 3.0, 0.5, 15.0]]))


def test_kinds_are_told_apart(image_unet):
    text = inflate(image_unet, TINY)
    image = to_image_to_video(text)
    assert [unet_kind(u) for u in (image_unet, text, image, to_multi_view(image))] == [
        "image",
        "text_to_video",
        "image_to_video",
        "multi_view",
    ]
    with pytest.raises(BadInputError, match="starts from a UNet of kind image_to_video, not text_to_video"):
        to_multi_view(text)


def test_an_image_unet_of_another_architecture_is_refused(image_unet):
    with pytest.raises(BadInputError, match="does not fit"):
        inflate(image_unet, TINY.model_copy(update={"block_out_channels": (32, 96)}))
    with pytest.raises(ValueError, match="multiples of 32"):
        UNetSettings(block_out_channels=(20, 40), attention_heads=(1, 1))


def test_a_unet_tells_its_own_settings(image_unet):
    video = build_video_unet(TINY, "text_to_video")
    assert settings_of(video) == TINY
    told = settings_of(image_unet, num_frames=8)
    assert told.model_copy(update={"addition_time_embed_dim": TINY.addition_time_embed_dim}) == TINY
    assert settings_of(image_unet).addition_time_embed_dim == 256  # the released width, which an image UNet lacks
    assert inflate(image_unet).config.block_out_channels == video.config.block_out_channels


def test_the_temporal_branch_of_an_inflated_unet_is_active_at_the_released_mix(image_unet):
    """mix_factor 0.5 means that the spatial half weighs sigmoid(0.5) = 0.62; it is no switch (SVD 5.2)."""
    video = inflate(image_unet)
    mixes = [parameter for name, parameter in video.named_parameters() if name.endswith("mix_factor")]
    assert mixes and all(mix.item() == 0.5 for mix in mixes)
    mixer = video.mid_block.resnets[0].time_mixer
    alpha = mixer.get_alpha(torch.zeros(2, 3), 3)
    assert alpha.flatten().tolist() == pytest.approx([0.6224593] * 6)
