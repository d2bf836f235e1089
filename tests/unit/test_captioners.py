"""Captioners on tiny models made here with save_pretrained, and loaded through the production path."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_views import LOCAL, SMALL, assert_neighbours_do_not_matter, chosen, clips_of, handed_on, texture, view_of

from svdflow.curation.annotate import captioners
from svdflow.curation.annotate.annotator import ClipView, load
from svdflow.curation.annotate.coca import greedy_tokens, words_of
from svdflow.curation.annotate.generation import padded_length

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "disc", "moves", "over", "sea"]
READ = ["input_ids", "attention_mask"]


def make_blip(tmp_path: Path, only_disc: bool) -> Path:
    import torch
    from transformers import (
        BertTokenizerFast,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessorPil,
        BlipProcessor,
    )

    torch.manual_seed(1)
    words = WORDS
    text = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "vocab_size": len(words),
        "encoder_hidden_size": 16,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "sep_token_id": 3,
        "pad_token_id": 0,
        "max_position_embeddings": 32,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "image_size": 32,
        "patch_size": 16,
    }
    network = BlipForConditionalGeneration(
        BlipConfig(text_config=text, vision_config=vision, projection_dim=8, image_text_hidden_size=8)
    )
    if only_disc:
        network.text_decoder.cls.predictions.bias.data[7] = 20.0  # it can say nothing but "disc"
    network.save_pretrained(tmp_path)
    tokenizer = BertTokenizerFast(vocab={word: n for n, word in enumerate(words)})
    BlipProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer).save_pretrained(tmp_path)
    return tmp_path


def test_any_image_to_text_model_captions_the_middle_frame(tmp_path: Path) -> None:
    make_blip(tmp_path, only_disc=True)
    settings = LOCAL.model_copy(
        update={"caption_image": "transformers-captioner", "captioner_model": str(tmp_path), "caption_tokens": 4}
    )
    annotator = next(a for a in load(settings) if a.axis == "caption_image")
    said = annotator.annotate(view_of([texture(48, 64)] * 3))
    assert set(said["caption_image"].split()) == {"disc"} and said["caption_image_model"].startswith(str(tmp_path))
    described = ClipView("clip", " two people dance ", view_of([texture(48, 64)] * 3).key_frames)
    assert annotator.annotate(described) == {
        "caption_image": "two people dance",
        "caption_image_model": "sidecar-description@1",
    }


@pytest.fixture(scope="module")
def tiny_blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_blip(tmp_path_factory.mktemp("blip"), only_disc=False)


def test_captions_do_not_depend_on_the_clips_beside_them(tiny_blip: Path) -> None:
    annotator = chosen(
        "caption_image",
        caption_image="transformers-captioner",
        captioner_model=str(tiny_blip),
        caption_tokens=8,
        unit_clips=4,
        prefer_description=False,
    )
    assert_neighbours_do_not_matter(annotator, clips_of(4), 4)


def batches_seen(monkeypatch: pytest.MonkeyPatch, network) -> list[tuple[int, ...]]:
    """Shapes of the prompts that a network is given from now on."""
    shapes: list[tuple[int, ...]] = []
    real = network.generate

    def generate(**inputs):
        shapes.append(tuple(inputs["input_ids"].shape))
        return real(**inputs)

    monkeypatch.setattr(network, "generate", generate)
    return shapes


@given(tokens=st.integers(1, 20_000))
def test_a_prompt_is_always_filled_up_and_never_by_much(tokens: int) -> None:
    assert tokens < padded_length(tokens) <= max(tokens * 1.125 + 1, tokens + 64)
    assert padded_length(tokens) <= padded_length(tokens + 1)


def test_of_a_large_frame_captioners_take_along_what_they_read_and_no_more(tiny_blip: Path) -> None:
    """An 8K frame is 100 MB; sixteen clips of them would wait for the models, and sixteen more in every next unit."""
    large = [np.zeros((4320, 7680, 3), np.uint8)] * 3
    server = {"endpoint_url": "http://127.0.0.1:9/v1", "endpoint_model": "x"}
    for name, most in (("transformers-captioner", 512 * 911 * 3), ("endpoint", 100_000)):
        annotator = chosen(
            "caption_image", caption_image=name, captioner_model=str(tiny_blip), prefer_description=False, **server
        )
        assert 0 < handed_on(annotator, view_of(large)).bytes <= most
    spread = [np.zeros((224, 398, 3), np.uint8)] * 8
    annotator = chosen("caption_video", caption_video="endpoint", **server)
    assert 0 < handed_on(annotator, ClipView("clip", spread_frames=spread)).bytes <= 100_000


def test_a_video_captioner_sees_the_frames_and_the_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import (
        BertTokenizerFast,
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    torch.manual_seed(0)
    words = [*WORDS, "<image>"]
    vision = CLIPVisionConfig(**SMALL, image_size=32, patch_size=16, projection_dim=16)
    text = LlamaConfig(**SMALL, vocab_size=len(words), pad_token_id=0, bos_token_id=2, eos_token_id=3)
    network = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=len(words) - 1, vision_feature_layer=-1)
    )
    network.generation_config.suppress_tokens = [0, 1, 2, 3, 4, len(words) - 1]  # it shall say words
    network.save_pretrained(tmp_path)
    template = (
        "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image> "
        "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
    )
    size = {"height": 32, "width": 32}
    LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size),
        BertTokenizerFast(
            vocab={word: n for n, word in enumerate(words)},
            extra_special_tokens={"image_token": "<image>"},
            model_input_names=READ,
        ),
        patch_size=16,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    ).save_pretrained(tmp_path)
    changed = {
        "caption_video": "transformers-video-captioner",
        "video_captioner_model": str(tmp_path),
        "caption_tokens": 4,
        "caption_clips": 4,
        "unit_clips": 16,
        "video_caption_frames": 3,
    }
    annotator = chosen("caption_video", **changed)
    assert annotator.spread == 3
    views = clips_of(3)
    said = assert_neighbours_do_not_matter(annotator, views, 3)
    shapes = batches_seen(monkeypatch, captioners._vision_model(str(tmp_path), None, "cpu")[1])
    assert annotator.measure([handed_on(annotator, view) for view in views]) == said
    assert shapes == [(4, 64)], "one batch for all, filled up, and longer than the longest prompt"
    few = views[1]
    few.spread_frames = few.spread_frames[:2]  # one of a clip too short: it has a batch of its own
    few.taken.clear()
    odd = [handed_on(annotator, view) for view in (views[0], few, views[2])]
    found = annotator.measure(odd)
    assert [found[0], found[2]] == [said[0], said[2]] and shapes[1:] == [(4, 64), (4, 64)]
    assert all(set(found["caption_video"].split()) <= {*words} for found in said)
    assert said[0]["caption_video_model"] == f"{tmp_path}@main prompt@1"
    assert chosen("caption_video", **{**changed, "video_caption_frames": 4}).identity() != annotator.identity()


def test_a_language_model_joins_the_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import BertTokenizerFast, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    network = LlamaForCausalLM(
        LlamaConfig(**SMALL, vocab_size=len(WORDS), pad_token_id=0, bos_token_id=2, eos_token_id=3)
    )
    network.generation_config.suppress_tokens = [0, 1, 2, 3, 4]
    network.save_pretrained(tmp_path)
    tokenizer = BertTokenizerFast(vocab={word: n for n, word in enumerate(WORDS)}, model_input_names=READ)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    annotator = chosen(
        "caption_summary",
        caption_summary="transformers-summary",
        summary_model=str(tmp_path),
        caption_tokens=4,
        caption_clips=2,
        unit_clips=16,
    )
    views = [
        view_of([texture(48, 64)] * 3, caption_image="red disc", caption_video="moves " * n) for n in (1, 9, 30, 90)
    ]
    said = assert_neighbours_do_not_matter(annotator, views, 4)
    shapes = batches_seen(monkeypatch, captioners._language_model(str(tmp_path), None, "cpu")[1])
    silent = view_of([texture(48, 64)] * 3, caption_image=None, caption_video=None)
    assert annotator.measure([views[0], silent, *views[1:]]) == [
        said[0], {"caption_summary": None, "caption_summary_model": None}, *said[1:]
    ]  # fmt: skip
    assert sorted(shapes) == [(2, 64), (2, 64), (2, 128)], "two at a time, and by length"
    assert all(set(found["caption_summary"].split()) <= {*WORDS} for found in said)
    assert annotator.annotate(silent) == {"caption_summary": None, "caption_summary_model": None}


class _Parrot:
    """Says after each token the next one of a row that the picture chooses: a CoCa with a memory of one token."""

    rows = ([320, 321, 49407, 9], [330, 49407, 9, 9])

    def _encode_image(self, x_NCHW):
        return x_NCHW.mean((1, 2, 3)), x_NCHW

    def __call__(self, image, tokens, image_latent, image_embs, output_labels):
        import torch

        logits = torch.zeros(len(tokens), tokens.shape[1], 49408)
        for n, which in enumerate(image_latent.int().tolist()):
            logits[n, -1, self.rows[which][tokens.shape[1] - 1]] = 1
        return {"logits": logits}


def test_coca_decodes_greedily_until_every_caption_has_ended() -> None:
    import torch

    pictures = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)])
    tokens = greedy_tokens(_Parrot(), pictures, most=4)
    assert tokens.tolist() == [[49406, 320, 321, 49407], [49406, 330, 49407, 9]]
    assert [words_of(row).tolist() for row in tokens.tolist()] == [[320, 321], [330]]
    assert words_of([49406, 5, 6]).tolist() == [5, 6] and greedy_tokens(_Parrot(), pictures, most=1).shape == (2, 2)
