"""Text, image and scalars as conditions."""

import json

import numpy as np
import pytest
import torch

from svdflow.common.errors import BadInputError
from svdflow.diffusion import conditioning
from svdflow.diffusion.conditioning import Conditions, TextEncoder, text_context, vector_conditioning


@pytest.fixture(scope="module")
def frames():
    rng = np.random.default_rng(0)
    return np.repeat(np.repeat(rng.integers(0, 256, (3, 8, 8, 3), np.uint8), 16, 1), 16, 2)


def test_a_captions_context_does_not_depend_on_its_neighbours_and_tells_captions_apart():
    together = text_context(["a red ball rolls", "two long dogs run over a very green and sunny meadow"])
    alone = text_context(["a red ball rolls"])
    assert together.shape == (2, conditioning.LOCAL_TEXT_TOKENS, 384)
    assert torch.allclose(together[:1], alone, atol=1e-5)
    assert (together[0] - together[1]).norm() > 1
    assert not alone[0, 6:].any() and alone[0, :6].abs().sum(1).min() > 0  # [CLS] a red ball rolls [SEP]


def test_meaning_shows_in_the_local_text_context():
    car, automobile, soup = (c[c.any(1)].mean(0) for c in text_context(["a car", "an automobile", "a bowl of soup"]))
    assert torch.cosine_similarity(car, automobile, 0) > torch.cosine_similarity(car, soup, 0) + 0.2


def test_a_stable_diffusion_text_encoder_is_read_from_its_directory(tmp_path):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = [*"abcdehilnprt", *(f"{c}</w>" for c in "abcdehilnprt"), "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({c: i for i, c in enumerate(letters)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")).save_pretrained(
        tmp_path / "sd" / "tokenizer"
    )
    config = CLIPTextConfig(
        vocab_size=len(letters), hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=77, bos_token_id=24, eos_token_id=25, pad_token_id=25,
    )  # fmt: skip
    CLIPTextModel(config).save_pretrained(tmp_path / "sd" / "text_encoder")
    context = TextEncoder(str(tmp_path / "sd"))(["ball", "a red ball"])
    assert context.shape == (2, 77, 32)
    assert context[0, -1].any()  # CLIP's padding is part of Stable Diffusion's context
    with pytest.raises(BadInputError, match="no text encoder there"):
        TextEncoder(str(tmp_path))


def test_image_embeddings_are_those_of_diffusers_pipeline(frames):
    from diffusers import StableVideoDiffusionPipeline
    from PIL import Image

    encoder, extractor = conditioning.build_image_encoder(48), conditioning.build_feature_extractor()
    pipeline = StableVideoDiffusionPipeline(None, encoder, None, None, extractor)
    for frame in (frames[0], frames[1][:, :96]):
        theirs = pipeline._encode_image(Image.fromarray(frame), "cpu", 1, False)[:, 0]
        assert torch.allclose(conditioning.image_embeddings(encoder, extractor, frame[None]), theirs, atol=1e-5)


def test_local_image_encoder_tells_images_apart_and_is_a_function_of_its_seed(frames):
    extractor = conditioning.build_feature_extractor()
    first, again, other = (
        conditioning.image_embeddings(conditioning.build_image_encoder(48, seed), extractor, frames)
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    similarity = torch.corrcoef(first)
    assert similarity[~torch.eye(3, dtype=bool)].max() < 0.8


def test_scalars_stand_in_the_order_the_released_model_has_and_fps_is_one_less():
    vector = vector_conditioning("image_to_video", fps=[7, 25], motion_bucket=[127, 10], noise_aug=[0.02, 0.5])
    assert vector.tolist() == [[6, 127, pytest.approx(0.02)], [24, 10, 0.5]]
    assert vector_conditioning("text_to_video", fps=[7], motion_bucket=[1], noise_aug=[0.1]).shape == (1, 2)
    assert vector_conditioning("image", fps=[7], motion_bucket=[1]).shape == (1, 0)
    with pytest.raises(BadInputError, match="multi_view model needs elevation_deg"):
        vector_conditioning("multi_view", fps=[7], motion_bucket=[1], noise_aug=[0.1])


def test_the_unconditional_branch_has_zeros_but_keeps_the_scalars():
    given = Conditions(torch.ones(1, 4, 2), torch.tensor([[6.0, 127.0, 0.02]]), torch.ones(1, 2, 1, 3, 3))
    without = given.unconditional()
    assert not without.context_BND.any() and not without.concat_BFchw.any()
    assert torch.equal(without.vector_BK, given.vector_BK)
